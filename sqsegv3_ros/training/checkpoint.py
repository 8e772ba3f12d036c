# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of training and other sources of weights: model files, folders of the official release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import ModelInfo, find_model, is_model_file, read_info, read_training_state
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3

KEY = "sqsegv3"
"""Entry of a checkpoint that describes the model."""

PREFIX = "network."


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint of `sqsegv3 train`; no code in the file is run.

    Args:
        path: The file.

    Returns:
        Its description of the model, and the weights of the network (the average if training averaged them).

    Raises:
        UserError: The file is missing, damaged or of another kind.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on where the damage is
        reason = "it is damaged, or was not made by `sqsegv3 train` or `sqsegv3 export`"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {reason}") from None
    if not isinstance(data, dict) or KEY not in data:
        raise UserError(f"checkpoint {path} was not made by `sqsegv3 train`: it has no entry '{KEY}'")
    weights = {k[len(PREFIX) :]: v for k, v in data["state_dict"].items() if k.startswith(PREFIX)}
    return data[KEY], weights


def read_trained(path: str | Path) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Read a checkpoint or a model file.

    Args:
        path: The file, or the name of a model that ships.

    Returns:
        Metadata of the model and weights of the network.

    Raises:
        UserError: The file is missing, damaged or of another kind.
    """
    found = find_model(path)
    if is_model_file(found):
        return read_info(found), read_training_state(found)
    description, weights = read_checkpoint(found)
    info = ModelInfo(
        name=description["name"],
        architecture=description["network"],
        labels=LabelSet.from_dict(description["labels"]),
        projection=ProjectionConfig.from_dict(description["projection"]),
        normalization=Normalization.from_dict(description["normalization"]),
        knn=KnnConfig.from_dict(description["knn"]),
        sensor_height_m=description.get("sensor_height_m"),
        provenance=description["training"],
    )
    return info, weights


def load_network(description: dict[str, Any], weights: dict[str, Tensor]) -> SqueezeSegV3:
    """Build the network of a checkpoint, in eval mode.

    Args:
        description: Description of the model.
        weights: Weights of the network.

    Returns:
        The training model.

    Raises:
        UserError: Weights and description do not match.
    """
    network = SqueezeSegV3(NetworkConfig.from_dict(description["network"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"the checkpoint is damaged: {first[0].strip()}") from None
    return network.eval()


def load_weights(network: nn.Module, source: str | Path) -> str:
    """Load the weights of a checkpoint, a model file or an official folder into a network.

    Heads with another number of classes keep their weights; everything else must match.

    Args:
        network: The network.
        source: Checkpoint, model file or folder of the official release.

    Returns:
        A message that says what was loaded.

    Raises:
        UserError: The weights do not match the network.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        from sqsegv3_ros.network.official import load_official

        weights = load_official(source).model.state_dict()
    elif is_model_file(source):
        weights = read_training_state(source)
    else:
        weights = read_checkpoint(source)[1]
    own = network.state_dict()
    other = {k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape}
    wrong = sorted((own.keys() ^ weights.keys()) | {k for k in other if not k.startswith("heads.")})
    if wrong:
        shown = ", ".join(_difference(k, own, weights) for k in wrong[:4])
        raise UserError(
            f"the weights of {source} do not fit the network: {shown}{', ...' if len(wrong) > 4 else ''}; "
            "set model.network to the shape that they were trained with"
        )
    network.load_state_dict({k: own[k] if k in other else v for k, v in weights.items()})
    heads = " (without the heads, whose classes differ)" if other else ""
    return f"starting from the weights of {source}{heads}"


def _difference(key: str, own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    def shape(tensors: dict[str, Tensor]) -> str:
        return str(tuple(tensors[key].shape)) if key in tensors else "nothing"

    return f"{key} is {shape(weights)}, expected {shape(own)}"
