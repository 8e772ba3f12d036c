# SPDX-License-Identifier: Apache-2.0
"""The model file: a TorchScript network with everything needed to run it correctly and to continue its training.

One zip archive as `torch.jit.save` writes it, with two extra files. `sqsegv3.json` holds the classes, the projection,
the normalisation, the KNN settings, the architecture and where the weights come from; `training_state.pt` holds the
weights of the training network, BatchNorms and auxiliary heads included. Loading a TorchScript file can run code that
its author put into it: load model files from sources you trust, or pin their sha256.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError, last_line, require
from sqsegv3_ros.files import expand_home, share_folders, write_atomically
from sqsegv3_ros.inference import torchscript
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig

if TYPE_CHECKING:
    import torch

DEFAULT = "default"  # name of the model that is used if none is named
# models that a source checkout has and an installed package lacks, and the licence of their weights
NOT_INSTALLED = {"kitti": "CC BY-NC-SA 4.0, not for commercial use"}
FORMAT = "sqsegv3_ros model"
FORMAT_VERSION = 2
INFO_FILE = "sqsegv3.json"
STATE_FILE = "training_state.pt"
MAX_FILE_BYTES = 1 << 30  # the largest network of the paper needs 104 MB
MAX_INFO_BYTES = 1 << 20
WEIGHT_DTYPES = ("float32", "float16")
_DAMAGED = (RuntimeError, ValueError, EOFError, struct.error, zlib.error)
"""What zipfile, json and torch raise for damaged, encrypted or endlessly nested content."""


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a model file.

    Attributes:
        name: What the model is called.
        architecture: The network's configuration, as `NetworkConfig.to_dict` gives it.
        labels: The classes.
        projection: How points become the image that the network was trained on.
        normalization: Mean and standard deviation of the image's channels.
        knn: How labels are refined.
        sensor_height_m: Height above the ground of the sensor that recorded the training data, metres; None if unknown.
        width_multiple: The image width must be a multiple of this.
        minimum_width: The narrowest image that the network takes.
        provenance: Source, data, date, metrics and licence, as far as known.
        weights_dtype: 'float32' or 'float16', of the exported tensors; `save_model` fills it in.
        weights_sha256: Digest of the exported tensors; `save_model` fills it in.
        format_version: Version of the file format.
    """

    name: str
    architecture: Mapping[str, Any]
    labels: LabelSet
    projection: ProjectionConfig
    normalization: Normalization
    knn: KnnConfig
    sensor_height_m: float | None = None
    width_multiple: int = 8
    minimum_width: int = 8
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights_dtype: str = ""
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("width_multiple", "minimum_width"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, name, "a whole number of 1 or more", value)
        height = self.sensor_height_m
        valid = height is None or (isinstance(height, (int, float)) and 0 < height < 100)
        require(valid, "sensor_height_m", "above 0 and below 100 metres, or null", height)

    @property
    def licence(self) -> str:
        """The licence of the weights, as stated by their author; 'unknown' if not stated."""
        return str(self.provenance.get("licence") or "unknown")

    def to_dict(self) -> dict[str, Any]:
        """The information as plain JSON types."""
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            "name": self.name,
            "architecture": dict(self.architecture),
            "labels": self.labels.to_dict(),
            "projection": self.projection.to_dict(),
            "normalization": self.normalization.to_dict(),
            "knn": self.knn.to_dict(),
            "sensor_height_m": self.sensor_height_m,
            "width_multiple": self.width_multiple,
            "minimum_width": self.minimum_width,
            "provenance": dict(self.provenance),
            "weights_dtype": self.weights_dtype,
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        """The inverse of `to_dict`. Raises UserError naming what is missing, malformed or too new."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise UserError("its metadata was not written by sqsegv3_ros")
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "update sqsegv3_ros" if newer else "export the model again from its checkpoint"
            raise UserError(f"it has format version {version}, this package reads version {FORMAT_VERSION}; {advice}")
        try:
            return cls(
                name=str(data["name"]),
                architecture=dict(data["architecture"]),
                labels=LabelSet.from_dict(data["labels"]),
                projection=ProjectionConfig.from_dict(data["projection"]),
                normalization=Normalization.from_dict(data["normalization"]),
                knn=KnnConfig.from_dict(data["knn"]),
                sensor_height_m=data["sensor_height_m"],
                width_multiple=data["width_multiple"],
                minimum_width=data["minimum_width"],
                provenance=dict(data["provenance"]),
                weights_dtype=str(data["weights_dtype"]),
                weights_sha256=str(data["weights_sha256"]),
                format_version=version,
            )
        except KeyError as error:
            raise UserError(f"missing metadata field {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"invalid metadata: {error}") from error


@dataclass(frozen=True)
class ModelFile:
    """A loaded model file.

    Attributes:
        info: What the file says about itself.
        network: Exported network, float32 on the CPU: normalised image (N, 5, H, W) -> logits (N, C, H, W).
        path: The file.
        sha256: Digest of the file.
    """

    info: ModelInfo
    network: torch.jit.ScriptModule
    path: Path
    sha256: str


def save_model(
    path: str | Path, network: torch.jit.ScriptModule, info: ModelInfo, state: Mapping[str, torch.Tensor]
) -> ModelInfo:
    """Write a model file atomically.

    Args:
        path: File to write.
        network: Exported form on the CPU, its floating-point tensors all float32 or all float16.
        info: Description; what describes the weights is filled in here.
        state: `state_dict` of the training network that was exported.

    Returns:
        The description as written.

    Raises:
        UserError: The weights are of several types, or the file cannot be written.
    """
    import torch

    dtypes = {str(t.dtype).removeprefix("torch.") for t in network.state_dict().values() if t.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= set(WEIGHT_DTYPES):
        raise UserError(f"a model file must hold all weights as float32 or all as float16, found {sorted(dtypes)}")
    info = replace(
        info, weights_dtype=dtypes.pop(), weights_sha256=weights_sha256(network), format_version=FORMAT_VERSION
    )
    state_file = io.BytesIO()
    # not as a zip archive: the end of a truncated model file would be taken for that of the inner archive
    tensors = {name: value.detach().cpu() for name, value in state.items()}
    torch.save(tensors, state_file, _use_new_zipfile_serialization=False)
    extra = {INFO_FILE: json.dumps(info.to_dict(), indent=1).encode(), STATE_FILE: state_file.getvalue()}
    buffer = io.BytesIO()
    torchscript.save(network, buffer, extra)
    write_atomically(path, buffer.getvalue())
    return info


def read_info(path: str | Path) -> ModelInfo:
    """Read the metadata of a model file, without loading the network or running anything in the file.

    Raises:
        UserError: The file is missing, truncated, of another kind or of another format version.
    """
    path = Path(path)
    with _open(path) as file:
        return _read_info(path, file)


def load_model(path: str | Path, sha256: str | None = None) -> ModelFile:
    """Load a model file.

    Args:
        path: The file.
        sha256: Digest that the file must have; None: not checked.

    Returns:
        The model, its network in float32 on the CPU.

    Raises:
        UserError: The file is missing, truncated, damaged, of another kind or of another format version.
    """
    path = Path(path)
    # a copy in memory: what is checked is what is loaded, whatever happens to the file
    with _memory_file(path) as copy:
        with _open(path) as file:
            digest = _copy(file, copy, path)
        check_sha256(path, digest, sha256)  # before anything in it is parsed
        info = _read_info(path, copy)
        try:
            network = torchscript.load(copy)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"model {path} is damaged, its network cannot be loaded: {last_line(error)}") from None
    found = weights_sha256(network)
    if found != info.weights_sha256:
        raise UserError(
            f"model {path} is damaged: its weights have sha256 {found}, its metadata says {info.weights_sha256}"
        )
    return ModelFile(info, network.float().eval(), path, digest)


def check_sha256(path: Path, found: str, expected: str | None) -> None:
    """Raise UserError if a model file has another sha256 than the expected one, if any; letter case does not matter."""
    if expected and found != expected.lower():
        raise UserError(
            f"model {path} has sha256 {found}, expected {expected.lower()}; take the right file or change model_sha256"
        )


def read_training_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of the training network from a model file; nothing in the file is run.

    Raises:
        UserError: The file is no model file, or its training state is missing or damaged.
    """
    import torch

    path = Path(path)
    with _open(path) as file:
        _read_info(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                name = next((n for n in archive.namelist() if n.endswith(f"/extra/{STATE_FILE}")), None)
                if name is None:
                    raise UserError(f"model {path} has no {STATE_FILE}; export it again with `sqsegv3 export`")
                state: dict[str, torch.Tensor] = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, LookupError, *_DAMAGED) as error:
            raise UserError(
                f"model {path} is damaged: its {STATE_FILE} cannot be read ({type(error).__name__})"
            ) from None
    return state


