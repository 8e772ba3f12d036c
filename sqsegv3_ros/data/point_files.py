# SPDX-License-Identifier: Apache-2.0
"""Point-cloud files of all formats: `find_point_files` lists those of an input, `read_clouds` reads one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data import point_readers
from sqsegv3_ros.data.point_readers import Fields
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2.decode import INTENSITY_FIELDS, RING_NAMES

READERS = {
    "kitti": point_readers.read_kitti,
    "nuscenes": point_readers.read_nuscenes,
    "pcd": point_readers.read_pcd,
    "ply": point_readers.read_ply,
    "npy": point_readers.read_npy,
    "las": point_readers.read_las,
    "ouster": point_readers.read_ouster,
}
RECORDINGS = ("ouster",)  # formats with many clouds in a file
# the first suffix that fits a name decides
FORMAT_BY_SUFFIX = {
    ".pcd.bin": "nuscenes",
    ".bin": "kitti",
    ".pcd": "pcd",
    ".ply": "ply",
    ".npy": "npy",
    ".las": "las",
    ".laz": "las",
    ".pcap": "ouster",
    ".osf": "ouster",
}
SUFFIXES = ", ".join(suffix for suffix in FORMAT_BY_SUFFIX if suffix != ".pcd.bin")
GROUND_TRUTH = "ground_truth"
_FARTHEST_M = 1000.0  # no LiDAR of a robot measures half of its points beyond


@dataclass(frozen=True)
class PointFile:
    """A point-cloud file.

    Attributes:
        path: The file.
        format: One of READERS.
        name: Its path below the folder it was found in, without suffix.
    """

    path: Path
    format: str
    name: str

    @property
    def has_many_clouds(self) -> bool:
        """Whether this is a recording and not a single cloud."""
        return self.format in RECORDINGS


@dataclass(frozen=True, eq=False)
class FileCloud:
    """A cloud of a file.

    Attributes:
        file: The file.
        name: Name of the file; with `/000000` and so on for the clouds of a recording.
        points: (N, 4) float32: x, y, z in metres in the sensor frame, intensity as stored.
        rings: (N,) int32 ring numbers; None if the file has none.
        ground_truth: (N,) true classes, from a field of this name; None if the file has none.
    """

    file: PointFile
    name: str
    points: npt.NDArray[np.float32]
    rings: npt.NDArray[np.int32] | None
    ground_truth: npt.NDArray[Any] | None

    @property
    def labels_path(self) -> Path:
        """The .label file with the ground truth: beside the file, or in KITTI's folder `labels`."""
        folder = self.file.path.absolute().parent
        return (folder.parent / "labels" if folder.name == "velodyne" else folder) / f"{self._stem}.label"

    def prediction_path(self, root: str | Path) -> Path:
        """Return the .label file with predictions: in KITTI's layout for a scan in a folder `velodyne`."""
        folder = self.file.path.absolute().parent
        if folder.name == "velodyne":
            return Path(root) / "sequences" / folder.parent.name / "predictions" / f"{self._stem}.label"
        return Path(root) / f"{self.name}.label"

    @property
    def _stem(self) -> str:
        """Its name without the folders of the file."""
        return Path(self.file.name).name + self.name.removeprefix(self.file.name)


def file_stem(name: str) -> str:
    """Return the name of a point-cloud file without its suffix."""
    return name[: len(name) - len(_suffix(Path(name)) or Path(name).suffix)]


def is_point_file(path: Path) -> bool:
    """Whether a path has the suffix of a point-cloud file."""
    return not path.is_dir() and _suffix(path) is not None


def find_point_files(path: Path, file_format: str | None = None) -> list[PointFile]:
    """List the point-cloud files of an input.

    Args:
        path: A file, or a folder that is searched with all folders below it, without hidden ones.
        file_format: One of READERS; None to tell by the suffix. In a folder, only files of this format are listed.

    Returns:
        The files, sorted by path.

    Raises:
        UserError: There is no such file, its format is unknown, or a folder has none.
    """
    if path.is_dir():
        files = [found for child in sorted(path.rglob("*")) if (found := _in_folder(child, path, file_format))]
        if not files:
            raise UserError(
                f"{path} has no {f'{file_format} files' if file_format else f'point-cloud files ({SUFFIXES})'}"
            )
        return files
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a point-cloud file ({SUFFIXES}) or a folder of them")
    suffix = _suffix(path)
    if file_format is None and suffix is None:
        raise UserError(f"{path}: expected a point-cloud file ({SUFFIXES}), or --format ({', '.join(READERS)})")
    return [PointFile(path, file_format or FORMAT_BY_SUFFIX[suffix or ""], file_stem(path.name))]


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in FORMAT_BY_SUFFIX if name.endswith(suffix)), None)


