"""Scans with predicted and true labels go in, one after the other; the summary of the evaluation comes out.

The summary is plain JSON types; docs/evaluation.md describes its keys. Folders, bags and the live evaluator share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import points_at_border
from sqsegv3_ros.evaluation.metrics import BAND_EDGES_M, ConfusionMatrix, count_pairs, range_bands

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import ProjectionConfig

FORMAT = "sqsegv3-evaluation"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BorderConfig:
    """Where border IoU is evaluated: within `pixels` steps (over 4 or 8 neighbours) of a change of class.

    projection: of the label image; None for the release's 64 x 2048, +3 to -25 degrees.
    """

    pixels: int = 1
    connectivity: int = 4
    projection: ProjectionConfig | None = None

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.connectivity not in (4, 8):
            raise UserError(
                f"border needs at least 1 pixel and connectivity 4 or 8, found {self.pixels} and {self.connectivity}"
            )


class Evaluator:
    """Counts scan by scan and sums up; its memory grows by a few numbers a scan.

    labels: the label set that predictions and ground truth are given in. border: also evaluate points near borders.
    """

    def __init__(self, labels: LabelSet, border: BorderConfig | None = None) -> None:
        size = len(labels)
        if len(set(labels.names)) < size:
            raise UserError(f"label set '{labels.name}' has two classes of one name: {', '.join(labels.names)}")
        self.labels = labels
        self.border = border
        self._by_band = np.zeros((len(BAND_EDGES_M) + 1, size, size), dtype=np.int64)
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

        name: what the summary calls it ('00/000000'). points: (N, 4) float32 x, y, z in metres in the sensor frame,
        remission. prediction, ground_truth: (N,) labels. Raises UserError naming the scan where they do not fit.
        """
        try:
            bands = range_bands(np.linalg.norm(points[:, :3], axis=1))
            counts = count_pairs(prediction, ground_truth, len(self.labels), bands, len(self._by_band))
        except (UserError, ValueError) as error:
            raise UserError(f"scan {name}: {error}") from error
        if self.border is not None:
            settings = self.border.pixels, self.border.connectivity, self.border.projection
            chosen = points_at_border(points, ground_truth, *settings)
            self._at_border.add(prediction[chosen], ground_truth[chosen])
        self._by_band += counts
        matrix = ConfusionMatrix(self.labels, counts.sum(axis=0))
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

    @property
    def matrix(self) -> ConfusionMatrix:
        """The confusion matrix of everything counted so far."""
        return ConfusionMatrix(self.labels, self._by_band.sum(axis=0))

    def summary(self) -> dict[str, Any]:
        """The evaluation so far, as plain JSON types."""
        border = None
        if self.border is not None:
            border = {"pixels": self.border.pixels, "connectivity": self.border.connectivity}
            border |= _numbers(self._at_border)
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
            {"from_m": start, "to_m": end, **_numbers(ConfusionMatrix(self.labels, counts))}
            for start, end, counts in zip(BAND_EDGES_M, ends, self._by_band, strict=False)
        ]
        if self._by_band[-1].any():  # points without a finite range: in the totals, so they are shown as well
            bands.append({"from_m": None, "to_m": None, **_numbers(ConfusionMatrix(self.labels, self._by_band[-1]))})
        return bands


def _numbers(matrix: ConfusionMatrix) -> dict[str, Any]:
    """What a summary says about a confusion matrix: the official numbers, the strict ones, how many points."""
    classes = matrix.labels.classes
    evaluated = matrix.labels.evaluated

    def of(strict: bool) -> dict[str, Any]:
        scores = matrix.scores(strict)
        return {
            "miou": scores.miou,
            "miou_present": scores.miou_present,
            "accuracy": scores.accuracy,
            "iou": {classes[label].name: float(scores.iou[label]) for label in evaluated},
        }

    support = matrix.support
    return {
        **of(strict=False),
        "strict": of(strict=True),
        "points": matrix.points,
        "evaluated_points": matrix.evaluated_points,
        "left_unlabeled": matrix.left_unlabeled,
        "support": {classes[label].name: int(support[label]) for label in evaluated},
    }
