# SPDX-License-Identifier: Apache-2.0
"""The HTML report of an adaptation: the labels of a recording before and after, one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.evaluation.html_report import FOLDER, View, environment
from sqsegv3_ros.inference.range_image import ProjectionConfig
from sqsegv3_ros.viewing import pictures

SMALLEST_SHARE = 0.0001  # of the points; classes below in all tables are left out


@dataclass(frozen=True)
class ComparedScan:
    """A scan with the labels of two models.

    Attributes:
        name: Its name.
        points: (N, 4) float32 x, y, z in metres in a level sensor frame, remission.
        before: (N,) labels of the first model.
        after: (N,) labels of the second one.
    """

    name: str
    points: npt.NDArray[np.float32]
    before: npt.NDArray[Any]
    after: npt.NDArray[Any]


def build_adaptation_report(
    labels: LabelSet,
    about: Sequence[tuple[str, str]],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    scans: Iterable[ComparedScan],
    projection: ProjectionConfig,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Build the page.

    Args:
        labels: Classes of the labels.
        about: Names and values at the top of the page.
        before: 'shares' and 'confidences' by class and mean 'confidence' of the labels before.
        after: Those of the labels after, and 'start_agreement'.
        rounds: A record per round of the teacher's labels: 'kept', 'confidence', 'student_agreement' and
            'start_agreement'.
        scans: Scans to show.
        projection: Projection of the pictures.
        evaluations: Summaries of `Evaluator` before and after, or nothing.

    Returns:
        The HTML.

    Raises:
        UserError: Jinja2 or Pillow is not installed.
    """
    colors = dict(zip(labels.names, pictures.display_colors(labels).tolist(), strict=True))
    shown = [
        labels.names[c]
        for c in labels.evaluated
        if max(record["shares"].get(labels.names[c], 0.0) for record in (before, after)) >= SMALLEST_SHARE
        or any(evaluation["support"][labels.names[c]] for evaluation in evaluations)
    ]
    return (
        environment()
        .get_template("adaptation_report.html")
        .render(
            about=about,
            rounds=rounds,
            before=before,
            after=after,
            classes=shown,
            colors=colors,
            evaluations=evaluations,
            scans=[_pictures(scan, labels, projection) for scan in scans],
            style=(FOLDER / "html_report.css").read_text(encoding="utf-8"),
        )
    )


def _pictures(scan: ComparedScan, labels: LabelSet, projection: ProjectionConfig) -> dict[str, Any]:
    """Label images and views from above, before and after."""
    import torch

    from sqsegv3_ros.inference.range_image import project

    index = project(torch.from_numpy(scan.points), projection).index.numpy()
    palette = pictures.display_colors(labels)
    colored = {"before": palette[scan.before], "after": palette[scan.after]}
    return {
        "name": scan.name,
        "changed": float(np.mean(scan.before != scan.after)),
        "strips": [(name, pictures.image_of_points(colors, index)) for name, colors in colored.items()],
        "views": [(name, View(name, scan.points, colors).draw()) for name, colors in colored.items()],
    }
