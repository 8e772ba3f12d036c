"""Spherical projection: points come in, the LiDAR image (range, x, y, z, remission by pixel) goes out.

Plain torch, on any device. Equation 1 of the paper with the release's reading of the field of view (the printed f_up
belongs to the lower limit).
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sqsegv3_ros.aiming import Image, Points, View, fill_in
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.parallel import share

EMPTY = -1.0  # what every channel of a pixel without a point holds
_WORTH_A_THREAD = 60_000  # pixels

KEEP = ("nearest", "farthest")
OUTSIDE_FOV = ("clamp", "drop")
ROWS = ("elevation", "ring_from_bottom", "ring_from_top")


@dataclass(frozen=True)
class ProjectionConfig:
    """How points become an image.

    height, width: pixels; the width must be divisible by 8 (the network halves it three times).
    fov_up_deg, fov_down_deg: elevation of the upper edge of the first row and of the lower edge of the last one.
    keep: which of several points in one pixel the network sees: 'nearest' (release) or 'farthest' (paper).
    outside_fov: points above or below the field of view go into the edge rows ('clamp', release) or stay without a
        label ('drop').
    rows: the row of a point comes from its elevation, or from its ring number where beams are uneven: ring 0 lies at
        the bottom (Velodyne) or at the top (Ouster). The rings are spread evenly over the rows.
    ring_count: number of rings of the sensor; None: as many as the image has rows.
    fill_rows: what the network sees in a pixel without a point: the nearest pixel above or below that has one, at most
        so many rows away; 0: nothing. For sensors whose beams lie further apart than those that the model learned from.
    official_mask: reproduce the release's mask, which drops the pixel won by point 0.
    """

    height: int = 64
    width: int = 2048
    fov_up_deg: float = 3.0
    fov_down_deg: float = -25.0
    keep: str = "nearest"
    outside_fov: str = "clamp"
    rows: str = "elevation"
    ring_count: int | None = None
    fill_rows: int = 0
    official_mask: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.height <= 1024:
            raise UserError(f"image height must lie in 1..1024, found {self.height}")
        if not 8 <= self.width <= 16384 or self.width % 8:
            raise UserError(f"image width must be a multiple of 8 in 8..16384, found {self.width}")
        if not (math.isfinite(self.fov_up_deg) and math.isfinite(self.fov_down_deg)):
            raise UserError(f"the field of view must be finite, found {self.fov_down_deg}..{self.fov_up_deg} deg")
        if not -90.0 <= self.fov_down_deg < self.fov_up_deg <= 90.0:
            raise UserError(
                "the field of view must satisfy -90 <= fov_down_deg < fov_up_deg <= 90, "
                f"found {self.fov_down_deg}..{self.fov_up_deg}"
            )
        for name, allowed in (("keep", KEEP), ("outside_fov", OUTSIDE_FOV), ("rows", ROWS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, found '{getattr(self, name)}'")
        if self.ring_count is not None and not 1 <= self.ring_count <= 1024:
            raise UserError(f"ring_count must lie in 1..1024, found {self.ring_count}")
        if not 0 <= self.fill_rows <= 1024:
            raise UserError(f"fill_rows must lie in 0..1024, found {self.fill_rows}")

    @property
    def needs_rings(self) -> bool:
        """Whether points need their ring number."""
        return self.rows != "elevation"

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProjectionConfig:
        """The inverse of `to_dict`. Raises UserError naming an unknown or malformed setting."""
        return _from_dict(cls, data, "projection")


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel: range, x, y, z (metres), remission."""

    means: tuple[float, float, float, float, float] = (12.12, 10.88, 0.23, -1.04, 0.21)
    stds: tuple[float, float, float, float, float] = (12.32, 11.47, 6.91, 0.86, 0.16)

    def __post_init__(self) -> None:
        for name in ("means", "stds"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 5 or not all(math.isfinite(v) for v in values):
                raise UserError(f"{name} must be five finite numbers (range, x, y, z, remission), found {values}")
            object.__setattr__(self, name, values)
        if min(self.stds) <= 0:
            raise UserError(f"stds must be greater than 0, found {self.stds}")

    def to_dict(self) -> dict[str, Any]:
        """The statistics as plain JSON types."""
        return {"means": list(self.means), "stds": list(self.stds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalization:
        """The inverse of `to_dict`. Raises UserError naming an unknown or malformed entry."""
        return _from_dict(cls, data, "normalization")


@dataclass
class RangeImage:
    """A LiDAR image and the way back to its points. Every tensor lies on the points' device.

    channels: (5, H, W) float32: range, x, y, z in metres in the sensor frame, remission; -1 in empty pixels.
    index: (H, W) int64, the point whose values the pixel holds; -1 where empty.
    mask: (H, W) bool, whether the network sees the pixel.
    pixel: (N,) int64, row * W + column of each point; 0 for points that cannot be used.
    point_range: (N,) float32, metres.
    usable: (N,) bool, False for NaN, Inf, (0, 0, 0), a ring that the sensor does not have, or, where
        outside_fov is 'drop', a point above or below the field of view.
    normalized: (5, H, W) float32, what `normalize` makes of `channels`, where `project` was asked for it.
    """

    channels: Tensor
    index: Tensor
    mask: Tensor
    pixel: Tensor
    point_range: Tensor
    usable: Tensor
    normalized: Tensor | None = None

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.channels.shape[1]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.channels.shape[2]

    @property
    def range(self) -> Tensor:
        """(H, W) float32 range in metres, -1 where empty."""
        return self.channels[0]

    @property
    def xyz(self) -> Tensor:
        """(3, H, W) float32 coordinates in metres in the sensor frame, -1 where empty."""
        return self.channels[1:4]

    @property
    def remission(self) -> Tensor:
        """(H, W) float32 remission, -1 where empty."""
        return self.channels[4]

    @property
    def px(self) -> Tensor:
        """(N,) int64 column of each point."""
        return self.pixel % self.width

    @property
    def py(self) -> Tensor:
        """(N,) int64 row of each point."""
        return self.pixel // self.width


def project(
    points: Tensor,
    config: ProjectionConfig,
    rings: Tensor | None = None,
    normalization: Normalization | None = None,
    threads: int = 1,
) -> RangeImage:
    """Project points onto the sphere around the sensor.

    points: (N, 4) float32 x, y, z in metres in the sensor frame (x forward, y left, z up), remission; N may be 0.
    rings: (N,) integer ring numbers, needed where `config.rows` says so. normalization: makes `normalized` in the same
    pass, which is quicker than `normalize` afterwards.
    The forward direction is the middle column, left lies at lower columns, row 0 is the top. Of several points in a
    pixel the nearest (or farthest) is kept; of equally near ones the later one. A remission that is not finite
    counts as 0. Raises UserError for points of another shape or type.
    """
    if points.ndim != 2 or points.shape[1] != 4 or points.dtype != torch.float32:
        raise UserError(f"points must be (N, 4) float32, found {tuple(points.shape)} {points.dtype}")
    if config.needs_rings:
        _check_rings(rings, len(points), config)
    count, pixels, device = len(points), config.height * config.width, points.device
    # by channel, each contiguous: range, x, y, z, remission; the first column is what empty pixels hold
    columns = points.new_empty((5, count + 1))
    columns[:, 0] = EMPTY
    usable = torch.empty(count, dtype=torch.bool, device=device)
    pixel = torch.empty(count, dtype=torch.int64, device=device)
    key, best, scratch = _workspace(count, pixels, device)
    given_row, known = (None, None) if rings is None or not config.needs_rings else _row_from_ring(rings, config)
    bits = columns.view(torch.int32)[0, 1:]
    aimed = Points(points, columns, bits, key, *_halves(key), pixel, usable, scratch, given_row, known)

    means, stds = _statistics(normalization or Normalization(), device)
    image = Image(
        best,
        _halves(best)[0],
        torch.empty(pixels, dtype=torch.int64, device=device),
        torch.empty(pixels, dtype=torch.bool, device=device),
        columns.new_empty((5, pixels)),
        columns.new_empty((5, pixels)) if normalization else None,
        means,
        stds,
    )
    fill_in(aimed, image, _view(config, device.type == "cpu"))
    size = (config.height, config.width)
    return RangeImage(
        image.channels.view(5, *size),
        image.point.view(size),
        image.mask.view(size),
        pixel,
        columns[0, 1:],
        usable,
        None if image.normal is None else image.normal.view(5, *size),
    )


# What lies between points and image is written into memory that its thread keeps: fresh memory for every intermediate
# result costs several times what the arithmetic does, most of all where the kernel has to map it first.

_kept = threading.local()
_KEPT_WORDS = 1 << 20  # 8 MB: 300,000 points in an image of 64 x 2048


def _workspace(points: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(points,) int64, (pixels,) int64 and (3, points) float32, uninitialised. On a CPU the thread's next call gets the
    same memory, unless it is much; a GPU's memory is kept by torch."""
    words = 3 * points + pixels
    if device.type == "cpu" and words <= _KEPT_WORDS:
        if getattr(_kept, "words", None) is None or len(_kept.words) < words:
            with torch.inference_mode(False):
                _kept.words = torch.empty(words, dtype=torch.int64)
        kept: Tensor = _kept.words
    else:
        kept = torch.empty(words, dtype=torch.int64, device=device)
    key, best, rest = kept[:words].split([points, pixels, 2 * points])
    return key, best, rest.view(torch.float32)[: 3 * points].view(3, points)


def _halves(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) int64 -> their lower and their upper halves, (M,) int32, as views."""
    lower, upper = keys.view(torch.int32).view(-1, 2).unbind(1)
    return (lower, upper) if sys.byteorder == "little" else (upper, lower)


def _view(config: ProjectionConfig, on_cpu: bool) -> View:
    lowest, highest = math.radians(config.fov_down_deg), math.radians(config.fov_up_deg)
    down = abs(lowest)
    fov = abs(highest) + down
    if config.fov_up_deg < 0 or config.fov_down_deg > 0:  # one-sided: the release's magnitudes would not hold
        down, fov = -lowest, math.radians(config.fov_up_deg - config.fov_down_deg)
    if config.outside_fov != "drop":
        lowest, highest = -math.inf, math.inf
    keep_farthest = config.keep == "farthest"
    return View(config.height, config.width, down, fov, lowest, highest, keep_farthest, config.official_mask, on_cpu)


def fill_gaps(image: RangeImage, rows: int) -> RangeImage:
    """The image as the network sees it: an empty pixel takes what the nearest one above or below with a point holds.

    rows: how far away that pixel may lie; of two that are equally near it is the upper one. The points and the way back
    to them (`index`, `pixel`) stay as they are.
    """
    if not rows:
        return image
    height = image.height
    row = torch.arange(height, device=image.mask.device).view(-1, 1)
    above = torch.where(image.mask, row, -2 * height).cummax(0).values
    below = torch.where(image.mask, row, 3 * height).flip(0).cummin(0).values.flip(0)
    source = torch.where(row - above <= below - row, above, below)
    mask = (source - row).abs() <= min(rows, height)
    channels = image.channels.gather(1, source.clamp(0, height - 1).expand_as(image.channels))
    return replace(image, channels=channels.masked_fill_(~mask, EMPTY), mask=mask, normalized=None)


def normalize(image: RangeImage, normalization: Normalization) -> Tensor:
    """The network's input: (1, 5, H, W) float32, (value - mean) / std by channel, exactly 0 in masked pixels."""
    channels, mask = image.channels.flatten(1), image.mask.flatten()
    means, stds = (v.view(5, 1) for v in _statistics(normalization, channels.device))
    result = torch.empty_like(channels)

    def work(begin: int, end: int) -> None:
        part = result[:, begin:end]
        torch.sub(channels[:, begin:end], means, out=part).div_(stds).mul_(mask[begin:end])

    share(work, len(mask), _WORTH_A_THREAD)
    return result.view(1, *image.channels.shape)


def _statistics(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    return constant(normalization.means, device), constant(normalization.stds, device)


@lru_cache(64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small float32 tensor, made once for each device: to make it anew would let the host wait for a GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def restore(image_values: Tensor, image: RangeImage, fill: float = 0) -> Tensor:
    """The inverse of the projection: every point takes its pixel's value.

    image_values: (H, W) or (C, H, W). Returns (N,) or (C, N); points that cannot be used take `fill`.
    """
    values = image_values.flatten(-2).index_select(-1, image.pixel)
    return values.masked_fill(~image.usable, fill)


def _check_rings(rings: Tensor | None, count: int, config: ProjectionConfig) -> None:
    if rings is None:
        raise UserError(f"rows '{config.rows}' need the points' ring numbers, found none; set rows to 'elevation'")
    if rings.shape != (count,):
        raise UserError(f"rings must be ({count},), found {tuple(rings.shape)}")


def _row_from_ring(rings: Tensor, config: ProjectionConfig) -> tuple[Tensor, Tensor]:
    ring_count = config.ring_count or config.height
    rings = rings.to(torch.int64)
    known = (rings >= 0) & (rings < ring_count)
    from_top = rings if config.rows == "ring_from_top" else ring_count - 1 - rings
    row = torch.div(from_top * config.height, ring_count, rounding_mode="floor")
    return row.clamp_(0, config.height - 1).to(torch.float32), known


def _from_dict(cls: type, data: Mapping[str, Any], what: str) -> Any:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise UserError(f"{what}: unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except TypeError as error:
        raise UserError(f"{what}: {error}") from error
