# SPDX-License-Identifier: Apache-2.0
"""Compressed labelled scans (.npz) as SemanticKITTI sequences.

A file holds one scan: `dxyz`, (3, N) int16, differences from point to point in steps of 5 mm; `rem`, (N,) uint8; and
labels, one per point: `label` or `box_label` with the data set's raw ids, the latter inside boxes only; `teacher`, the
class that a model gave, and `teacher_confidence`, sixteenths of its probability.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.data.sequences import Contents
from sqsegv3_ros.errors import UserError, require
from sqsegv3_ros.files import atomic_output, progress, refuse_existing

STEP_M = 0.005
CELL_M = 0.4  # objects whose points have a wider gap between them are two
_NEIGHBOURS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]


@dataclass(frozen=True)
class CompressedImport:
    """How compressed scans become scans of a sequence.

    Attributes:
        remission_scale: The remission is scale * rem ** exponent.
        remission_exponent: See there.
        least_confidence: A teacher's label of less confidence, 0..15, becomes 'unlabeled'.
        objects: Raw ids whose connected groups of points become instances.
    """

    remission_scale: float = 0.01
    remission_exponent: float = 1.0
    least_confidence: int = 0
    objects: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.least_confidence <= 15, "teacher's confidence", "in 0..15", self.least_confidence)


def compressed_to_sequence(
    files: Sequence[Path], root: Path, name: str, settings: CompressedImport, *, force: bool = False
) -> Contents:
    """Write compressed scans as a sequence.

    Args:
        files: The .npz files.
        root: SemanticKITTI data set to write to.
        name: The sequence to write, two digits.
        settings: How to read the files.
        force: Overwrite an existing sequence.

    Returns:
        What the sequence holds.

    Raises:
        UserError: A file cannot be used, or the sequence exists or cannot be written. It is left as it was then.
    """
    sequence = root / "sequences" / name
    refuse_existing(sequence, force)
    with atomic_output(sequence) as draft:
        for number, file in enumerate(progress(files, len(files), "scan")):
            points, raw = read_compressed(file, settings)
            write_scan(draft / "velodyne" / f"{number:06d}.bin", points)
            write_labels(draft / "labels" / f"{number:06d}.label", raw)
    return Contents(len(files), labels=True, poses=False)


def read_compressed(path: Path, settings: CompressedImport) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Read a compressed scan.

    Args:
        path: The .npz file.
        settings: How to read it.

    Returns:
        (N, 4) x, y, z in metres, remission; and (N,) raw ids with instances in the upper 16 bits. Points in the origin
        are left out.

    Raises:
        UserError: The file is damaged or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
        xyz = np.cumsum(data["dxyz"], axis=1, dtype=np.int16).T * np.float32(STEP_M)
        remission = settings.remission_scale * data["rem"].astype(np.float32) ** settings.remission_exponent
        raw = _raw_ids(data, settings)
        points = np.concatenate((xyz, remission[:, None]), axis=1).astype(np.float32)
        valid = np.any(xyz != 0, axis=1) & (raw >= 0)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a compressed scan (dxyz, rem, labels): {error}") from error
    points, raw = points[valid], raw[valid]
    return points, (raw | instances(points, raw, settings.objects) << 16).astype(np.uint32)


def _raw_ids(data: dict[str, npt.NDArray[np.integer]], settings: CompressedImport) -> npt.NDArray[np.int64]:
    if "teacher" not in data:
        return np.asarray(data["label"] if "label" in data else data["box_label"]).astype(np.int64) & 0xFFFF
    sure = data["teacher_confidence"] >= settings.least_confidence
    teacher = SEMANTIC_KITTI.to_raw(np.where(sure, data["teacher"], 0)).astype(np.int64)
    boxes = data["box_label"].astype(np.int64)
    return np.where(boxes > 0, boxes, teacher)


def instances(
    points: npt.NDArray[np.float32], raw: npt.NDArray[np.int64], objects: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Number the connected groups of points of each object class.

    Points are connected if their cells of a horizontal grid touch.

    Args:
        points: (N, 4).
        raw: (N,) raw ids.
        objects: Raw ids of object classes.

    Returns:
        (N,) instances from 1 on; 0 for points of other classes.
    """
    result = np.zeros(len(points), np.int64)
    count = 0
    for raw_id in objects:
        of_class = np.flatnonzero(raw == raw_id)
        cells, cell_of = np.unique(np.floor(points[of_class, :2] / CELL_M).astype(int), axis=0, return_inverse=True)
        group: dict[tuple[int, int], int] = {}
        occupied = {(int(x), int(y)) for x, y in cells}
        for cell in sorted(occupied):
            if cell in group:
                continue
            count += 1
            group[cell], queue = count, [cell]
            while queue:
                x, y = queue.pop()
                new = [
                    (x + i, y + j) for i, j in _NEIGHBOURS if (x + i, y + j) in occupied and (x + i, y + j) not in group
                ]
                group.update(dict.fromkeys(new, count))
                queue += new
        numbers = np.array([group[int(x), int(y)] for x, y in cells], np.int64)
        if len(of_class):
            result[of_class] = numbers[cell_of.ravel()]
    return result
