# SPDX-License-Identifier: Apache-2.0
"""IoU, mIoU and accuracy of predicted labels, from one confusion matrix over points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError

BAND_EDGES_M = (0.0, 10.0, 20.0, 30.0, 50.0)
"""Lower edges of the range bands in metres; the last band is open."""


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, as fractions 0..1.

    Attributes:
        iou: (C,) float64 by label, 0 for ignored and absent classes.
        miou: Mean over all evaluated classes; absent ones count as 0, as in the official evaluation.
        miou_present: Mean over the evaluated classes that the ground truth contains.
        accuracy: Share of the counted points that are right.
    """

    iou: npt.NDArray[np.float64]
    miou: float
    miou_present: float
    accuracy: float

    def to_dict(self, labels: LabelSet) -> dict[str, Any]:
        """Convert to plain JSON types, with the IoU of the evaluated classes by name."""
        iou = {labels.names[label]: float(self.iou[label]) for label in labels.evaluated}
        return {"miou": self.miou, "miou_present": self.miou_present, "accuracy": self.accuracy, "iou": iou}


class ConfusionMatrix:
    """Counts of points by predicted label (rows) and true label (columns), as in the official release.

    Args:
        labels: Label set; its ignored classes are counted, but not evaluated.
        counts: (C, C) integers.

    Raises:
        UserError: The counts do not fit the label set.
    """

    def __init__(self, labels: LabelSet, counts: npt.NDArray[Any] | None = None) -> None:
        size = len(labels)
        self.labels = labels
        self.counts = np.zeros((size, size), dtype=np.int64) if counts is None else np.array(counts, dtype=np.int64)
        if self.counts.shape != (size, size):
            raise UserError(
                f"confusion matrix has shape {self.counts.shape}, but label set '{labels.name}' has {size} classes"
            )

    def add(self, prediction: npt.NDArray[Any], ground_truth: npt.NDArray[Any]) -> None:
        """Count (N,) predicted and (N,) true labels of any integer type.

        Raises:
            UserError: Their lengths differ, or a label is not in the label set.
        """
        if prediction.shape != ground_truth.shape or prediction.ndim != 1:
            raise UserError(
                f"predictions {prediction.shape} and ground truth {ground_truth.shape} must be flat and of equal length"
            )
        size = len(self.labels)
        for name, values in (("predicted", prediction), ("true", ground_truth)):
            low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
            if not 0 <= low <= high < size:
                raise UserError(f"{name} labels must be in 0..{size - 1}, found {low}..{high}")
        cell = prediction.astype(np.int64) * size + ground_truth.astype(np.int64)
        self.counts += np.bincount(cell, minlength=size * size).reshape(size, size)

    @property
    def points(self) -> int:
        """Number of counted points, ignored ones included."""
        return int(self.counts.sum())

    @property
    def support(self) -> npt.NDArray[np.int64]:
        """(C,) points of each class in the ground truth."""
        return self.counts.sum(axis=0)

    @property
    def evaluated_points(self) -> int:
        """Number of points whose true class is evaluated."""
        return int(self.support[list(self.labels.evaluated)].sum())

    @property
    def left_unlabeled(self) -> int:
        """Number of points of an evaluated class that were predicted as an ignored one."""
        evaluated = self._is_evaluated()
        return int(self.counts[~evaluated][:, evaluated].sum())

    def scores(self, strict: bool = False) -> Scores:
        """Compute IoU = TP / (TP + FP + FN), its means, and the accuracy.

        Points whose true class is ignored never count.

        Args:
            strict: Count a point of an evaluated class that was predicted as an ignored class as a miss; the official
                evaluation drops it.
        """
        evaluated = self._is_evaluated()
        counts = np.where(evaluated[None, :], self.counts, 0)
        if not strict:
            counts = np.where(evaluated[:, None], counts, 0)
        true_positive = np.where(evaluated, np.diag(counts), 0)
        union = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
        iou = np.where(evaluated, true_positive / np.maximum(union, 1), 0.0)
        present = evaluated & (self.support > 0)
        return Scores(
            iou=iou,
            miou=float(iou[evaluated].mean()) if evaluated.any() else 0.0,
            miou_present=float(iou[present].mean()) if present.any() else 0.0,
            accuracy=float(true_positive.sum() / max(int(counts.sum()), 1)),
        )

    def _is_evaluated(self) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(len(self.labels)), self.labels.evaluated)


def range_bands(ranges_m: npt.NDArray[Any], edges_m: Sequence[float] = BAND_EDGES_M) -> npt.NDArray[np.int64]:
    """Sort (N,) ranges in metres into bands: 0..len(edges_m)-1 by lower edge, len(edges_m) if not finite."""
    band = np.digitize(ranges_m, np.asarray(edges_m[1:], dtype=np.float64))
    return np.where(np.isfinite(ranges_m), band, len(edges_m)).astype(np.int64)
