# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predictions, scan by scan, and its summary.

The summary consists of plain JSON types; docs/evaluation.md describes its keys. Data sets, bags and the live evaluation
share it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_map import FoldedLabels
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import BorderConfig, points_at_border
from sqsegv3_ros.evaluation.metrics import BAND_EDGES_M, ConfusionMatrix, range_bands
from sqsegv3_ros.evaluation.summary import FORMAT, FORMAT_VERSION
from sqsegv3_ros.pointcloud2 import CloudSettings, PointCloudLike, decode, read_field

_XYZ_ONLY = CloudSettings(intensity_fields=(), ring_field="")


class Evaluator:
    """Counts predictions against ground truth, scan by scan; its memory grows by a few numbers per scan.

    Args:
        labels: Label set of predictions and ground truth.
        border: Also evaluate the points near borders between classes.

    Raises:
        UserError: Two classes have the same name.
    """

    def __init__(self, labels: LabelSet, border: BorderConfig | None = None) -> None:
        if len(set(labels.names)) < len(labels):
            raise UserError(f"label set '{labels.name}' has two classes of the same name: {', '.join(labels.names)}")
        self.labels = labels
        self.border = border
        self._by_band = [ConfusionMatrix(labels) for _ in range(len(BAND_EDGES_M) + 1)]
        self._at_border = ConfusionMatrix(labels)
        self._scans: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        points: npt.NDArray[np.float32],
        prediction: npt.NDArray[Any],
        ground_truth: npt.NDArray[Any],
    ) -> None:
        """Count one scan.

        Args:
            name: Name of the scan in the summary ('00/000000').
            points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
            prediction: (N,) predicted labels.
            ground_truth: (N,) true labels.

        Raises:
            UserError: The arrays do not fit; the message names the scan.
        """
        matrix = ConfusionMatrix(self.labels)
        try:
            matrix.add(prediction, ground_truth)
            if len(points) != len(prediction):
                raise UserError(f"{len(prediction)} labels, but {len(points)} points")
        except UserError as error:
            raise UserError(f"scan {name}: {error}") from error
        bands = range_bands(np.linalg.norm(points[:, :3], axis=1))
        for band, of_band in enumerate(self._by_band):
            of_band.add(prediction[bands == band], ground_truth[bands == band])
        if self.border is not None:
            chosen = points_at_border(points, ground_truth, self.border)
            self._at_border.add(prediction[chosen], ground_truth[chosen])
        official, strict = matrix.scores(), matrix.scores(strict=True)
        self._scans.append(
            {
                "name": name,
                "points": matrix.points,
                "evaluated_points": matrix.evaluated_points,
                "miou_present": official.miou_present,
                "accuracy": official.accuracy,
                "strict": {"miou_present": strict.miou_present, "accuracy": strict.accuracy},
            }
        )

    def add_clouds(
        self,
        name: str,
        ground_truth: PointCloudLike,
        output: PointCloudLike,
        ground_truth_field: str = "ground_truth",
        label_field: str = "label",
        label_map: FoldedLabels | None = None,
        output_is_folded: bool = False,
    ) -> None:
        """Count a labelled cloud against a cloud with ground truth, which has the same points in the same order.

        Args:
            name: Name of the scan in the summary.
            ground_truth: Cloud with the true classes.
            output: Cloud with the labels.
            ground_truth_field: Field of the true classes, integers.
            label_field: Field of the labels, integers.
            label_map: Folds the true classes and the labels into the evaluator's classes.
            output_is_folded: The labels are already those of the label map.

        Raises:
            UserError: A field is missing, or the number of points or the labels do not fit; the message names the scan.
        """
        try:
            truth = read_field(ground_truth, ground_truth_field)
            labels = read_field(output, label_field)
            points = decode(ground_truth, _XYZ_ONLY).points
            for field, values in ((ground_truth_field, truth), (label_field, labels)):
                if values.ndim != 1 or values.dtype.kind not in "ui":
                    raise UserError(f"field '{field}' has type {values.dtype}; expected one integer per point")
            if len(truth) != len(labels):
                raise UserError(f"{len(labels)} labels, but the ground truth has {len(truth)} points")
            if label_map is not None:
                truth = label_map.fold(truth)
                labels = labels if output_is_folded else label_map.fold(labels)
        except UserError as error:
            raise UserError(f"scan {name}: {error}") from error
        self.add(name, points, labels, truth)

    @property
    def matrix(self) -> ConfusionMatrix:
        """Confusion matrix of all scans so far."""
        return ConfusionMatrix(self.labels, np.sum([matrix.counts for matrix in self._by_band], axis=0))

    def summary(self) -> dict[str, Any]:
        """Summarize the scans so far in plain JSON types."""
        border = None
        if self.border is not None:
            border = asdict(self.border) | _numbers(self._at_border)
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "label_set": self.labels.to_dict(),
            "scan_count": len(self._scans),
            **_numbers(self.matrix),
            "by_range": self._by_range(),
            "border": border,
            "confusion": {
                "rows": "prediction",
                "columns": "ground_truth",
                "classes": list(self.labels.names),
                "counts": self.matrix.counts.tolist(),
            },
            "scans": self._scans,
        }

    def _by_range(self) -> list[dict[str, Any]]:
        ends = [*BAND_EDGES_M[1:], None]
        bands: list[dict[str, Any]] = [
            {"from_m": start, "to_m": end, **_numbers(matrix)}
            for start, end, matrix in zip(BAND_EDGES_M, ends, self._by_band, strict=False)
        ]
        if self._by_band[-1].points:  # points without a finite range are in the totals, so show them
            bands.append({"from_m": None, "to_m": None, **_numbers(self._by_band[-1])})
        return bands


def _numbers(matrix: ConfusionMatrix) -> dict[str, Any]:
    """Official scores, strict scores and counts of a confusion matrix."""
    labels, support = matrix.labels, matrix.support
    return {
        **matrix.scores().to_dict(labels),
        "strict": matrix.scores(strict=True).to_dict(labels),
        "points": matrix.points,
        "evaluated_points": matrix.evaluated_points,
        "left_unlabeled": matrix.left_unlabeled,
        "support": {labels.names[label]: int(support[label]) for label in labels.evaluated},
    }
