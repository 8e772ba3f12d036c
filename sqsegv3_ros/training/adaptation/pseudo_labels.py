# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a network says about unlabelled scans, and which of it is kept for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sqsegv3_ros.inference.knn import refine
from sqsegv3_ros.inference.range_image import RangeImage, fill_gaps, project
from sqsegv3_ros.training.augment import Points, rotated
from sqsegv3_ros.training.module import SegmentationModule

SURE = 0.95
"""Labels of this confidence are kept whatever the others of their class are."""

_BINS = 1000


@dataclass(frozen=True)
class View:
    """How a cloud is changed before a network labels it.

    Attributes:
        yaw: Rotation about the vertical axis, radians.
        flipped: Whether left and right are swapped, after the rotation.
        exponent: Exponent of the remission.
    """

    yaw: float = 0.0
    flipped: bool = False
    exponent: float = 1.0

    def of(self, points: Points) -> Points:
        """Return the changed (N, 4) points."""
        changed = points.copy()
        changed[:, :2] = rotated(changed[:, :2], self.yaw)
        if self.flipped:
            changed[:, 1] *= -1.0
        if self.exponent != 1.0:
            changed[:, 3] = np.maximum(changed[:, 3], 0.0) ** np.float32(self.exponent)
        return changed


TURNED = (View(), View(2.2, True), View(4.0, False), View(0.9, True))
"""Turned and flipped views, whose probabilities are averaged."""

VARIED = tuple(
    replace(view, exponent=exponent) for view, exponent in zip(TURNED, (1.0, 1.2, 1 / 1.2, 1.0), strict=True)
)
"""The same with three exponents of the remission, for a network that sees another remission than it learned from."""

PLAIN = (View(),)
"""The cloud as it is."""


@dataclass(frozen=True)
class ScanLabels:
    """Labels of one scan.

    Attributes:
        labels: (N,) uint8, 0 for points that could not be used.
        confidences: (N,) float16, mean probability of the label.
    """

    labels: npt.NDArray[np.uint8]
    confidences: npt.NDArray[np.float16]


def label_scan(module: SegmentationModule, points: Points, views: Sequence[View] = PLAIN) -> ScanLabels:
    """Label a scan by the mean of several views of it, refined as the exported model does.

    Args:
        module: The network with its settings, in eval mode.
        points: (N, 4).
        views: The views.

    Returns:
        The labels.
    """
    return _refined(module, points, _mean_probabilities(module, points, views))


def thresholds(scans: Sequence[ScanLabels], classes: int, share: float) -> npt.NDArray[np.float64]:
    """Compute the confidence from which the labels of each class are kept (Zou et al. 2018, class-balanced).

    One threshold for all classes would keep roads and cars only: a network is less sure of rare classes.

    Args:
        scans: Labels of all scans.
        classes: Number of classes.
        share: Share of each class's points to keep, 0..1.

    Returns:
        (C,) thresholds; that of class 0 is infinite.
    """
    counts = np.zeros((classes, _BINS))
    for scan in scans:
        bins = np.minimum((scan.confidences.astype(np.float32) * _BINS).astype(np.int64), _BINS - 1)
        counts += np.bincount(scan.labels.astype(np.int64) * _BINS + bins, minlength=classes * _BINS).reshape(
            counts.shape
        )
    from_top = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    kept = from_top >= share * np.maximum(from_top[:, :1], 1)  # at these bins and above there are enough points
    lowest = kept.sum(axis=1) - 1
    result = np.minimum(np.maximum(lowest, 0) / _BINS, SURE)
    result[0] = np.inf
    return result


def keep_confident(scan: ScanLabels, least: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return the (N,) labels of a scan, 0 below the (C,) thresholds."""
    return np.where(scan.confidences >= least[scan.labels], scan.labels, 0).astype(np.uint8)


def _mean_probabilities(module: SegmentationModule, points: Points, views: Sequence[View]) -> Tensor:
    """(C, N) mean probabilities of the points' pixels, on the CPU."""
    total = torch.zeros((len(module.label_set), len(points)))
    for view in views:
        image, network_image = _images(module, view.of(points))
        with torch.no_grad():
            channels, mask = network_image.channels[None].to(module.device), network_image.mask[None].to(module.device)
            logits = module(channels, mask)[0][0]
        total += logits.float().softmax(0).cpu().flatten(1)[:, image.pixel]
    return total / len(views)


def _refined(module: SegmentationModule, points: Points, mean: Tensor) -> ScanLabels:
    image, _ = _images(module, points)
    label_image = mean.argmax(0).to(torch.uint8)[image.index.clamp_min(0)].masked_fill_(image.index < 0, 0)
    labels = refine(label_image, image, module.knn, len(module.label_set)).long()
    confidences = mean.gather(0, labels[None])[0].masked_fill_(~image.usable, 0.0)
    return ScanLabels(labels.to(torch.uint8).numpy(), confidences.half().numpy())


def _images(module: SegmentationModule, points: Points) -> tuple[RangeImage, RangeImage]:
    """The image of a scan, and that with filled gaps, which the network sees."""
    image = project(torch.from_numpy(points), module.projection)
    return image, fill_gaps(image, module.projection.fill_rows)
