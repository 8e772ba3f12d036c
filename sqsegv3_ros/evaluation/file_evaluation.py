# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predictions for point-cloud files of any format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqsegv3_ros.data.label_map import FoldedLabels
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.point_files import FileCloud, find_point_files, read_clouds
from sqsegv3_ros.data.semantic_kitti import read_known_labels
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.files import progress


def evaluate_files(
    dataset: str | Path,
    predictions: str | Path,
    labels: LabelSet,
    file_format: str | None = None,
    border: BorderConfig | None = None,
    limit: int | None = None,
    label_map: FoldedLabels | None = None,
) -> dict[str, Any]:
    """Evaluate predictions on every point of point-cloud files.

    Args:
        dataset: A file, or a folder of files. The ground truth is their field ground_truth (classes), or a .label file
            of the same name beside each (raw ids).
        predictions: Folder with a .label file for each cloud (raw ids), as `sqsegv3 label` writes it.
        labels: Label set.
        file_format: Format of the files; None to tell by the suffix.
        border: Also evaluate the points near borders between classes.
        limit: Evaluate only the first clouds.
        label_map: The label map, applied to `labels`, whose classes are evaluated.

    Returns:
        The summary of `Evaluator`, plus 'dataset', 'predictions' and 'limit'.

    Raises:
        UserError: A file cannot be read, has no ground truth or no prediction, or a prediction belongs to no cloud.
    """
    if not Path(predictions).is_dir():
        raise UserError(f"no predictions folder {predictions}")
    labels = labels if label_map is None else label_map.labels
    evaluator = Evaluator(labels, border)
    read: set[Path] = set()
    for number, cloud in enumerate(_clouds(Path(dataset), file_format)):
        if number == limit:
            break
        count, predicted = len(cloud.points), cloud.prediction_path(predictions)
        truth = cloud.ground_truth
        if truth is None:
            truth = read_known_labels(cloud.labels_path, count, labels)
        elif label_map is not None:
            truth = label_map.fold(truth)
        evaluator.add(cloud.name, cloud.points, read_known_labels(predicted, count, labels), truth)
        read.add(predicted)
    left_over = sorted(set(Path(predictions).rglob("*.label")) - read)
    if left_over and limit is None:
        raise UserError(
            f"{left_over[0]}: no cloud of that name in {dataset} ({len(left_over)} such files); these predictions "
            "do not belong to these files"
        )
    origin = {"dataset": str(Path(dataset).resolve()), "predictions": str(Path(predictions).resolve()), "limit": limit}
    return origin | evaluator.summary()


def _clouds(dataset: Path, file_format: str | None) -> Iterator[FileCloud]:
    files = find_point_files(dataset, file_format)
    for file in progress(files, len(files), "file"):
        yield from read_clouds(file, intensity_fields=())