def is_model_file(path: str | Path) -> bool:
    """Whether a file is a model file, complete or not, rather than a training checkpoint."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            return any(name.endswith(f"/extra/{INFO_FILE}") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def weights_sha256(network: torch.nn.Module) -> str:
    """sha256 over the names, types, shapes and values of a network's tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


def default_model() -> Path | None:
    """The model that runs if none is named; None if none is shipped."""
    return shipped_models().get(DEFAULT)


def shipped_models() -> dict[str, Path]:
    """The models shipped with the package, by name.

    Looked for beside an installed package (share/sqsegv3_ros/models, by pip or colcon) and in the source tree, with and
    without a sourced ROS environment.
    """
    for folder in share_folders():
        models = {path.stem: path for path in sorted((folder / "models").glob("*.pt"))}
        if models:
            return models
    return {}


def find_model(given: str | Path | None) -> Path:
    """Find the file of a model.

    Args:
        given: A path, the name of a shipped model such as 'kitti', or nothing for the default. A name is that of a
            shipped model even if the working folder has a file of that name: write ./kitti for the file.

    Returns:
        The path; whether a file is there is not checked for paths with a folder or an ending.

    Raises:
        UserError: No model has this name, or none is given and none is shipped.
    """
    shipped = shipped_models()
    name = str(given or DEFAULT)
    if name in NOT_INSTALLED:
        notice = f"model {name}: the licence of its weights is {NOT_INSTALLED[name]}"
        if name not in shipped:
            raise UserError(f"{notice}; it is not installed: give the path of models/{name}.pt in a source checkout")
        logging.getLogger(__name__).warning("%s (`%s` is free to use)", notice, DEFAULT)
    if name in shipped:
        return shipped[name]
    if not given:
        raise UserError("no model was given and none is installed; pass a model file")
    path = expand_home(given)
    if path.is_file() or path.suffix or "/" in str(given):
        return path
    raise UserError(f"model {path} not found: no such file, and the shipped models are {', '.join(shipped) or 'none'}")


