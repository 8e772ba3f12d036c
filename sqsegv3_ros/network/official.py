# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders of the official release.

A checkpoint loads completely or not at all: one error lists everything that is missing, unexpected or of wrong shape.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import read_yaml
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.official_keys import FILES, HEADS, official_key

if TYPE_CHECKING:
    from torch import Tensor

    from sqsegv3_ros.network.model import SqueezeSegV3

WEIGHTS = {"best": "", "train": "_train"}
"""Suffix of the weight files: best IoU in validation (`best`) or in training (`train`)."""

_LAYERS = {21: NetworkConfig.ssgv3_21, 53: NetworkConfig.ssgv3_53}
_RANGENET_BACKBONES = ("darknet", "squeezeseg", "squeezesegV2")
_LISTED_PROBLEMS = 10


@dataclass(frozen=True)
class OfficialCheckpoint:
    """Contents of a checkpoint folder.

    Attributes:
        model: The network in eval mode, float32, on the CPU.
        config: Its configuration.
        projection: Projection into its image.
        normalization: Normalisation of its image.
        knn: KNN refinement.
        labels: Label set.
        folder: The folder.
        weights: 'best' or 'train'.
    """

    model: SqueezeSegV3
    config: NetworkConfig
    projection: ProjectionConfig
    normalization: Normalization
    knn: KnnConfig
    labels: LabelSet
    folder: Path
    weights: str


def load_official(folder: str | Path, weights: str = "best", *, parity: bool = False) -> OfficialCheckpoint:
    """Read a checkpoint folder: arch_cfg.yaml, data_cfg.yaml and seven weight files, zip or legacy pickle.

    Args:
        folder: The folder.
        weights: 'best' or 'train'.
        parity: Reproduce the release's bugs: the mask that drops the pixel won by point 0 and, if arch_cfg.yaml enables
            KNN, votes that give class 1 to points without a valid neighbour.

    Returns:
        The network and its settings.

    Raises:
        UserError: Something is missing, unexpected, of the wrong shape or not supported.
    """
    from sqsegv3_ros.network.model import SqueezeSegV3

    folder = Path(folder)
    if weights not in WEIGHTS:
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, found '{weights}'")
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} is not a folder")
    arch = _Settings(folder / "arch_cfg.yaml")
    _check_kind(arch)
    labels = LabelSet.from_config(_Settings(folder / "data_cfg.yaml").data)
    config = _network_config(arch, len(labels))
    projection, normalization, knn = _projection(arch, parity), _normalization(arch), _knn(arch, parity)
    stored = _read_weights(folder, weights)
    _check_classes(folder, stored, len(labels))
    model = SqueezeSegV3(config)
    model.load_state_dict(_renamed(folder, stored, model.state_dict()))
    return OfficialCheckpoint(model.eval(), config, projection, normalization, knn, labels, folder, weights)


