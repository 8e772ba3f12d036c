# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a folder of predictions for a SemanticKITTI data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.files import progress


def evaluate_dataset(
    root: str | Path,
    predictions: str | Path,
    labels: LabelSet,
    sequences: Sequence[str] | None = None,
    border: BorderConfig | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate predictions on every point of every scan of a data set.

    Args:
        root: Folder with sequences/NN/{velodyne,labels}.
        predictions: Folder with sequences/NN/predictions/<stem>.label, raw ids.
        labels: Label set.
        sequences: Sequences to evaluate; None for all.
        border: Also evaluate the points near borders between classes.
        limit: Evaluate only the first scans.

    Returns:
        The summary of `Evaluator`, plus 'dataset', 'predictions', 'sequences' and 'limit'.

    Raises:
        UserError: A file is missing or belongs to no scan, labels do not match the points, or an id is not in the label
            set; the message names the file.
    """
    scans = find_pairs(root, predictions, sequences)[:limit]
    evaluator = Evaluator(labels, border)
    for scan in progress(scans, len(scans), "scan"):
        evaluator.add(scan_name(scan), *read_pair(scan, predictions, labels))
    origin = {
        "dataset": str(Path(root).resolve()),
        "predictions": str(Path(predictions).resolve()),
        "sequences": sorted({scan.sequence for scan in scans}),
        "limit": limit,
    }
    return origin | evaluator.summary()


def scan_name(scan: ScanFile) -> str:
    """Name a scan as summaries do: '00/000000'."""
    return f"{scan.sequence}/{scan.stem}"


def find_pairs(root: str | Path, predictions: str | Path, sequences: Sequence[str] | None) -> list[ScanFile]:
    """Find the scans of a data set, and check that each has ground truth and a prediction, and each prediction a scan.

    Raises:
        UserError: A file is missing or left over; the message names the first.
    """
    scans = find_scans(root, sequences)
    if not Path(predictions).is_dir():
        raise UserError(f"no predictions folder {predictions}")
    for sequence in sorted({scan.sequence for scan in scans}):
        of_sequence = [scan for scan in scans if scan.sequence == sequence]
        truth, predicted = of_sequence[0].labels_path.parent, of_sequence[0].prediction_path(predictions).parent
        if not truth.is_dir():
            raise UserError(f"sequence {sequence} has no ground truth: no folder {truth}")
        if not predicted.is_dir():
            raise UserError(f"sequence {sequence} has no predictions: no folder {predicted}")
        _require_files("ground truth", [scan.labels_path for scan in of_sequence])
        _require_files("prediction", [scan.prediction_path(predictions) for scan in of_sequence])
        stems = {scan.stem for scan in of_sequence}
        left_over = [path for path in sorted(predicted.glob("*.label")) if path.stem not in stems]
        if left_over:
            raise UserError(
                f"{left_over[0]}: no scan of that name in {of_sequence[0].path.parent} "
                f"({len(left_over)} such files); these predictions do not belong to this data set"
            )
    return scans


def read_pair(
    scan: ScanFile, predictions: str | Path, labels: LabelSet
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any]]:
    """Read a scan's points (N, 4), its predicted labels and its true labels, (N,) each.

    Raises:
        UserError: A file cannot be used; the message names it.
    """
    points = read_scan(scan.path)
    prediction = read_known_labels(scan.prediction_path(predictions), len(points), labels)
    return points, prediction, read_known_labels(scan.labels_path, len(points), labels)


def _require_files(kind: str, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{kind} {missing[0]} is missing ({len(missing)} of {len(paths)} in that folder are)")
