"""A label image goes in, the mask of the pixels near a border between classes comes out: where border IoU is evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import ProjectionConfig

_STRAIGHT = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def border_mask(label_image: npt.NDArray[Any], pixels: int = 1, connectivity: int = 4) -> npt.NDArray[np.bool_]:
    """Mark the pixels of a label image that lie within `pixels` steps of a border between two classes.

    label_image: (H, W) integers, 0 where there is no point or it is unlabeled. connectivity: 4 or 8, the neighbours
    that one step reaches. Returns (H, W) bool. Raises UserError where the settings make no sense.

    The official release erodes every class, unlabeled pixels counted in, and calls border what no class keeps. That is
    the same as: the neighbourhood holds two different classes (0 is none), or reaches beyond the image. So the lowest
    and the highest class of the neighbourhood tell, without a channel per class.
    """
    if pixels < 1 or connectivity not in (4, 8):
        raise UserError(f"border needs pixels >= 1 and connectivity 4 or 8, found {pixels} and {connectivity}")
    steps = _STRAIGHT if connectivity == 4 else _STRAIGHT + _DIAGONAL
    highest = label_image.astype(np.int32)
    lowest = np.where(highest == 0, np.iinfo(np.int32).max, highest)
    for _ in range(pixels):
        highest = _over_neighbours(np.maximum, highest, steps)
        lowest = _over_neighbours(np.minimum, lowest, steps)
    border = lowest < highest
    border[:pixels] = border[-pixels:] = True
    border[:, :pixels] = border[:, -pixels:] = True
    return border


def _over_neighbours(
    combine: np.ufunc, image: npt.NDArray[Any], steps: tuple[tuple[int, int], ...]
) -> npt.NDArray[Any]:
    """Combine every pixel with its neighbours inside the image."""
    padded = np.pad(image, 1, mode="edge")  # a pixel's own value where a neighbour is missing: changes no extreme
    height, width = image.shape
    result = image
    for down, right in steps:
        result = combine(result, padded[1 + down : 1 + down + height, 1 + right : 1 + right + width])
    return result


def points_at_border(
    points: npt.NDArray[np.float32],
    ground_truth: npt.NDArray[Any],
    pixels: int = 1,
    connectivity: int = 4,
    projection: ProjectionConfig | None = None,
) -> npt.NDArray[np.bool_]:
    """Which points of a scan lie in a pixel near a border between two true classes.

    points: (N, 4) float32 x, y, z in metres, remission. ground_truth: (N,) labels, 0 where unlabeled. projection: how
    the label image is made; the release's 64 x 2048, +3 to -25 degrees, if not given. Returns (N,) bool, False for
    points that cannot be projected.
    """
    import torch

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    image = project(torch.from_numpy(points), projection or ProjectionConfig())
    index = image.index.numpy()
    label_image = np.where(index >= 0, ground_truth[np.maximum(index, 0)], 0) if len(points) else np.zeros_like(index)
    at_border = border_mask(label_image, pixels, connectivity)
    return at_border.reshape(-1)[image.pixel.numpy()] & image.usable.numpy()
