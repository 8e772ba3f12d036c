"""Points near borders between classes, for border IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError

_STRAIGHT = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))


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
        if self.pixels < 1 or self.connectivity not in (4, 8):
            raise UserError(
                f"border needs at least 1 pixel and connectivity 4 or 8, found {self.pixels} and {self.connectivity}"
            )


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
    steps = _STRAIGHT if border.connectivity == 4 else _STRAIGHT + _DIAGONAL
    highest = label_image.astype(np.int32)
    lowest = np.where(highest == 0, np.iinfo(np.int32).max, highest)
    for _ in range(border.pixels):
        highest = _combine_neighbours(np.maximum, highest, steps)
        lowest = _combine_neighbours(np.minimum, lowest, steps)
    mask = lowest < highest
    mask[: border.pixels] = mask[-border.pixels :] = True
    mask[:, : border.pixels] = mask[:, -border.pixels :] = True
    return mask


def _combine_neighbours(
    combine: np.ufunc, image: npt.NDArray[Any], steps: tuple[tuple[int, int], ...]
) -> npt.NDArray[Any]:
    padded = np.pad(image, 1, mode="edge")  # a pixel's own value for a missing neighbour changes no extreme
    height, width = image.shape
    result = image
    for down, right in steps:
        result = combine(result, padded[1 + down : 1 + down + height, 1 + right : 1 + right + width])
    return result


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
