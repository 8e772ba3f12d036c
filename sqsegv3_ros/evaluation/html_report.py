"""The summary of an evaluation and some of its scans go in; one HTML file that needs nothing else comes out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import find_scans
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation import pictures, report_parts
from sqsegv3_ros.evaluation.evaluator import FORMAT, FORMAT_VERSION
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
from sqsegv3_ros.evaluation.predictions import read_pair, scan_name

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import ProjectionConfig

CLOUD_POINTS = 30_000
REACH_M = 300.0  # what 16 bits of centimetres hold
PICTURE_RADIUS_M, PICTURE_SIZE = 50.0, 640
NEEDED = (
    *("label_set", "scan_count", "points", "evaluated_points", "left_unlabeled", "support", "scans"),
    *("miou", "miou_present", "accuracy", "iou", "strict", "by_range", "confusion"),
)


@dataclass(frozen=True)
class Sample:
    """A scan to show: its name, (N, 4) float32 points (metres, sensor frame), (N,) predicted and true labels."""

    name: str
    points: npt.NDArray[np.float32]
    prediction: npt.NDArray[Any]
    ground_truth: npt.NDArray[Any]


def read_summary(path: str | Path) -> dict[str, Any]:
    """A file that `sqsegv3 evaluate --json` wrote -> the summary. Raises UserError where it is none."""
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read evaluation {path}: {error}") from error
    if not isinstance(summary, Mapping) or summary.get("format") != FORMAT:
        raise UserError(f"{path} is no evaluation: expected a file that 'sqsegv3 evaluate --json' wrote")
    if summary.get("format_version") != FORMAT_VERSION:
        version = summary.get("format_version")
        raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}; evaluate again")
    missing = [key for key in NEEDED if key not in summary]
    if missing:
        raise UserError(f"evaluation {path} lacks {', '.join(missing)}; evaluate again")
    latency_ms = summary.get("latency_ms") or []
    if not isinstance(latency_ms, list) or not all(isinstance(v, (int, float)) and v >= 0 for v in latency_ms):
        raise UserError(f"evaluation {path}: latency_ms must be a list of milliseconds, a number for each scan")
    return dict(summary)


def worst_samples(
    summary: Mapping[str, Any], root: str | Path, predictions: str | Path, count: int
) -> Iterator[Sample]:
    """The scans of a summary with the lowest mIoU over their present classes, worst first, read from their files.

    Raises UserError where a file is missing, or its labels are not those that were evaluated.
    """
    label_set = LabelSet.from_dict(summary["label_set"])
    evaluated = [scan for scan in summary["scans"] if scan["evaluated_points"]]
    worst = sorted(evaluated, key=lambda scan: (scan["miou_present"], scan["name"]))[:count]
    sequences = sorted({scan["name"].partition("/")[0] for scan in worst})
    files = {scan_name(file): file for file in find_scans(root, sequences)} if worst else {}
    for scan in worst:
        if scan["name"] not in files:
            raise UserError(f"{root} has no scan '{scan['name']}', which was evaluated")
        points, prediction, truth = read_pair(files[scan["name"]], predictions, label_set)
        matrix = ConfusionMatrix(label_set)
        matrix.add(prediction, truth)
        if abs(matrix.scores().accuracy - scan["accuracy"]) > 1e-9:
            raise UserError(
                f"{files[scan['name']].prediction_path(predictions)} is not what was evaluated: accuracy "
                f"{matrix.scores().accuracy:.4f}, evaluated {scan['accuracy']:.4f}; evaluate again"
            )
        yield Sample(scan["name"], points, prediction, truth)


def build_report(
    summary: Mapping[str, Any],
    samples: Iterable[Sample] = (),
    note: str = "",
    projection: ProjectionConfig | None = None,
) -> str:
    """Put the page together.

    summary: of `Evaluator`, with 'latency_ms' (a list, a number a scan) and 'live' (names and values) where there are such.
    samples: the scans to show, in this order. note: a sentence to the reader. projection: of the samples' images; 64 x
    2048, +3 to -25 degrees, if not given. Returns the HTML.
    """
    summary = dict(summary)
    label_set = LabelSet.from_dict(summary["label_set"])
    shown, clouds = [], []
    for sample in samples:
        shown.append(_sample_pictures(sample, label_set, projection))
        clouds.append({"name": sample.name, "points": _packed(sample)})
    sections = [
        ("IoU by class", report_parts.by_class(summary, label_set)),
        ("IoU by range", report_parts.by_range(summary, label_set)),
        ("Confusion matrix", _confusion_text() + report_parts.confusion(summary, label_set)),
    ]
    if summary.get("latency_ms"):
        sections.append(("Latency", report_parts.latency(summary["latency_ms"])))
    if clouds:
        sections.append(("A cloud to turn", _cloud(clouds, label_set)))
        sections.append(("Scans with the lowest mIoU", "".join(shown)))
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections)
    assets = {name: Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("report.css", "report.js")}
    script = f"<script>{assets['report.js']}</script>" if clouds else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation: mIoU {report_parts.percent(summary['miou'])}</title>\n"
        f"<style>\n{assets['report.css']}</style>\n</head>\n<body>\n<h1>Evaluation</h1>\n"
        f"{report_parts.about(summary, label_set)}\n{report_parts.numbers(summary)}\n"
        + (f'<p class="note">{escape(note)}</p>\n' if note else "")
        + f"{_reading_help(summary)}\n{body}\n{script}\n</body>\n</html>\n"
    )


def _reading_help(summary: Mapping[str, Any]) -> str:
    text = (
        "Numbers are per cent. mIoU over all classes counts a class that the ground truth does not hold as 0, as the "
        f"official evaluation does. {summary['left_unlabeled']:,} points that have a class were predicted as "
        "unlabeled: the official numbers drop them, the strict ones count them as wrong."
    )
    return f'<p class="faint" style="margin-top:1rem">{text}</p>'


def _confusion_text() -> str:
    return "<p>Columns are true classes and add up to 100; rows are what they were taken for.</p>"


def _sample_pictures(sample: Sample, label_set: LabelSet, projection: ProjectionConfig | None) -> str:
    """Label images and bird's-eye views of a scan: predicted, true, errors."""
    import torch

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    index = project(torch.from_numpy(sample.points), projection or ProjectionConfig()).index.numpy()
    layers = pictures.label_layers(label_set, sample.prediction, sample.ground_truth, ("predicted", "true"))
    strips = "".join(
        f"<figure>{_image(pictures.image_of_points(layer.colors, index), layer.caption, 'strip')}"
        f"<figcaption>{escape(layer.caption)}</figcaption></figure>"
        for layer in layers
    )
    background = np.full((PICTURE_SIZE, PICTURE_SIZE, 3), pictures.BACKGROUND, dtype=np.uint8)
    above = ""
    for layer in layers:
        view = pictures.birds_eye_picture(sample.points, layer.colors, PICTURE_RADIUS_M, background)
        caption = f"{escape(layer.caption)}, from above, {PICTURE_RADIUS_M:g} m each way"
        above += f"<figure>{_image(view, layer.caption, '')}<figcaption>{caption}</figcaption></figure>"
    matrix = ConfusionMatrix(label_set)
    matrix.add(sample.prediction, sample.ground_truth)
    scores = matrix.scores()
    words = (
        f"mIoU present {report_parts.percent(scores.miou_present)}, accuracy {report_parts.percent(scores.accuracy)}"
    )
    title = f"<h3>{escape(sample.name)} <small>{words}</small></h3>"
    return f'<div class="scan">{title}{strips}<div class="pair">{above}</div></div>'


