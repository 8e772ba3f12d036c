# SPDX-License-Identifier: Apache-2.0
"""The HTML report of an evaluation: one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import find_scans
from sqsegv3_ros.errors import UserError, missing_package
from sqsegv3_ros.evaluation.dataset_evaluation import read_pair, scan_name
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix, Scores
from sqsegv3_ros.evaluation.summary import band_title, percent
from sqsegv3_ros.viewing import pictures

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
CLOUD_POINTS = 30_000
MAX_COORDINATE_M = 300.0  # fits 16 bits in centimetres
PICTURE_RADIUS_M, PICTURE_SIZE = 50.0, 640


@dataclass(frozen=True)
class Sample:
    """A scan to show.

    Attributes:
        name: Its name.
        points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
        prediction: (N,) predicted labels.
        ground_truth: (N,) true labels.
    """

    name: str
    points: npt.NDArray[np.float32]
    prediction: npt.NDArray[Any]
    ground_truth: npt.NDArray[Any]

    def scores(self, label_set: LabelSet) -> Scores:
        """Compute the official scores of the scan."""
        matrix = ConfusionMatrix(label_set)
        matrix.add(self.prediction, self.ground_truth)
        return matrix.scores()


@dataclass(frozen=True)
class View:
    """Points of a scan from above.

    Attributes:
        caption: Sentence below the picture.
        points: (N, 3 or more) x, y, z in metres in the sensor frame.
        colors: (N, 3) uint8.
    """

    caption: str
    points: npt.NDArray[np.float32]
    colors: pictures.Picture

    def draw(self) -> pictures.Picture:
        """Draw the picture."""
        return pictures.birds_eye_picture(self.points, self.colors, PICTURE_RADIUS_M, _background())


def worst_scans(summary: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Select the scans of a summary with the lowest mIoU over their present classes, worst first."""
    evaluated = [scan for scan in summary["scans"] if scan["evaluated_points"]]
    return sorted(evaluated, key=lambda scan: (scan["miou_present"], scan["name"]))[:count]


def worst_samples(
    summary: Mapping[str, Any], root: str | Path, predictions: str | Path, count: int
) -> Iterator[Sample]:
    """Read the `worst_scans` of a summary from their files.

    Args:
        summary: Summary of the evaluation.
        root: SemanticKITTI data set of the scans.
        predictions: Folder of predictions.
        count: Number of scans.

    Raises:
        UserError: A file is missing, or its labels are not those that were evaluated.
    """
    label_set = LabelSet.from_dict(summary["label_set"])
    worst = worst_scans(summary, count)
    sequences = sorted({scan["name"].partition("/")[0] for scan in worst})
    files = {scan_name(file): file for file in find_scans(root, sequences)} if worst else {}
    for scan in worst:
        if scan["name"] not in files:
            raise UserError(f"{root} has no scan '{scan['name']}', which was evaluated")
        file = files[scan["name"]]
        sample = Sample(scan["name"], *read_pair(file, predictions, label_set))
        accuracy = sample.scores(label_set).accuracy
        if abs(accuracy - scan["accuracy"]) > 1e-9:
            raise UserError(
                f"{file.prediction_path(predictions)} has changed since the evaluation: accuracy {accuracy:.4f}, "
                f"evaluated {scan['accuracy']:.4f}; evaluate again"
            )
        yield sample


