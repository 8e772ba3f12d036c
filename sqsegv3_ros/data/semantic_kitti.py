# SPDX-License-Identifier: Apache-2.0
"""Files of SemanticKITTI: scans (.bin), labels (.label) and their sequence folders."""

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
    """Read a .bin file.

    Returns:
        (N, 4) float32: x, y, z in metres in the sensor frame, remission as stored.

    Raises:
        UserError: The file cannot be read, or its size is not a whole number of points.
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
    """Read a .label file.

    Args:
        path: The file.
        count: Expected number of labels; None for any.

    Returns:
        (N,) uint32: raw id in the lower 16 bits, instance in the upper 16 bits.

    Raises:
        UserError: The file cannot be read, or has another number of labels.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read labels {path}: {error.strerror or error}") from error
    if len(data) % 4:
        raise UserError(f"{path}: {len(data)} bytes is not a whole number of labels (4 bytes each, uint32)")
    raw = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    if count is not None and len(raw) != count:
        raise UserError(f"{path}: {len(raw)} labels, but the scan has {count} points")
    return raw


def read_known_labels(path: str | Path, count: int, labels: LabelSet) -> npt.NDArray[Any]:
    """Read a .label file as (N,) labels of a label set.

    Raises:
        UserError: The file cannot be read, has not `count` labels, or has an id that is not in the label set.
    """
    raw = read_labels(path, count)
    unknown = labels.unknown_ids(raw)
    if unknown:
        listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise UserError(
            f"{path}: ids {listed} are not in label set '{labels.name}'; .label files contain the data set's raw ids: "
            "another data set needs its own label configuration (YAML)"
        )
    return labels.to_labels(raw)


def write_labels(path: str | Path, raw: npt.NDArray[Any]) -> None:
    """Write (N,) raw ids as a .label file (uint32, little-endian), atomically."""
    write_atomically(path, np.ascontiguousarray(raw, dtype="<u4").tobytes())


def write_scan(path: str | Path, points: npt.NDArray[Any]) -> None:
    """Write (N, 4) x, y, z, remission as a .bin file (float32, little-endian), atomically."""
    write_atomically(path, np.ascontiguousarray(points, dtype="<f4").tobytes())


@dataclass(frozen=True)
class ScanFile:
    """A scan of a data set.

    Attributes:
        sequence: Its sequence, such as '00'.
        stem: Its file name without suffix, such as '000000'.
        path: The .bin file.
    """

    sequence: str
    stem: str
    path: Path

    @property
    def labels_path(self) -> Path:
        """The .label file with the scan's ground truth."""
        return self.path.parent.parent / "labels" / f"{self.stem}.label"

    def prediction_path(self, root: str | Path) -> Path:
        """Return the .label file of the scan's predictions in a predictions folder."""
        return Path(root) / "sequences" / self.sequence / "predictions" / f"{self.stem}.label"


def is_dataset(root: str | Path) -> bool:
    """Return whether a folder has SemanticKITTI's layout (`sequences/NN/velodyne`)."""
    return any(Path(root).glob("sequences/*/velodyne"))


def find_scans(root: str | Path, sequences: Sequence[str] | None = None) -> list[ScanFile]:
    """List the scans of a SemanticKITTI data set, sorted by sequence and name.

    Args:
        root: SemanticKITTI data set.
        sequences: Sequences ('00', '01'; one digit is padded); None for all.

    Raises:
        UserError: The folder does not exist or is not a SemanticKITTI data set, or a sequence is missing or empty.
    """
    if not Path(root).exists():
        raise UserError(f"{root} does not exist; expected a SemanticKITTI data set")
    base = Path(root) / "sequences"
    if not base.is_dir():
        raise UserError(f"{root} is not a SemanticKITTI data set: it has no folder 'sequences'")
    present = sorted(p.parent.name for p in base.glob("*/velodyne"))
    selected = present if sequences is None else list(dict.fromkeys(str(s).zfill(2) for s in sequences))
    if not selected:
        raise UserError(f"{root} is not a SemanticKITTI data set: it has no folder sequences/NN/velodyne")
    scans: list[ScanFile] = []
    for sequence in selected:
        if sequence not in present:
            raise UserError(f"{root} has no sequence '{sequence}' (sequences: {', '.join(present) or 'none'})")
        files = sorted((base / sequence / "velodyne").glob("*.bin"))
        if not files:
            raise UserError(f"{base / sequence / 'velodyne'} has no .bin files")
        scans.extend(ScanFile(sequence, file.stem, file) for file in files)
    return scans
