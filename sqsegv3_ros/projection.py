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

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.parallel import share

EMPTY = -1.0  # what every channel of a pixel without a point holds
_FARTHEST = float(np.finfo(np.float32).max)  # metres; beyond lies infinity
_NO_POINT = 2**63 - 1  # larger than the key of any point
_WORTH_A_THREAD = 100_000  # points or pixels: 125,000 take one thread 4 ms, and two no less
_TURNED_TOGETHER = 4096  # points whose columns are taken apart at a time: they stay in the innermost cache meanwhile

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
    """

    channels: Tensor
    index: Tensor
    mask: Tensor
    pixel: Tensor
    point_range: Tensor
    usable: Tensor

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


def project(points: Tensor, config: ProjectionConfig, rings: Tensor | None = None) -> RangeImage:
    """Project points onto the sphere around the sensor.

    points: (N, 4) float32 x, y, z in metres in the sensor frame (x forward, y left, z up), remission; N may be 0.
    rings: (N,) integer ring numbers, needed where `config.rows` says so.
    The forward direction is the middle column, left lies at lower columns, row 0 is the top. Of several points in a
    pixel the nearest (or farthest) is kept; of equally near ones the later one. A remission that is not finite
    counts as 0. Raises UserError for points of another shape or type.
    """
    if points.ndim != 2 or points.shape[1] != 4 or points.dtype != torch.float32:
        raise UserError(f"points must be (N, 4) float32, found {tuple(points.shape)} {points.dtype}")
    if config.needs_rings:
        _check_rings(rings, len(points), config)
    # by channel, each contiguous: range, x, y, z, remission; the first column is what empty pixels hold
    columns = points.new_empty((5, len(points) + 1))
    columns[:, 0] = EMPTY
    point_range = columns[0, 1:]
    usable = torch.empty(len(points), dtype=torch.bool, device=points.device)
    pixel = torch.empty(len(points), dtype=torch.int64, device=points.device)
    key, winner, scratch = _workspace(len(points), config.height * config.width, points.device)

    def aim(begin: int, end: int) -> None:
        part = columns[:, 1 + begin : 1 + end]
        for first in range(begin, end, _TURNED_TOGETHER):
            last = min(first + _TURNED_TOGETHER, end)
            _copy(points[first:last].t(), columns[1:, 1 + first : 1 + last])
        part_rings = None if rings is None else rings[begin:end]
        _aim(part, config, part_rings, pixel[begin:end], usable[begin:end], scratch[:, begin:end])
        _order(part[0], usable[begin:end], len(points) - 1 - begin, config, key[begin:end])

    share(aim, len(points), _WORTH_A_THREAD)
    index = _winners(pixel, key, config)
    mask = _greater(index, -1)
    torch.add(index, 1, out=winner)
    channels = columns.new_empty((5, len(index)))

    def take(begin: int, end: int) -> None:
        for channel, column in zip(channels, columns, strict=True):
            torch.index_select(column, 0, winner[begin:end], out=channel[begin:end])

    share(take, len(index), _WORTH_A_THREAD)
    shape = (config.height, config.width)
    network_mask = _greater(index, 0) if config.official_mask else mask
    return RangeImage(channels.view(5, *shape), index.view(shape), network_mask.view(shape), pixel, point_range, usable)


# What follows writes into a few pieces of memory again and again, which stay in a core's cache: fresh memory for every
# intermediate result costs several times what the arithmetic does, most of all where the kernel has to map it first.

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
    key, winner, rest = kept[:words].split([points, pixels, 2 * points])
    return key, winner, rest.view(torch.float32)[: 3 * points].view(3, points)


def _aim(
    columns: Tensor, config: ProjectionConfig, rings: Tensor | None, pixel: Tensor, usable: Tensor, scratch: Tensor
) -> None:
    """(5, M) range, x, y, z, remission of points -> their ranges, their pixels, (M,) int64, and whether they can be
    used, (M,) bool. All but `rings` are written to; of the columns x, y and z stay as they are. scratch: (3, M)."""
    point_range, x, y, z, remission = columns.unbind(0)
    row, column, scratch = scratch.unbind(0)
    torch.mul(x, x, out=point_range)
    for axis in (y, z):
        point_range.add_(torch.mul(axis, axis, out=scratch))
    _sqrt(point_range)
    remission.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    usable.copy_(_greater(point_range, 0)).logical_and_(~_greater(point_range, _FARTHEST))
    # squares of less than 1e-19 m lose digits, so that a range may come out shorter than its z
    elevation = torch.div(z, point_range, out=row).clamp_(-1, 1).asin_()
    if config.outside_fov == "drop":
        up, down = math.radians(config.fov_up_deg), math.radians(config.fov_down_deg)
        usable.logical_and_(elevation <= up).logical_and_(elevation >= down)
    if config.needs_rings:
        assert rings is not None
        row, known = _row_from_ring(rings, config)
        usable.logical_and_(known)
    else:
        _to_row(elevation, config)
    _column(x, y, config.width, column, scratch)
    # float32 holds every pixel's number: there are at most 1024 x 16384 = 2**24
    row.mul_(config.width).add_(column)
    pixel.copy_(row if _all(usable) else row.masked_fill_(~usable, 0))


def _copy(source: Tensor, target: Tensor) -> None:
    """On a CPU by numpy, which takes half of torch's time where one of them lies scattered."""
    if target.device.type == "cpu":
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source)


