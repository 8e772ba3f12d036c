"""SemanticKITTI's files: scans (.bin), labels (.label) and the sequence folders that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import write_atomically

POINT_BYTES = 16  # x, y, z, remission as float32, little-endian


def read_scan(path: str | Path) -> npt.NDArray[np.float32]:
    """A .bin file -> (N, 4) float32: x, y, z in metres in the sensor frame, remission as stored.

    Raises UserError where the file cannot be read or is no whole number of points.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read scan {path}: {error.strerror or error}") from error
    if len(data) % POINT_BYTES:
        raise UserError(
            f"{path}: {len(data)} bytes is not a whole number of points (16 bytes each: x, y, z, remission as float32)"
        )
    return np.frombuffer(data, dtype="<f4").reshape(-1, 4).astype(np.float32)


def read_labels(path: str | Path, count: int | None = None) -> npt.NDArray[np.uint32]:
    """A .label file -> (N,) uint32 words: lower 16 bits the raw id, upper 16 bits the instance.

    count: the number of points it must have. Raises UserError where it differs or the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read labels {path}: {error.strerror or error}") from error
    if len(data) % 4:
        raise UserError(f"{path}: {len(data)} bytes is not a whole number of labels (4 bytes each, uint32)")
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    if count is not None and len(words) != count:
        raise UserError(f"{path}: {len(words)} labels, but the scan has {count} points")
    return words


def read_known_labels(path: str | Path, count: int, labels: LabelSet) -> npt.NDArray[Any]:
    """A .label file -> (N,) labels of the set. Raises UserError where it does not fit, or an id has no class in it."""
    raw = read_labels(path, count)
    unknown = labels.unknown_ids(raw)
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise UserError(
            f"{path}: ids {shown} are not in label set '{labels.name}'; .label files hold the data set's raw ids, and "
            "another data set needs its own label configuration (YAML)"
        )
    return labels.to_labels(raw)


def write_labels(path: str | Path, raw: npt.NDArray[Any]) -> None:
    """(N,) raw ids -> a .label file (uint32 little-endian), whole or not at all."""
    write_atomically(path, np.ascontiguousarray(raw, dtype="<u4").tobytes())


def write_scan(path: str | Path, points: npt.NDArray[Any]) -> None:
    """(N, 4) x, y, z, remission -> a .bin file (float32 little-endian), whole or not at all."""
    write_atomically(path, np.ascontiguousarray(points, dtype="<f4").tobytes())


@dataclass(frozen=True)
class ScanFile:
    """One scan of a data set: its sequence ('00'), its stem ('000000') and where its points lie."""

    sequence: str
    stem: str
    path: Path

    @property
    def labels_path(self) -> Path:
        """Where the data set keeps the scan's ground truth."""
        return self.path.parent.parent / "labels" / f"{self.stem}.label"

    def prediction_path(self, root: str | Path) -> Path:
        """Where predictions for the scan lie below a predictions folder."""
        return Path(root) / "sequences" / self.sequence / "predictions" / f"{self.stem}.label"


def is_dataset(root: str | Path) -> bool:
    """Whether a folder has SemanticKITTI's layout (`sequences/NN/velodyne`)."""
    return any(Path(root).glob("sequences/*/velodyne"))


def find_scans(root: str | Path, sequences: Sequence[str] | None = None) -> list[ScanFile]:
    """The scans of a SemanticKITTI root, in order of sequence and name.

    sequences: which ones ('00', '01'; one digit is padded); None for all there are.
    Raises UserError naming a sequence that is missing or empty, and those that are there.
    """
    base = Path(root) / "sequences"
    if not base.is_dir():
        raise UserError(f"{root} is no SemanticKITTI root: it has no folder 'sequences'")
    present = sorted(p.parent.name for p in base.glob("*/velodyne"))
    wanted = present if sequences is None else list(dict.fromkeys(str(s).zfill(2) for s in sequences))
    if not wanted:
        raise UserError(f"{root}: no folder sequences/NN/velodyne below it")
    scans: list[ScanFile] = []
    for sequence in wanted:
        if sequence not in present:
            raise UserError(f"{root} has no sequence '{sequence}' (sequences: {', '.join(present) or 'none'})")
        files = sorted((base / sequence / "velodyne").glob("*.bin"))
        if not files:
            raise UserError(f"{base / sequence / 'velodyne'} holds no .bin file")
        scans.extend(ScanFile(sequence, file.stem, file) for file in files)
    return scans
