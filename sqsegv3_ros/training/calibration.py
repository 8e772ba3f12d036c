# SPDX-License-Identifier: Apache-2.0
"""Biases of the classes, chosen by labelled scans: training favours some classes, and their logits show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.semantic_kitti import find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
from sqsegv3_ros.files import progress
from sqsegv3_ros.inference.model_file import ModelInfo
from sqsegv3_ros.inference.range_image import fill_gaps, normalize, project
from sqsegv3_ros.network.model import SqueezeSegV3

MOST_SCANS = 40
"""Scans of a data set that are used, evenly spread."""

SHARE = 0.75
"""Share of the best biases that is applied: they fit the labelled scans better than those of other places."""

FEWEST_PIXELS = 300
"""A class with fewer pixels in a data set does not count there."""

_STEPS = tuple(0.25 * step for step in range(-12, 5))
_ROUNDS = 3
_LEAST_GAIN = 1e-4


@dataclass(frozen=True)
class LabelledPixels:
    """Labelled pixels of a data set's scans.

    Attributes:
        logits: (C, P) float32, ignored classes minus infinity.
        labels: (P,) int64 true labels, none of an ignored class.
    """

    logits: Tensor
    labels: Tensor


def choose_biases(network: SqueezeSegV3, info: ModelInfo, datasets: Sequence[Path]) -> dict[str, float]:
    """Choose what to add to the logit of each class by the mean IoU on labelled scans, averaged over data sets.

    Args:
        network: The network, in eval mode.
        info: Its metadata.
        datasets: SemanticKITTI data sets with labels, or sequence folders (`sequences/NN`), recorded at the height of
            the model's sensor.

    Returns:
        Bias by class name, without zeros.

    Raises:
        UserError: A data set cannot be read, or has too few labelled pixels.
    """
    pixels = [read_pixels(network, info, path) for path in datasets]
    biases = SHARE * best_biases(pixels, info.labels)
    return {info.labels.names[c]: float(biases[c]) for c in info.labels.evaluated if biases[c]}


def read_pixels(network: SqueezeSegV3, info: ModelInfo, dataset: Path) -> LabelledPixels:
    """Compute the logits of the labelled pixels of a data set, or of one of its sequence folders."""
    folder = dataset.absolute()  # "." has neither name nor parent
    if not folder.exists():
        raise UserError(f"{dataset} does not exist; expected a SemanticKITTI data set or its folder sequences/NN")
    one = (folder / "velodyne").is_dir()
    found = find_scans(folder.parent.parent, [folder.name]) if one else find_scans(dataset)
    files = [file for file in found if file.labels_path.is_file()]
    count = min(len(files), MOST_SCANS)
    chosen = [files[i * len(files) // count] for i in range(count)]
    logits, labels = [], []
    for file in progress(chosen, count, "scan"):
        points = read_scan(file.path)
        truth = torch.from_numpy(read_known_labels(file.labels_path, len(points), info.labels).astype(np.int64))
        image = project(torch.from_numpy(points), info.projection)
        with torch.inference_mode():
            seen = normalize(fill_gaps(image, info.projection.fill_rows), info.normalization)
            own = network(seen)[0][0].float().flatten(1)
        pixel = image.index.flatten()
        true = truth[pixel.clamp_min(0)]
        counted = (pixel >= 0) & torch.isin(true, torch.tensor(info.labels.evaluated))
        logits.append(own[:, counted])
        labels.append(true[counted])
    if not labels:
        raise UserError(f"{dataset} has no .label files: calibration needs labelled scans")
    pixels = LabelledPixels(torch.cat(logits, 1), torch.cat(labels))
    most = int(torch.bincount(pixels.labels, minlength=1).max())
    if most < FEWEST_PIXELS:
        raise UserError(f"{dataset}: {most} labelled pixels of the most frequent class; expected {FEWEST_PIXELS}")
    pixels.logits[[c for c in range(len(info.labels)) if c not in info.labels.evaluated]] = -torch.inf
    return pixels


def best_biases(pixels: Sequence[LabelledPixels], labels: LabelSet) -> Tensor:
    """Maximise the mean IoU over one class's bias after the other.

    Args:
        pixels: Pixels of each data set.
        labels: The label set.

    Returns:
        (C,) biases.
    """
    biases = torch.zeros(len(labels))
    shifted = [own.logits.clone() for own in pixels]
    best = _score([logits.argmax(0) for logits in shifted], pixels, labels)
    for _ in range(_ROUNDS):
        for c in labels.evaluated:
            others = []
            for logits in shifted:
                logits[c] = -torch.inf
                others.append(logits.max(0))
            scores = {}
            for step in _STEPS:
                winners = [
                    torch.where(own.logits[c] + step > other.values, c, other.indices)
                    for own, other in zip(pixels, others, strict=True)
                ]
                scores[step] = _score(winners, pixels, labels)
            step = max(scores, key=lambda step: scores[step])
            if scores[step] > best + _LEAST_GAIN:
                best, biases[c] = scores[step], step
            for own, logits in zip(pixels, shifted, strict=True):
                logits[c] = own.logits[c] + biases[c]
    return biases


def _score(predicted: Sequence[Tensor], pixels: Sequence[LabelledPixels], labels: LabelSet) -> float:
    """Mean over the data sets of the mean IoU of the classes with enough pixels."""
    means = []
    for own, truth in zip(predicted, pixels, strict=True):
        cells = torch.bincount(own * len(labels) + truth.labels, minlength=len(labels) ** 2)
        matrix = ConfusionMatrix(labels, cells.view(len(labels), len(labels)).numpy())
        means.append(matrix.scores().iou[matrix.support >= FEWEST_PIXELS].mean())
    return float(np.mean(means))
