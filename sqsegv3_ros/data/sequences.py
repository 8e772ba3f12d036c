"""A SemanticKITTI sequence comes in as what a driver publishes, stamped points and poses; and goes out as files again.

KITTI keeps poses of its left camera, relative to the first one's (camera axes: right, down, ahead), one row-major 3 x 4
matrix a line; calib.txt's Tr takes points from the velodyne's frame (ahead, left, up) into the camera's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_labels, read_scan
from sqsegv3_ros.errors import UserError

Matrices = npt.NDArray[np.float64]

TOPIC, FRAME, WORLD_FRAME, CAMERA_FRAME = "/velodyne_points", "velodyne", "map", "camera"
START_NS = 1_700_000_000 * 10**9  # of the first scan: any fixed time that is not near 0, which ROS reads as unset
RATE_HZ = 10.0  # of the data set's sensor, for sequences without times.txt
NOMINAL_TR = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
_XYZI = {name: ("<f4", 4 * i) for i, name in enumerate(("x", "y", "z", "intensity"))}


def _point_type(size: int, **fields: tuple[str, int]) -> np.dtype[Any]:
    named = {**_XYZI, **fields}
    formats, offsets = zip(*named.values(), strict=True)
    return np.dtype({"names": list(named), "formats": formats, "offsets": offsets, "itemsize": size})


POINT = _point_type(16)
POINT_TRUTH = _point_type(20, ground_truth=("u1", 16))
# raw_label: the data set's own word (raw id and instance), so that nothing is lost on the way
POINT_TRUTH_RAW = _point_type(24, raw_label=("<u4", 16), ground_truth=("u1", 20))


@dataclass(frozen=True)
class Sequence:
    """The scans of one sequence in order. stamps_ns: (N,) int64, when each was taken, from START_NS on.

    poses: (N, 4, 4) float64, the velodyne's in the frame of the sequence's first, metres; None where unknown.
    to_camera: (4, 4), KITTI's Tr.
    """

    scans: tuple[ScanFile, ...]
    stamps_ns: npt.NDArray[np.int64]
    poses: Matrices | None
    to_camera: Matrices

    @property
    def labelled(self) -> bool:
        """Whether there is ground truth for every scan."""
        return all(scan.labels_path.is_file() for scan in self.scans)


def read_sequence(root: str | Path, name: str | None = None) -> Sequence:
    """A sequence of a SemanticKITTI root; name None: the only one there is.

    Raises UserError naming the file where something is missing or does not fit the scans.
    """
    scans = find_scans(root, None if name is None else [name])
    present = sorted({scan.sequence for scan in scans})
    if len(present) > 1:
        raise UserError(f"{root} has several sequences ({', '.join(present)}); choose one")
    folder = scans[0].path.parent.parent
    numbers = [int(scan.stem) if scan.stem.isdigit() else -1 for scan in scans]
    calibrated = folder / "calib.txt"
    to_camera = read_tr(calibrated) if calibrated.is_file() else NOMINAL_TR
    poses = None
    if (folder / "poses.txt").is_file():
        rows = _rows_of(folder / "poses.txt", numbers, 12)
        camera = np.tile(np.eye(4), (len(rows), 1, 1))
        camera[:, :3] = rows.reshape(-1, 3, 4)
        poses = np.linalg.inv(to_camera) @ camera @ to_camera
    if (folder / "times.txt").is_file():
        seconds = _rows_of(folder / "times.txt", numbers, 1)[:, 0]
    else:
        seconds = np.arange(len(scans)) / RATE_HZ
    stamps = START_NS + np.round(seconds * 1e9).astype(np.int64)
    if (np.diff(stamps) <= 0).any():
        raise UserError(f"{folder / 'times.txt'}: times must ascend, scan by scan")
    return Sequence(tuple(scans), stamps, poses, to_camera)


def read_tr(path: Path) -> Matrices:
    """Tr of a calib.txt, (4, 4). Raises UserError where the file has none."""
    for line in _text(path).splitlines():
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


def structured_points(
    scan: ScanFile, labels: LabelSet = SEMANTIC_KITTI, *, truth: bool, raw: bool = False
) -> npt.NDArray[Any]:
    """A scan as structured points: x, y, z (metres), intensity and, with `truth`, ground_truth (the class, uint8).

    raw: raw_label (uint32) as well. Raises UserError naming the file where labels are missing or do not fit.
    """
    points = read_scan(scan.path)
    result = np.zeros(len(points), POINT_TRUTH_RAW if raw and truth else POINT_TRUTH if truth else POINT)
    for column, name in enumerate(_XYZI):
        result[name] = points[:, column]
    if truth:
        result["ground_truth"] = read_known_labels(scan.labels_path, len(points), labels)
        if raw:
            result["raw_label"] = read_labels(scan.labels_path)
    return result


def sequence_texts(stamps_ns: npt.NDArray[np.int64], poses: Matrices | None, to_camera: Matrices) -> dict[str, str]:
    """The text files of a sequence: times.txt and, with poses ((N, 4, 4), the velodyne's in any fixed frame), poses.txt
    and calib.txt, in KITTI's convention."""
    texts = {"times.txt": "".join(f"{seconds:.9f}\n" for seconds in (stamps_ns - stamps_ns[0]) / 1e9)}
    if poses is not None:
        camera = to_camera @ np.linalg.inv(poses[0]) @ poses @ np.linalg.inv(to_camera)
        texts["poses.txt"] = "".join(_line(pose) + "\n" for pose in camera)
        rows = [f"P{camera_number}: {_line(np.eye(4))}" for camera_number in range(4)] + [f"Tr: {_line(to_camera)}"]
        texts["calib.txt"] = "\n".join(rows) + "\n"
    return texts


def quaternion(rotation: Matrices) -> tuple[float, float, float, float]:
    """(3, 3) rotation -> x, y, z, w with w >= 0: the eigenvector of Bar-Itzhack's symmetric matrix, which is stable for
    every angle and takes the nearest rotation where the matrix is not quite one."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r.trace()],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    sign = -1.0 if w < 0 else 1.0
    return float(sign * x), float(sign * y), float(sign * z), float(sign * w)


def transform_matrix(translation: tuple[float, float, float], rotation: tuple[float, float, float, float]) -> Matrices:
    """(4, 4) of a translation (metres) and a quaternion x, y, z, w of any length but 0."""
    x, y, z, w = np.array(rotation) / np.linalg.norm(rotation)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


def _line(matrix: Matrices) -> str:
    return " ".join(f"{value:.12e}" for value in matrix[:3].ravel())


def _rows_of(path: Path, numbers: list[int], width: int) -> Matrices:
    """The lines of a file that belong to the scans: line N to the scan with number N. (scans, width) float64."""
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    if min(numbers) < 0 or max(numbers) >= len(lines):
        raise UserError(f"{path} has {len(lines)} lines, but the scans have numbers {min(numbers)} to {max(numbers)}")
    try:
        rows = np.array([[float(word) for word in lines[number]] for number in numbers])
        if rows.shape != (len(numbers), width) or not np.isfinite(rows).all():
            raise ValueError
    except ValueError:
        raise UserError(f"{path}: expected {width} numbers in every line") from None
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