def _greater(values: Tensor, bound: float) -> Tensor:
    """values > bound; False for NaN. On a CPU by numpy, which takes a tenth of torch's time to compare."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.greater(values.numpy(), values.numpy().dtype.type(bound)))
    return values > bound


def _all(flags: Tensor) -> bool:
    """Whether all are known to be True; a GPU is not asked, because the host would wait for it."""
    return flags.device.type == "cpu" and bool(flags.numpy().all())


def _sqrt(squares: Tensor) -> None:
    """In place, correctly rounded, as the release's numpy does and torch's float32 does not everywhere."""
    if squares.device.type == "cpu":
        np.sqrt(squares.numpy(), out=squares.numpy())
    else:
        squares.copy_(squares.double().sqrt_())


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
    return replace(image, channels=channels.masked_fill_(~mask, EMPTY), mask=mask)


def normalize(image: RangeImage, normalization: Normalization) -> Tensor:
    """The network's input: (1, 5, H, W) float32, (value - mean) / std by channel, exactly 0 in masked pixels."""
    channels, mask = image.channels.flatten(1), image.mask.flatten()
    means, stds = (constant(v, channels.device).view(5, 1) for v in (normalization.means, normalization.stds))
    result = torch.empty_like(channels)

    def work(begin: int, end: int) -> None:
        part = result[:, begin:end]
        torch.sub(channels[:, begin:end], means, out=part).div_(stds).mul_(mask[begin:end])

    share(work, len(mask), _WORTH_A_THREAD)
    return result.view(1, *image.channels.shape)


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


# Rows and columns are whole numbers in float32, in the release's order of operations; NaN where a point is unusable.


def _column(x: Tensor, y: Tensor, width: int, column: Tensor, scratch: Tensor) -> None:
    """The columns of points at x, y, written into `column`."""
    u = _azimuth_position(torch.atan2(y, x, out=scratch), width)
    torch.floor(u, out=column)
    if u.device.type == "cpu":
        # The release rounds as the C library does, torch's quick arctangent in the last bit otherwise. That matters for
        # the few points at a column's edge; for those that lie apart in memory torch calls the C library too.
        near_edge = _greater(u.sub_(column).sub_(0.5).abs_(), 0.5 - 1e-6 * width)
        at_edge = torch.from_numpy(np.flatnonzero(near_edge.numpy()))
        apart = torch.stack([y[at_edge], x[at_edge]], 1)
        column.index_copy_(0, at_edge, _azimuth_position(torch.atan2(apart[:, 0], apart[:, 1]), width).floor_())
    column.clamp_(0, width - 1)


def _azimuth_position(azimuth: Tensor, width: int) -> Tensor:
    """In place."""
    return azimuth.div_(-math.pi).add_(1.0).mul_(0.5 * width)  # a factor of 0.5 does not round


def _to_row(elevation: Tensor, config: ProjectionConfig) -> None:
    """In place."""
    down = abs(math.radians(config.fov_down_deg))
    fov = abs(math.radians(config.fov_up_deg)) + down
    if config.fov_up_deg < 0 or config.fov_down_deg > 0:  # one-sided: the release's magnitudes would not hold
        down = -math.radians(config.fov_down_deg)
        fov = math.radians(config.fov_up_deg - config.fov_down_deg)
    from_top = elevation.add_(down).div_(-fov).add_(1.0)
    from_top.mul_(config.height).floor_().clamp_(0, config.height - 1)


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


def _order(point_range: Tensor, usable: Tensor, later: int, config: ProjectionConfig, key: Tensor) -> None:
    """Of the points in a pixel the one with the smallest key keeps it: (M,) int64, written into `key`.

    later: how many points come after the first of these.
    """
    # A positive float orders like its bits: range and index in one integer make the minimum exact, free of the
    # order of writing and equal on every device. The later of equally near points wins, as in the release.
    bits = point_range.view(torch.int32)
    if config.keep == "farthest":
        bits = 0x7F800000 - bits
    halves = key.view(torch.int32).view(-1, 2)
    lower, upper = (halves[:, 0], halves[:, 1]) if sys.byteorder == "little" else (halves[:, 1], halves[:, 0])
    _copy(torch.arange(later, later - len(key), -1, dtype=torch.int32, device=key.device), lower)
    _copy(bits, upper)
    if not _all(usable):
        key.masked_fill_(~usable, _NO_POINT)


def _winners(pixel: Tensor, key: Tensor, config: ProjectionConfig) -> Tensor:
    """(H * W,) int64: the point that keeps each pixel, -1 where there is none."""
    best = torch.full((config.height * config.width,), _NO_POINT, dtype=torch.int64, device=pixel.device)
    best.scatter_reduce_(0, pixel, key, "amin")
    # the lower half of _NO_POINT is larger than any count
    return best.bitwise_and_(0xFFFFFFFF).neg_().add_(len(pixel) - 1).clamp_(min=-1)


def _from_dict(cls: type, data: Mapping[str, Any], what: str) -> Any:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise UserError(f"{what}: unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except TypeError as error:
        raise UserError(f"{what}: {error}") from error