def _image(picture: pictures.Picture, what: str, kind: str) -> str:
    data = base64.b64encode(pictures.png_bytes(picture)).decode()
    return f'<img class="{kind}" alt="{escape(what)}" src="data:image/png;base64,{data}">'


def _cloud(clouds: list[dict[str, str]], label_set: LabelSet) -> str:
    """The canvas, what steers it, and the points that report.js draws on it."""
    data = {
        "colors": pictures.display_colors(label_set).tolist(),
        "evaluated": [label in label_set.evaluated for label in range(len(label_set))],
        "error_colors": pictures.ERROR_COLORS,
        "scans": clouds,
    }
    options = "".join(f"<option>{escape(cloud['name'])}</option>" for cloud in clouds)
    buttons = "".join(
        f'<button data-coloring="{key}" aria-pressed="{str(key == "prediction").lower()}">{title}</button>'
        for key, title in (("prediction", "predicted"), ("truth", "true"), ("errors", "errors"))
    )
    keys = "".join(f"<span>{report_parts.swatch(label_set, name)}{escape(name)}</span>" for name in label_set.names)
    errors = "".join(
        f'<span><span class="swatch" style="background:rgb{color}"></span>{pictures.ERROR_NAMES[key]}</span>'
        for key, color in pictures.ERROR_COLORS.items()
    )
    embedded = json.dumps(data).replace("<", "\\u003c")  # so that no name can end the script element
    return (
        f'<div class="controls"><label>scan <select id="cloud-scan">{options}</select></label>{buttons}</div>'
        '<canvas id="cloud" tabindex="0" role="img" aria-label="point cloud"></canvas>'
        f'<div class="keys">{keys}</div><div class="keys">{errors}</div>'
        '<p class="faint">Drag to turn, wheel or two fingers to zoom, shift or right button to move, double-click to '
        f"start over; arrow keys and + - do as well. At most {CLOUD_POINTS:,} points of each scan are shown.</p>"
        "<noscript><p>The cloud needs JavaScript.</p></noscript>"
        f'<script type="application/json" id="cloud-data">{embedded}</script>'
    )


def _packed(sample: Sample) -> str:
    """At most `CLOUD_POINTS` points, chosen evenly at random: planes of int16 x, y, z (cm), labels; base64."""
    near = np.flatnonzero((np.abs(sample.points[:, :3]) < REACH_M).all(axis=1))  # False for NaN
    chosen = np.sort(np.random.default_rng(0).permutation(near)[:CLOUD_POINTS])
    centimetres = np.rint(sample.points[chosen, :3] * 100).T
    planes = np.concatenate([centimetres, [sample.prediction[chosen], sample.ground_truth[chosen]]])
    return base64.b64encode(planes.astype("<i2").tobytes()).decode()