def _in_folder(path: Path, folder: Path, file_format: str | None) -> PointFile | None:
    relative = path.relative_to(folder)
    suffix = _suffix(path)
    if suffix is None or not path.is_file() or any(part.startswith(".") for part in relative.parts):
        return None
    detected = FORMAT_BY_SUFFIX[suffix]
    if file_format == "nuscenes" and detected == "kitti":  # the sweeps of nuScenes may have either suffix
        detected = file_format
    if file_format not in (None, detected):
        return None
    return PointFile(path, detected, file_stem(str(relative)))


def read_clouds(file: PointFile, intensity_fields: tuple[str, ...] = INTENSITY_FIELDS) -> Iterator[FileCloud]:
    """Read the clouds of a file: one, or all scans of a recording.

    Args:
        file: The file.
        intensity_fields: Names of the intensity's field; the first that the file has is read. () for none: 0.

    Yields:
        The clouds in order.

    Raises:
        UserError: The file is truncated, damaged or of another format, or lacks a field; the message names it.
    """
    number = 0
    for fields in _read(file):
        name = f"{file.name}/{number:06d}" if file.has_many_clouds else file.name
        yield _cloud(file, name, fields, intensity_fields)
        number += 1
    if not number:
        raise UserError(f"{file.path} has no complete scan; it may be truncated")


def _read(file: PointFile) -> Iterator[Fields]:
    with _errors_name_the_file(file):
        if file.path.stat().st_size == 0 and file.format not in ("kitti", "nuscenes"):
            raise ValueError("it is empty")
    clouds = READERS[file.format](file.path)
    while True:
        with _errors_name_the_file(file):
            fields = next(clouds, None)
        if fields is None:
            return
        yield fields


@contextmanager
def _errors_name_the_file(file: PointFile) -> Iterator[None]:
    """Attribute any error to the file: the libraries raise errors of all kinds on damaged bytes."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error.strerror or error}") from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = "; ".join(lines[:2]).rstrip(".") or type(error).__name__
        raise UserError(
            f"{file.path} cannot be read as {file.format}: {reason}. It may be truncated or of another format "
            f"(--format {', '.join(READERS)})"
        ) from error


def _cloud(file: PointFile, name: str, fields: Fields, intensity_fields: tuple[str, ...]) -> FileCloud:
    path = file.path
    available = ", ".join(fields) or "none"
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise UserError(f"{path} has no field '{missing[0]}' (fields: {available}); expected x, y and z")
    intensity = next((candidate for candidate in intensity_fields if candidate in fields), None)
    if intensity_fields and intensity is None:
        raise UserError(
            f"{path} has no field {' or '.join(map(repr, intensity_fields))} (fields: {available}); name the intensity "
            "with --intensity-field, or pass --intensity-field '' to use 0 for every point"
        )
    points = np.zeros((len(fields["x"]), 4), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, field in enumerate(("x", "y", "z", intensity)):
            if field:
                points[:, column] = fields[field]
        ring = next((fields[candidate] for candidate in RING_NAMES if candidate in fields), None)
        rings = None if ring is None else ring.astype(np.int32)
    _require_sensor_frame(path, points)
    return FileCloud(file, name, points, rings, fields.get(GROUND_TRUTH))


def _require_sensor_frame(path: Path, points: npt.NDArray[np.float32]) -> None:
    """Refuse coordinates of a map, and millimetres: the projection is around the sensor, in metres."""
    distance = np.linalg.norm(points[:, :3], axis=1)
    usable = distance[np.isfinite(distance) & (distance > 0)]
    if len(usable) and (median := float(np.median(usable))) > _FARTHEST_M:
        raise UserError(
            f"{path}: half of the points are more than {median:,.0f} m from the origin; expected metres in the "
            "sensor frame. Subtract the sensor's position from map coordinates, or convert the unit"
        )