def _open(path: Path) -> BinaryIO:
    """The file, if it is one and not too large."""
    try:
        if path.exists() and not path.is_file():  # before it is opened: a pipe would wait for a writer
            raise UserError(f"model {path} is not a file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"model {path} has {size} bytes; the limit is {MAX_FILE_BYTES}")
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"model file {path} not found") from None
    except OSError as error:
        raise UserError(f"cannot read model {path}: {error.strerror or error}") from error


def _memory_file(path: Path) -> BinaryIO:
    """An empty file in memory, for a copy of the model."""
    try:
        return open(os.memfd_create("model"), "w+b")
    except OSError as error:
        raise UserError(f"cannot read model {path}: {error.strerror or error}") from error


def _copy(file: BinaryIO, copy: BinaryIO, path: Path) -> str:
    """Copy a file. Returns its sha256."""
    digest = hashlib.sha256()
    try:
        while piece := file.read(1 << 20):
            if copy.tell() + len(piece) > MAX_FILE_BYTES:
                raise UserError(f"model {path} grew beyond the limit of {MAX_FILE_BYTES} bytes while it was read")
            digest.update(piece)
            copy.write(piece)
    except OSError as error:
        raise UserError(f"cannot read model {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _read_info(path: Path, file: BinaryIO) -> ModelInfo:
    try:
        with zipfile.ZipFile(file) as archive:
            # torch stores weights as they are; what is packed could become a thousand times as large in memory
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_FILE_BYTES:
                raise UserError(f"it unpacks to {unpacked} bytes; the limit is {MAX_FILE_BYTES}")
            return ModelInfo.from_dict(_read_description(archive))
    except zipfile.BadZipFile:
        size = file.seek(0, 2)
        raise UserError(
            f"model {path} ({size} bytes) is truncated or not a model file (incomplete zip archive). Model files "
            "come from `sqsegv3 export` or `sqsegv3 import-official`"
        ) from None
    except UserError as error:
        raise UserError(f"model {path} cannot be used: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read model {path}: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise UserError(f"model {path} is damaged: {type(error).__name__}: {error}") from None


def _read_description(archive: zipfile.ZipFile) -> Any:
    names = [n for n in archive.namelist() if n.endswith(f"/extra/{INFO_FILE}")]
    if len(names) != 1:
        raise UserError(f"it has no {INFO_FILE}: it was not made by this package (`sqsegv3 export` makes model files)")
    if archive.getinfo(names[0]).file_size > MAX_INFO_BYTES:
        raise UserError(f"its {INFO_FILE} is larger than {MAX_INFO_BYTES} bytes")
    try:
        return json.loads(archive.read(names[0]))
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"its {INFO_FILE} is damaged ({error})") from error
