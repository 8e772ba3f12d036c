"""A full turn comes in, a window of azimuth at full angular resolution goes out, so that small machines can train."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import RangeImage
from sqsegv3_ros.network.config import WIDTH_DIVISOR
from sqsegv3_ros.training.augment import Labels, Points, in_sector

MARGIN_COLUMNS = 4
"""Columns kept on either side until projection, because jitter may still move a point into the next one."""


@dataclass(frozen=True)
class Window:
    """Columns `start` to `start + width` of an image of `full_width` columns."""

    start: int
    width: int
    full_width: int

    @property
    def sector(self) -> tuple[float, float]:
        """(start, width) of the azimuths seen, radians counter-clockwise from +x; column 0 looks backwards (+pi)."""
        per_column = 2 * math.pi / self.full_width
        return math.pi - (self.start + self.width) * per_column, self.width * per_column

    def points(self, points: Points, labels: Labels) -> tuple[Points, Labels]:
        """The points that may fall into the window, some of either side's neighbours included."""
        start, width = self.sector
        margin = MARGIN_COLUMNS * 2 * math.pi / self.full_width
        if width + 2 * margin >= 2 * math.pi:
            return points.copy(), labels
        kept = in_sector(points, start - margin, width + 2 * margin)
        return points[kept], labels[kept]

    def image(self, image: RangeImage) -> tuple[Tensor, Tensor, Tensor]:
        """The window's channels (5, H, width), mask (H, width) and index (H, width)."""
        columns = slice(self.start, self.start + self.width)
        return image.channels[:, :, columns], image.mask[:, columns], image.index[:, columns]


def choose_window(full_width: int, crop_width: int | None, rng: np.random.Generator) -> Window:
    """A random window; the whole image where crop_width is None."""
    if crop_width is None:
        return Window(0, full_width, full_width)
    return Window(int(rng.integers(full_width - crop_width + 1)), crop_width, full_width)


def check_crop(crop_width: int | None, full_width: int) -> None:
    """Raises UserError where a crop does not fit the image or the network."""
    if crop_width is None:
        return
    if not WIDTH_DIVISOR <= crop_width <= full_width or crop_width % WIDTH_DIVISOR:
        raise UserError(
            f"data: crop_width must be a multiple of {WIDTH_DIVISOR} in {WIDTH_DIVISOR}..{full_width} "
            f"(the image's width), found {crop_width}"
        )


def set_azimuth_padding(network: nn.Module, circular: bool) -> None:
    """Whether the layers see the other edge beyond the left and right one; a crop has no other edge.

    The network itself keeps its kind: how it narrows coordinates must be the same in crops and whole images.
    """
    for module in network.modules():
        if module is not network and hasattr(module, "circular"):
            setattr(module, "circular", circular)  # noqa: B010 (not declared by every kind of layer)
