# SPDX-License-Identifier: Apache-2.0
"""Points near borders between classes, for border IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BorderConfig:
    """Definition of a border in a label image.

    Attributes:
        pixels: Largest distance to a pixel of another class, in steps.
        connectivity: Neighbours that one step reaches, 4 or 8.
    """

    pixels: int = 1
    connectivity: int = 4

    def __post_init__(self) -> None:
        require(self.pixels >= 1, "border: pixels", "1 or more", self.pixels)
        require(self.connectivity in (4, 8), "border: connectivity", "4 or 8", self.connectivity)


def border_mask(label_image: npt.NDArray[Any], border: BorderConfig) -> npt.NDArray[np.bool_]:
    """Mark the pixels near a border between two classes.

    The official release erodes every class, unlabeled pixels included, and calls border what no class keeps. That is
    the same as: the neighbourhood contains two different classes (0 is none), or reaches beyond the image. So the
    lowest and the highest class of the neighbourhood suffice, without a channel per class.

    Args:
        label_image: (H, W) integers, 0 for pixels without a point or without a label.
        border: Width and shape of the neighbourhood.

    Returns:
        (H, W) bool.
    """
    import torch

    kernels = ((3, 1), (1, 3)) if border.connectivity == 4 else ((3, 3),)
    highest = torch.from_numpy(label_image.astype(np.float32))[None]
    lowest = torch.where(highest == 0, torch.inf, highest)
    for _ in range(border.pixels):
        highest, lowest = _highest_neighbours(highest, kernels), -_highest_neighbours(-lowest, kernels)
    mask: npt.NDArray[np.bool_] = (lowest < highest)[0].numpy()
    mask[: border.pixels] = mask[-border.pixels :] = True
    mask[:, : border.pixels] = mask[:, -border.pixels :] = True
    return mask


def _highest_neighbours(image: Tensor, kernels: tuple[tuple[int, int], ...]) -> Tensor:
    """Take the highest value of each neighbourhood; pixels beyond the image do not count."""
    import torch
    from torch.nn.functional import max_pool2d

    pooled = [max_pool2d(image, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2)) for kernel in kernels]
    return torch.stack(pooled).amax(dim=0)


def points_at_border(
    points: npt.NDArray[np.float32], ground_truth: npt.NDArray[Any], border: BorderConfig
) -> npt.NDArray[np.bool_]:
    """Select the points in pixels near a border between two true classes.

    The label image has the official release's projection: 64 x 2048, +3 to -25 degrees.

    Args:
        points: (N, 4) float32 x, y, z in metres, remission.
        ground_truth: (N,) labels, 0 for unlabeled.
        border: Definition of a border.

    Returns:
        (N,) bool, False for points that cannot be projected.
    """
    import torch

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    image = project(torch.from_numpy(points), ProjectionConfig())
    index = image.index.numpy()
    label_image = np.where(index >= 0, ground_truth[np.maximum(index, 0)], 0) if len(points) else np.zeros_like(index)
    return border_mask(label_image, border).reshape(-1)[image.pixel.numpy()] & image.usable.numpy()
