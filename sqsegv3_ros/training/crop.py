# SPDX-License-Identifier: Apache-2.0
"""Crops: windows of azimuth at full angular resolution, so that small machines can train."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from sqsegv3_ros.errors import require
from sqsegv3_ros.inference.range_image import RangeImage
from sqsegv3_ros.network.config import WIDTH_DIVISOR
from sqsegv3_ros.training.augment import Labels, Points, in_sector

MARGIN_COLUMNS = 4
"""Columns kept on either side until projection, because jitter may move a point into the next column."""


@dataclass(frozen=True)
class CropWindow:
    """Columns `start` to `start + width` of an image.

    Attributes:
        start: First column.
        width: Number of columns.
        full_width: Columns of the whole image.
    """

    start: int
    width: int
    full_width: int

    @property
    def sector(self) -> tuple[float, float]:
        """Start and width of the azimuth range, radians counter-clockwise from +x; column 0 looks backwards (+pi)."""
        per_column = 2 * math.pi / self.full_width
        return math.pi - (self.start + self.width) * per_column, self.width * per_column

    def crop_points(self, points: Points, labels: Labels) -> tuple[Points, Labels]:
        """Keep the points of the window and of a margin on either side."""
        start, width = self.sector
        margin = MARGIN_COLUMNS * 2 * math.pi / self.full_width
        if width + 2 * margin >= 2 * math.pi:
            return points.copy(), labels
        keep = in_sector(points, start - margin, width + 2 * margin)
        return points[keep], labels[keep]

    def crop_image(self, image: RangeImage) -> tuple[Tensor, Tensor, Tensor]:
        """Cut channels (5, H, width), mask (H, width) and index (H, width) out of a whole image."""
        columns = slice(self.start, self.start + self.width)
        return image.channels[:, :, columns], image.mask[:, columns], image.index[:, columns]


def choose_window(full_width: int, crop_width: int | None, rng: np.random.Generator) -> CropWindow:
    """Draw a random window; the whole image if `crop_width` is None."""
    if crop_width is None:
        return CropWindow(0, full_width, full_width)
    return CropWindow(int(rng.integers(full_width - crop_width + 1)), crop_width, full_width)


def check_crop(crop_width: int | None, full_width: int) -> None:
    """Check that a crop fits the image and the network.

    Raises:
        UserError: The width is too large, too small or not a multiple of `WIDTH_DIVISOR`.
    """
    if crop_width is None:
        return
    valid = WIDTH_DIVISOR <= crop_width <= full_width and crop_width % WIDTH_DIVISOR == 0
    expected = f"a multiple of {WIDTH_DIVISOR} in {WIDTH_DIVISOR}..{full_width} (the image's width)"
    require(valid, "data: crop_width", expected, crop_width)


def set_azimuth_padding(network: nn.Module, circular: bool) -> None:
    """Switch the padding of all layers: circular for whole turns, zero for crops.

    The configuration of the network stays as it is: coordinates are downsampled alike in crops and whole images.
    """
    for module in network.modules():
        if hasattr(module, "circular"):
            setattr(module, "circular", circular)  # noqa: B010 (not declared by every kind of layer)
