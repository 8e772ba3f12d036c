# SPDX-License-Identifier: Apache-2.0
"""Networks to measure: by name with random weights, or rebuilt from a model file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.network.model import SqueezeSegV3

NAMES = ("21", "53", "3/16", "1/4")
"""SqueezeSegV3-21 and -53, and the 21 with that share of its channels."""


def network_config(name: str) -> NetworkConfig:
    """The network of that name; any fraction is a width multiplier of the 21.

    Raises:
        UserError: For any other name.
    """
    from fractions import Fraction

    from sqsegv3_ros.network.config import NetworkConfig

    if name in ("21", "53"):
        return NetworkConfig.ssgv3_21() if name == "21" else NetworkConfig.ssgv3_53()
    try:
        multiplier = Fraction(name)
    except (ValueError, ZeroDivisionError):
        multiplier = Fraction(0)
    if not 0 < multiplier <= 2:
        raise UserError(f"a network is one of {', '.join(NAMES)} or another width multiplier up to 2, found '{name}'")
    return NetworkConfig.ssgv3_21().scaled(float(multiplier))


def random_network(config: NetworkConfig, seed: int = 0) -> SqueezeSegV3:
    """A training model in eval mode with random weights, the same for the same seed."""
    import torch

    from sqsegv3_ros.network.model import SqueezeSegV3

    torch.manual_seed(seed)
    return SqueezeSegV3(config).eval()


def random_info(config: NetworkConfig, height: int, width: int) -> ModelInfo:
    """The description of a model with random weights: SemanticKITTI's classes, official KNN."""
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig

    return ModelInfo(
        name="random weights",
        architecture=config.to_dict(),
        labels=SEMANTIC_KITTI,
        projection=ProjectionConfig(height=height, width=width),
        normalization=Normalization(),
        knn=KnnConfig(),
        provenance={"source": "random weights, for measurements only"},
    )


def write_random_model(path: Path, config: NetworkConfig, height: int, width: int, seed: int = 0) -> None:
    """Write a model file with random weights, the same for the same seed."""
    from sqsegv3_ros.network.export import export_model

    export_model(random_network(config, seed), path, info=random_info(config, height, width))


def training_model(path: Path) -> SqueezeSegV3:
    """The training model of a model file, in eval mode and float32: BatchNorm and all five heads."""
    from sqsegv3_ros.inference.model_file import read_info, read_training_state
    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.network.model import SqueezeSegV3

    model = SqueezeSegV3(NetworkConfig.from_dict(read_info(path).architecture))
    model.load_state_dict(read_training_state(path))
    return model.eval()


def write_onnx(model: Path, path: Path, height: int, width: int) -> None:
    """Export the weights of a model file to ONNX, for images of that size."""
    from sqsegv3_ros.inference.model_file import read_info
    from sqsegv3_ros.network.export import export_onnx

    info = read_info(model)
    projection = replace(info.projection, height=height, width=width)
    export_onnx(training_model(model), path, replace(info, projection=projection))
