"""The HTML report of an evaluation: one file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import find_scans
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation import html_sections, pictures
from sqsegv3_ros.evaluation.dataset_evaluation import read_pair, scan_name
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix, Scores
from sqsegv3_ros.evaluation.summary import percent

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
        root: SemanticKITTI root of the scans.
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


def build_report(summary: Mapping[str, Any], samples: Iterable[Sample] = (), note: str = "") -> str:
    """Build the page.

    Args:
        summary: Summary of `Evaluator`, optionally with 'latency_ms' (one number per scan) and 'live' (names and
            values).
        samples: Scans to show, in this order.
        note: Sentence at the top of the page.

    Returns:
        The HTML.

    Raises:
        UserError: There are samples, but Pillow is not installed.
    """
    summary = dict(summary)
    label_set = LabelSet.from_dict(summary["label_set"])
    shown, clouds = [], []
    for sample in samples:
        shown.append(_sample_pictures(sample, label_set))
        clouds.append({"name": sample.name, "points": _encode_points(sample)})
    sections = [
        ("IoU by class", html_sections.by_class(summary, label_set)),
        ("IoU by range", html_sections.by_range(summary, label_set)),
        ("Confusion matrix", html_sections.confusion(summary, label_set)),
    ]
    if summary.get("latency_ms"):
        sections.append(("Latency", html_sections.latency(summary["latency_ms"])))
    if clouds:
        sections.append(("Point cloud", _cloud(clouds, label_set)))
        sections.append(("Scans with the lowest mIoU", "".join(shown)))
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections)
    style, code = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    script = f"<script>{code}</script>" if clouds else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation: mIoU {percent(summary['miou'])}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<h1>Evaluation</h1>\n"
        f"{html_sections.about(summary, label_set)}\n{html_sections.key_numbers(summary)}\n"
        + (f'<p class="note">{escape(note)}</p>\n' if note else "")
        + f"{_reading_help(summary)}\n{body}\n{script}\n</body>\n</html>\n"
    )


def _reading_help(summary: Mapping[str, Any]) -> str:
    text = (
        "Numbers are percent. mIoU over all classes counts a class that the ground truth does not contain as 0, as the "
        f"official evaluation does. {summary['left_unlabeled']:,} points of an evaluated class were predicted as "
        "unlabeled: the official numbers drop them, the strict numbers count them as wrong."
    )
    return f'<p class="faint" style="margin-top:1rem">{text}</p>'


def _sample_pictures(sample: Sample, label_set: LabelSet) -> str:
    """Draw label images and bird's-eye views of a scan: predicted, true, errors."""
    import torch

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    index = project(torch.from_numpy(sample.points), ProjectionConfig()).index.numpy()
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
    scores = sample.scores(label_set)
    numbers = f"mIoU present {percent(scores.miou_present)}, accuracy {percent(scores.accuracy)}"
    title = f"<h3>{escape(sample.name)} <small>{numbers}</small></h3>"
    return f'<div class="scan">{title}{strips}<div class="pair">{above}</div></div>'


def _image(picture: pictures.Picture, caption: str, kind: str) -> str:
    data = base64.b64encode(pictures.encode_png(picture)).decode()
    return f'<img class="{kind}" alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def _cloud(clouds: list[dict[str, str]], label_set: LabelSet) -> str:
    """The canvas, its controls, and the points that html_report.js draws on it."""
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
    classes = "".join(f"<span>{html_sections.swatch(label_set, name)}{escape(name)}</span>" for name in label_set.names)
    errors = "".join(
        f'<span><span class="swatch" style="background:rgb{color}"></span>{pictures.ERROR_NAMES[key]}</span>'
        for key, color in pictures.ERROR_COLORS.items()
    )
    embedded = json.dumps(data).replace("<", "\\u003c")  # no name can end the script element
    return (
        f'<div class="controls"><label>scan <select id="cloud-scan">{options}</select></label>{buttons}</div>'
        '<canvas id="cloud" tabindex="0" role="img" aria-label="point cloud"></canvas>'
        f'<div class="keys">{classes}</div><div class="keys">{errors}</div>'
        '<p class="faint">Drag to rotate, wheel or two fingers to zoom, shift or right button to pan, double-click to '
        f"reset; arrow keys and + - work too. At most {CLOUD_POINTS:,} points of each scan are shown.</p>"
        "<noscript><p>The point cloud needs JavaScript.</p></noscript>"
        f'<script type="application/json" id="cloud-data">{embedded}</script>'
    )


def _encode_points(sample: Sample) -> str:
    """Encode at most `CLOUD_POINTS` random points: planes of int16 x, y, z (cm), predicted and true label; base64."""
    near = np.flatnonzero((np.abs(sample.points[:, :3]) < MAX_COORDINATE_M).all(axis=1))  # False for NaN
    chosen = np.sort(np.random.default_rng(0).permutation(near)[:CLOUD_POINTS])
    centimetres = np.rint(sample.points[chosen, :3] * 100).T
    planes = np.concatenate([centimetres, [sample.prediction[chosen], sample.ground_truth[chosen]]])
    return base64.b64encode(planes.astype("<i2").tobytes()).decode()