class _Settings:
    """A YAML file, read by dotted paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise UserError(
                f"checkpoint {path.parent} has no {path.name}; a folder of the official release holds arch_cfg.yaml, "
                f"data_cfg.yaml, {', '.join(FILES)}"
            )
        data = read_yaml(path, "configuration")
        if not isinstance(data, Mapping):
            raise UserError(f"{path}: expected a YAML mapping, found {type(data).__name__}")
        self.data: Mapping[str, Any] = data

    def get(self, dotted: str, kind: type) -> Any:
        """Read an entry, checking its type; a whole number may stand for a float."""
        value: Any = self.data
        for name in dotted.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise UserError(f"{self.path} has no entry '{dotted}'")
            value = value[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise UserError(f"{self.path}: entry '{dotted}' must be a {kind.__name__}, found {value!r}")
        return value


def _check_kind(arch: _Settings) -> None:
    name = arch.get("backbone.name", str)
    if name in _RANGENET_BACKBONES:
        raise UserError(
            f"{arch.path.parent} is a RangeNet++ checkpoint (lidar-bonnetal, backbone '{name}') and cannot be "
            "imported; expected one of SqueezeSegV3 (backbone 'SAC')"
        )
    if name != "SAC":
        raise UserError(f"{arch.path}: backbone.name must be 'SAC' (SqueezeSegV3), found '{name}'")
    if arch.get("backbone.OS", int) != 8:
        raise UserError(f"{arch.path}: backbone.OS must be 8, found {arch.get('backbone.OS', int)}")
    unused = [name for name in ("range", "xyz", "remission") if not arch.get(f"backbone.input_depth.{name}", bool)]
    if unused:
        raise UserError(
            f"{arch.path}: SqueezeSegV3 needs range, xyz and remission, but input_depth disables {', '.join(unused)}"
        )


def _network_config(arch: _Settings, num_classes: int) -> NetworkConfig:
    layers = arch.get("backbone.extra.layers", int)
    if layers not in _LAYERS:
        raise UserError(f"{arch.path}: backbone.extra.layers must be 21 or 53, found {layers}")
    return _LAYERS[layers](
        num_classes=num_classes,
        dropout=arch.get("backbone.dropout", float),
        decoder_dropout=arch.get("decoder.dropout", float),
        head_dropout=arch.get("head.dropout", float),
        bn_momentum=arch.get("backbone.bn_d", float),
    )


def _projection(arch: _Settings, parity: bool) -> ProjectionConfig:
    kind = arch.get("dataset.sensor.type", str)
    if kind != "spherical":
        raise UserError(f"{arch.path}: dataset.sensor.type must be 'spherical', found '{kind}'")
    return ProjectionConfig(
        height=arch.get("dataset.sensor.img_prop.height", int),
        width=arch.get("dataset.sensor.img_prop.width", int),
        # the release takes the magnitudes: the upper limit is above the horizon, the lower one below
        fov_up_deg=abs(arch.get("dataset.sensor.fov_up", float)),
        fov_down_deg=-abs(arch.get("dataset.sensor.fov_down", float)),
        keep="nearest",
        outside_fov="clamp",
        official_mask=parity,
    )


def _normalization(arch: _Settings) -> Normalization:
    # unchanged: the release applies them by position, although its 53 has range and z swapped
    means, stds = (arch.get(f"dataset.sensor.img_{name}", list) for name in ("means", "stds"))
    try:
        return Normalization(tuple(means), tuple(stds))
    except (TypeError, ValueError):
        raise UserError(f"{arch.path}: img_means and img_stds must be numbers, found {means} and {stds}") from None


def _knn(arch: _Settings, parity: bool) -> KnnConfig:
    mode = "off"
    if arch.get("post.KNN.use", bool):
        mode = "official" if parity else "safe"
    return KnnConfig(
        mode=mode,
        k=arch.get("post.KNN.params.knn", int),
        search=arch.get("post.KNN.params.search", int),
        sigma=arch.get("post.KNN.params.sigma", float),
        cutoff_m=arch.get("post.KNN.params.cutoff", float),
    )


def _read_weights(folder: Path, weights: str) -> dict[tuple[str, str], Tensor]:
    """Read all tensors by file, without its suffix, and key."""
    suffix = WEIGHTS[weights]
    missing = [file + suffix for file in FILES if not (folder / (file + suffix)).is_file()]
    if missing:
        others = [kind for kind, s in WEIGHTS.items() if all((folder / (file + s)).is_file() for file in FILES)]
        hint = f"; the folder has only the '{others[0]}' weights: use those" if others else ""
        raise UserError(f"checkpoint {folder} lacks {', '.join(missing)} (weights '{weights}'){hint}")
    return {(file, key): value for file in FILES for key, value in _read_state(folder / (file + suffix))}


def _read_state(path: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, LookupError, AttributeError, pickle.UnpicklingError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path} is not a file of torch weights: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} does not hold a state_dict (names with tensors), found {type(state).__name__}")
    for key, value in state.items():
        yield str(key).removeprefix("module."), value  # saved from a DataParallel wrapper


def _check_classes(folder: Path, stored: Mapping[tuple[str, str], Tensor], num_classes: int) -> None:
    wrong = {
        file: tuple(stored[file, "1.weight"].shape)[:1]
        for file in HEADS
        if (file, "1.weight") in stored and tuple(stored[file, "1.weight"].shape)[:1] != (num_classes,)
    }
    if wrong:
        found = ", ".join(f"{file} {shape[0] if shape else 0}" for file, shape in wrong.items())
        raise UserError(
            f"checkpoint {folder}: data_cfg.yaml has {num_classes} classes (learning_map_inv), but the heads "
            f"have other numbers: {found}; put the data_cfg.yaml of this training into the folder"
        )


def _renamed(folder: Path, stored: Mapping[tuple[str, str], Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the stored weights under our names. Raises UserError with a list of all mismatches."""
    own_names = {official_key(key): key for key in wanted}
    problems = [f"missing {file}: {key}" for file, key in own_names if (file, key) not in stored]
    for (file, key), value in stored.items():
        if (file, key) not in own_names:
            problems.append(f"unexpected {file}: {key}")
        elif value.shape != wanted[own_names[file, key]].shape:
            expected = tuple(wanted[own_names[file, key]].shape)
            problems.append(f"wrong shape {file}: {key} is {tuple(value.shape)}, expected {expected}")
        elif not value.isfinite().all():
            problems.append(f"not finite {file}: {key}")
    if problems:
        more = len(problems) - _LISTED_PROBLEMS
        listed = "\n  ".join(problems[:_LISTED_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))
        raise UserError(f"checkpoint {folder} does not match its arch_cfg.yaml:\n  {listed}")
    return {own_names[key]: value for key, value in stored.items()}
