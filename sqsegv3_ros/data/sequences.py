# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI sequences with their stamps, poses and calibration, read and written.

KITTI stores the poses of its left camera relative to the first one (camera axes: right, down, forward), one row-major
3 x 4 matrix per line. Tr in calib.txt transforms points from the Velodyne's frame (forward, left, up) to the camera's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.ros2_messages import POINT, POINT_GROUND_TRUTH, POINT_RAW_LABEL, START_NS, structured_points
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import write_atomically

Matrices = npt.NDArray[np.float64]

RATE_HZ = 10.0  # of the data set's sensor, for sequences without times.txt
NOMINAL_TR = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""Tr of a camera at the Velodyne's position that looks along its x axis."""


@dataclass(frozen=True)
class Sequence:
    """The scans of one sequence in order.

    Attributes:
        scans: The files.
        stamps_ns: (N,) int64 time of each scan, nanoseconds, from START_NS on.
        poses: (N, 4, 4) float64 poses of the Velodyne in its first frame, metres; None if unknown.
        to_camera: (4, 4) Tr of KITTI.
    """

    scans: tuple[ScanFile, ...]
    stamps_ns: npt.NDArray[np.int64]
    poses: Matrices | None
    to_camera: Matrices

    @property
    def labelled(self) -> bool:
        """Whether there is ground truth for every scan."""
        return all(scan.labels_path.is_file() for scan in self.scans)


@dataclass(frozen=True)
class Contents:
    """What a converted sequence or bag holds.

    Attributes:
        scans: Number of scans, or of clouds.
        labels: Whether all of them have labels.
        poses: Whether all of them have poses.
    """

    scans: int
    labels: bool
    poses: bool

    def __str__(self) -> str:
        return f"{'with' if self.labels else 'without'} labels, {'with' if self.poses else 'without'} poses"


def read_sequence(root: str | Path, name: str | None = None) -> Sequence:
    """Read the stamps, poses and calibration of a sequence.

    Args:
        root: SemanticKITTI data set.
        name: The sequence; None for the only one of the data set.

    Raises:
        UserError: A file is missing or does not fit the scans, or there are several sequences and `name` is None.
    """
    scans = find_scans(root, None if name is None else [name])
    present = sorted({scan.sequence for scan in scans})
    if len(present) > 1:
        raise UserError(f"{root} has several sequences ({', '.join(present)}); choose one")
    folder = scans[0].path.parent.parent
    numbers = [int(scan.stem) if scan.stem.isdigit() else -1 for scan in scans]
    calibration = folder / "calib.txt"
    to_camera = read_tr(calibration) if calibration.is_file() else NOMINAL_TR
    poses = None
    if (folder / "poses.txt").is_file():
        rows = _read_rows(folder / "poses.txt", numbers, 12)
        camera = np.tile(np.eye(4), (len(rows), 1, 1))
        camera[:, :3] = rows.reshape(-1, 3, 4)
        poses = np.linalg.inv(to_camera) @ camera @ to_camera
    if (folder / "times.txt").is_file():
        seconds = _read_rows(folder / "times.txt", numbers, 1)[:, 0]
    else:
        seconds = np.arange(len(scans)) / RATE_HZ
    stamps = START_NS + np.round(seconds * 1e9).astype(np.int64)
    if (np.diff(stamps) <= 0).any():
        raise UserError(f"{folder / 'times.txt'}: times must increase from scan to scan")
    return Sequence(tuple(scans), stamps, poses, to_camera)


def read_tr(path: Path) -> Matrices:
    """Read Tr, (4, 4), from a calib.txt. Raises UserError if the file has none."""
    for line in _read_text(path).splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "Tr":
            matrix = np.eye(4)
            try:
                matrix[:3] = np.array([float(word) for word in numbers.split()]).reshape(3, 4)
                np.linalg.inv(matrix)
            except (ValueError, np.linalg.LinAlgError) as error:
                raise UserError(f"{path}: Tr must be an invertible matrix of 12 numbers ({error})") from error
            return matrix
    raise UserError(f"{path} has no line 'Tr:' (velodyne to camera)")


def read_structured_points(
    scan: ScanFile, labels: LabelSet = SEMANTIC_KITTI, *, ground_truth: bool, raw_label: bool = False
) -> npt.NDArray[Any]:
    """Read a scan as structured points.

    Args:
        scan: The scan.
        labels: Classes of the ground truth.
        ground_truth: Add the field ground_truth (class, uint8).
        raw_label: With `ground_truth`, add the field raw_label (uint32) as well.

    Returns:
        (N,) points with x, y, z (metres), intensity and the fields above.

    Raises:
        UserError: Labels are missing or do not fit the scan.
    """
    points = read_scan(scan.path)
    if not ground_truth:
        return structured_points(points, POINT)
    result = structured_points(points, POINT_RAW_LABEL if raw_label else POINT_GROUND_TRUTH)
    result["ground_truth"] = read_known_labels(scan.labels_path, len(points), labels)
    if raw_label:
        result["raw_label"] = read_labels(scan.labels_path)
    return result


def write_trajectory(
    folder: Path, stamps_ns: npt.NDArray[np.int64], poses: Matrices | None, to_camera: Matrices = NOMINAL_TR
) -> None:
    """Write times.txt and, with poses, poses.txt and calib.txt of a sequence, in KITTI's convention.

    Args:
        folder: Folder of the sequence.
        stamps_ns: (N,) time of each scan, nanoseconds.
        poses: (N, 4, 4) poses of the Velodyne in any fixed frame, metres; None if unknown.
        to_camera: (4, 4) Tr of KITTI.
    """
    times = "".join(f"{seconds:.9f}\n" for seconds in (stamps_ns - stamps_ns[0]) / 1e9)
    write_atomically(folder / "times.txt", times.encode())
    if poses is not None:
        camera = to_camera @ np.linalg.inv(poses[0]) @ poses @ np.linalg.inv(to_camera)
        write_atomically(folder / "poses.txt", "".join(_line(pose) + "\n" for pose in camera).encode())
        rows = [f"P{number}: {_line(np.eye(4))}\n" for number in range(4)] + [f"Tr: {_line(to_camera)}\n"]
        write_atomically(folder / "calib.txt", "".join(rows).encode())


def _line(matrix: Matrices) -> str:
    return " ".join(f"{value:.12e}" for value in matrix[:3].ravel())


def _read_rows(path: Path, numbers: list[int], width: int) -> Matrices:
    """Read the lines of the scans with these numbers, (scans, width) float64."""
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    if min(numbers) < 0 or max(numbers) >= len(lines):
        raise UserError(f"{path} has {len(lines)} lines, but the scans have numbers {min(numbers)} to {max(numbers)}")
    try:
        rows = np.array([[float(word) for word in lines[number]] for number in numbers])
        if rows.shape != (len(numbers), width) or not np.isfinite(rows).all():
            raise ValueError
    except ValueError:
        raise UserError(f"{path}: expected {width} numbers per line") from None
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
