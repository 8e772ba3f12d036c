"""A SemanticKITTI root and a folder of predictions go in, the summary of the evaluation comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.evaluator import BorderConfig, Evaluator


def evaluate_dataset(
    root: str | Path,
    predictions: str | Path,
    labels: LabelSet,
    sequences: Sequence[str] | None = None,
    border: BorderConfig | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the predictions for a data set, every point of every scan.

    root: sequences/NN/{velodyne,labels}. predictions: sequences/NN/predictions/<stem>.label, raw ids. sequences: which
    ones, None for all. limit: only the first scans. progress: called with (done, all) after every scan.
    Returns the summary of `Evaluator` with 'dataset', 'predictions' and 'sequences' (where it came from) added.
    Raises UserError naming the file: one that is missing, one that fits no scan, labels that do not match the points,
    an id that the label set does not know.
    """
    scans = find_pairs(root, predictions, sequences)[:limit]
    evaluator = Evaluator(labels, border)
    for done, scan in enumerate(scans, start=1):
        points, prediction, ground_truth = read_pair(scan, predictions, labels)
        evaluator.add(scan_name(scan), points, prediction, ground_truth)
        if progress is not None:
            progress(done, len(scans))
    origin = {
        "dataset": str(Path(root).resolve()),
        "predictions": str(Path(predictions).resolve()),
        "sequences": sorted({scan.sequence for scan in scans}),
        "limit": limit,
    }
    return origin | evaluator.summary()


def scan_name(scan: ScanFile) -> str:
    """What summaries call a scan: '00/000000'."""
    return f"{scan.sequence}/{scan.stem}"


def find_pairs(root: str | Path, predictions: str | Path, sequences: Sequence[str] | None) -> list[ScanFile]:
    """The scans of a data set, each of which has ground truth and a prediction, as every prediction has a scan.

    Raises UserError naming the first file that is missing or left over, before anything is computed.
    """
    scans = find_scans(root, sequences)
    if not Path(predictions).is_dir():
        raise UserError(f"no folder of predictions {predictions}")
    for sequence in sorted({scan.sequence for scan in scans}):
        of_sequence = [scan for scan in scans if scan.sequence == sequence]
        truth, predicted = of_sequence[0].labels_path.parent, of_sequence[0].prediction_path(predictions).parent
        if not truth.is_dir():
            raise UserError(f"sequence {sequence} has no ground truth to evaluate by: no folder {truth}")
        if not predicted.is_dir():
            raise UserError(f"sequence {sequence} has no predictions: no folder {predicted}")
        _require("ground truth", [scan.labels_path for scan in of_sequence])
        _require("prediction", [scan.prediction_path(predictions) for scan in of_sequence])
        stems = {scan.stem for scan in of_sequence}
        left_over = [path for path in sorted(predicted.glob("*.label")) if path.stem not in stems]
        if left_over:
            raise UserError(
                f"{left_over[0]}: no scan of that name in {of_sequence[0].path.parent} "
                f"({len(left_over)} such files); predictions and data set do not belong together"
            )
    return scans


def read_pair(
    scan: ScanFile, predictions: str | Path, labels: LabelSet
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any]]:
    """A scan's points (N, 4), its predicted and its true labels, (N,) each. Raises UserError naming a file at fault."""
    points = read_scan(scan.path)
    prediction = read_known_labels(scan.prediction_path(predictions), len(points), labels)
    return points, prediction, read_known_labels(scan.labels_path, len(points), labels)


def _require(what: str, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{what} {missing[0]} is missing ({len(missing)} of {len(paths)} in that folder are)")