def build_report(
    summary: Mapping[str, Any], samples: Iterable[Sample] = (), note: str = "", views: Sequence[View] = ()
) -> str:
    """Build the page.

    Args:
        summary: Summary of `Evaluator`, optionally with 'latency_ms' (one number per scan) and 'live' (names and
            values).
        samples: Scans to show, in this order.
        note: Sentence at the top of the page.
        views: Further pictures, below the tables.

    Returns:
        The HTML.

    Raises:
        UserError: Jinja2 is not installed, or there are samples, but Pillow is not installed.
    """
    label_set = LabelSet.from_dict(summary["label_set"])
    colors = pictures.display_colors(label_set).tolist()
    scans = [_scan(sample, label_set) for sample in samples]
    counts = np.array(summary["confusion"]["counts"], dtype=np.int64)
    return (
        environment()
        .get_template("html_report.html")
        .render(
            summary=summary,
            note=note,
            about=_about(summary, label_set),
            colors=dict(zip(label_set.names, colors, strict=True)),
            shares=(counts / np.maximum(counts.sum(axis=0), 1)).tolist(),
            latency=_histogram(summary["latency_ms"]) if summary.get("latency_ms") else None,
            scans=scans,
            views=[(view.caption, view.draw()) for view in views],
            radius_m=PICTURE_RADIUS_M,
            cloud_points=CLOUD_POINTS,
            cloud={
                "colors": colors,
                "evaluated": [label in label_set.evaluated for label in range(len(label_set))],
                "error_colors": pictures.ERROR_COLORS,
                "scans": [{"name": scan["name"], "points": scan["points"]} for scan in scans],
            },
            error_names=pictures.ERROR_NAMES,
            style=(FOLDER / "html_report.css").read_text(encoding="utf-8"),
            code=(FOLDER / "html_report.js").read_text(encoding="utf-8"),
        )
    )


def environment() -> Environment:
    """Make the environment that renders the pages. Raises UserError if Jinja2 is not installed."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise missing_package("Jinja2", "the report", "tools") from error
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"percent": percent, "band_title": band_title, "thousands": "{:,}".format, "png": _png}
    return made


def _about(summary: Mapping[str, Any], label_set: LabelSet) -> list[tuple[str, Any]]:
    """List what was evaluated, and the numbers of a live evaluation."""
    return [
        ("Data set", summary.get("dataset")),
        ("Predictions", summary.get("predictions")),
        ("Sequences", ", ".join(summary.get("sequences") or [])),
        ("Label set", f"{label_set.name}, {len(label_set.evaluated)} classes evaluated"),
        ("Scans", f"{summary['scan_count']:,}"),
        ("Points", f"{summary['points']:,}, {summary['evaluated_points']:,} of them evaluated"),
        *(
            (name, value if isinstance(value, float) else str(value))
            for name, value in (summary.get("live") or {}).items()
        ),
    ]


def _histogram(values_ms: Sequence[float]) -> dict[str, Any]:
    """Count latencies in 48 bins up to `longest`; the last bin holds the rest."""
    longest = max(float(np.percentile(values_ms, 99.5)) * 1.1, 1e-3)
    counts, _ = np.histogram(np.minimum(values_ms, longest), bins=48, range=(0, longest))
    percentiles = {p: float(np.percentile(values_ms, p)) for p in (50, 95, 99)}
    return {"counts": counts.tolist(), "longest": longest, "percentiles": percentiles}


def _scan(sample: Sample, label_set: LabelSet) -> dict[str, Any]:
    """Draw label images and bird's-eye views of a scan: predicted, true, errors; encode its points."""
    import torch

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    index = project(torch.from_numpy(sample.points), ProjectionConfig()).index.numpy()
    layers = pictures.label_layers(label_set, sample.prediction, sample.ground_truth, ("predicted", "true"))
    return {
        "name": sample.name,
        "scores": sample.scores(label_set),
        "points": _encode_points(sample),
        "strips": [(p.caption, pictures.image_of_points(p.colors, index)) for p in layers],
        "views": [(p.caption, View(p.caption, sample.points, p.colors).draw()) for p in layers],
    }


def _background() -> pictures.Picture:
    return np.full((PICTURE_SIZE, PICTURE_SIZE, 3), pictures.BACKGROUND, dtype=np.uint8)


def _png(picture: pictures.Picture) -> str:
    return _base64(pictures.encode_png(picture))


def _encode_points(sample: Sample) -> str:
    """Encode at most `CLOUD_POINTS` random points: planes of int16 x, y, z (cm), predicted and true label; base64."""
    near = np.flatnonzero((np.abs(sample.points[:, :3]) < MAX_COORDINATE_M).all(axis=1))  # False for NaN
    chosen = np.sort(np.random.default_rng(0).permutation(near)[:CLOUD_POINTS])
    centimetres = np.rint(sample.points[chosen, :3] * 100).T
    planes = np.concatenate([centimetres, [sample.prediction[chosen], sample.ground_truth[chosen]]])
    return _base64(planes.astype("<i2").tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
