# SPDX-License-Identifier: Apache-2.0
"""Spherical projection of a scan (Eq. 1 of the paper) and its inverse.

The field of view is read as the reference implementation reads it: the printed f_up is the lower limit's magnitude.
Arithmetic is float32 in the reference implementation's order, so that every point gets the same pixel.

The same lines run on numpy arrays, for points on the CPU, and on tensors of other devices: they use functions that both
libraries have. On a device the host never waits for a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError, require

EMPTY = -1.0  # the value of every channel in a pixel without a point
KEEP = ("nearest", "farthest")
OUTSIDE_FOV = ("clamp", "drop")
ROWS = ("elevation", "ring_from_bottom", "ring_from_top")

_INFINITY_BITS = 0x7F800000  # of a float32


@dataclass(frozen=True)
class ProjectionConfig:
    """How points become a range image.

    Attributes:
        height: Rows of the image.
        width: Columns of the image, a multiple of 8 (the network halves it three times).
        fov_up_deg: Elevation of the upper edge of the first row.
        fov_down_deg: Elevation of the lower edge of the last row.
        keep: The point that keeps a pixel: 'nearest' (reference implementation) or 'farthest' (paper).
        outside_fov: Points above or below the field of view go into the edge rows ('clamp', reference implementation)
            or get no label ('drop').
        rows: A point's row comes from its 'elevation' or, for sensors with uneven beams, from its ring number: ring 0
            is the lowest ('ring_from_bottom', Velodyne) or the highest ('ring_from_top', Ouster). Rings are spread
            evenly over the rows.
        ring_count: Rings of the sensor; None: one per row.
        fill_rows: The network sees an empty pixel as the nearest filled one above or below, up to this many rows away.
            For sensors with fewer beams than the model's training data.
        official_mask: Reproduce the reference implementation's mask, which drops the pixel won by point 0.
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
            raise UserError(f"image height must be in 1..1024, found {self.height}")
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
            raise UserError(f"ring_count must be in 1..1024, found {self.ring_count}")
        if not 0 <= self.fill_rows <= 1024:
            raise UserError(f"fill_rows must be in 0..1024, found {self.fill_rows}")

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
        return settings_from_dict(cls, data, "projection")


@dataclass(frozen=True)
class Normalization:
    """Statistics that normalise the image's channels: range, x, y, z (metres), remission.

    Attributes:
        means: Mean of each channel.
        stds: Standard deviation of each channel.
        remission_exponent: Power to which the remission is raised first, which brings that of a sensor closer to the
            training data's.
    """

    means: tuple[float, float, float, float, float] = (12.12, 10.88, 0.23, -1.04, 0.21)
    stds: tuple[float, float, float, float, float] = (12.32, 11.47, 6.91, 0.86, 0.16)
    remission_exponent: float = 1.0

    def __post_init__(self) -> None:
        for name in ("means", "stds"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 5 or not all(math.isfinite(v) for v in values):
                raise UserError(f"{name} must be five finite numbers (range, x, y, z, remission), found {values}")
            object.__setattr__(self, name, values)
        if min(self.stds) <= 0:
            raise UserError(f"stds must be greater than 0, found {self.stds}")
        require(
            math.isfinite(self.remission_exponent) and self.remission_exponent > 0,
            "remission_exponent",
            "a finite number above 0",
            self.remission_exponent,
        )

    def to_dict(self) -> dict[str, Any]:
        """The statistics as plain JSON types."""
        return {"means": list(self.means), "stds": list(self.stds), "remission_exponent": self.remission_exponent}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalization:
        """The inverse of `to_dict`. Raises UserError naming an unknown or malformed entry."""
        return settings_from_dict(cls, data, "normalization")


@dataclass
class RangeImage:
    """A range image and the way back to its points. All tensors are on the points' device.

    Attributes:
        channels: (5, H, W) float32 range, x, y, z in metres in the sensor frame, remission; -1 in empty pixels.
        index: (H, W) int64 point whose values the pixel holds; -1 if empty.
        mask: (H, W) bool, False in pixels that the network sees as 0.
        pixel: (N,) int64 row * W + column of each point; 0 for unusable points.
        point_range: (N,) float32 range of each point in metres.
        usable: (N,) bool, False for NaN, Inf, (0, 0, 0), rings that the sensor does not have and, if `outside_fov` is
            'drop', points above or below the field of view.
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
        """(H, W) float32 range in metres, -1 if empty."""
        return self.channels[0]

    @property
    def xyz(self) -> Tensor:
        """(3, H, W) float32 coordinates in metres in the sensor frame, -1 if empty."""
        return self.channels[1:4]

    @property
    def remission(self) -> Tensor:
        """(H, W) float32 remission, -1 if empty."""
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

    Forward is the middle column, left is at lower columns, row 0 is the top. Of several points in a pixel the nearest
    (or farthest) is kept; of equally near ones the later.

    Args:
        points: (N, 4) float32 x, y, z in metres in the sensor frame (x forward, y left, z up), remission; N may be 0.
            A remission that is not finite counts as 0.
        config: The image.
        rings: (N,) integer ring numbers, needed if `config.rows` says so.

    Returns:
        The image, on the points' device.

    Raises:
        UserError: The points or rings have another shape or type.
    """
    if points.ndim != 2 or points.shape[1] != 4 or points.dtype != torch.float32:
        raise UserError(f"points must be (N, 4) float32, found {tuple(points.shape)} {points.dtype}")
    ring_rows = _rows_of_rings(rings, len(points), config) if config.needs_rings else None
    columns, pixel, usable = compute_pixels(points, ring_rows, config)
    return rasterize(columns, pixel, usable, config)


def compute_pixels(points: Tensor, ring_rows: Tensor | None, config: ProjectionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Each point's channels and pixel.

    Args:
        points: (N, 4) float32 x, y, z, remission.
        ring_rows: (N,) float32 row of each point, -1 for unknown rings; None: rows come from elevation.
        config: The image.

    Returns:
        (5, N + 1) float32 range, x, y, z, remission after a first column of `EMPTY`, (N,) int64 pixels and (N,) bool
        whether the point is usable, as in `RangeImage`.
    """
    xp, source = library(points), array(points)
    lowest, highest = math.radians(config.fov_down_deg), math.radians(config.fov_up_deg)
    down, fov = abs(lowest), abs(highest) + abs(lowest)
    if lowest > 0 or highest < 0:  # the reference implementation's magnitudes do not hold
        down, fov = -lowest, highest - lowest
    columns = points.new_empty((5, len(points) + 1))
    target = array(columns)
    target[:, 0] = EMPTY
    target[1:, 1:] = source.T
    point_range, x, y, z, remission = target[:, 1:]
    with np.errstate(all="ignore"):  # NaN, Inf and (0, 0, 0) go along, and come out as unusable
        remission[:] = xp.where(xp.isfinite(remission), remission, 0.0)
        point_range[:] = xp.sqrt(x * x + y * y + z * z)
        usable = (point_range > 0) & (point_range < math.inf)
        # squares below 1e-38 lose digits: the range of such points may be smaller than their z
        elevation = xp.arcsin(xp.clip(z / point_range, -1, 1))
        if config.outside_fov == "drop":
            usable &= (elevation >= lowest) & (elevation <= highest)
        if ring_rows is None:
            row = xp.clip(xp.floor((1 - (elevation + down) / fov) * config.height), 0, config.height - 1)
        else:
            row = array(ring_rows)
            usable &= row >= 0
        position = _positions(xp.arctan2(y, x), config.width)
        column = xp.floor(position)
        if xp is np:
            # numpy's vectorized arctangent differs from the C library's in the last bit, which matters at column edges.
            # The reference implementation has the C library's; torch calls it for values that are apart in memory.
            edge = np.flatnonzero(np.abs(position - column - 0.5) > 0.5 - 1e-6 * config.width)
            at_edge = torch.from_numpy(source[edge])
            azimuth = torch.atan2(at_edge[:, 1], at_edge[:, 0]).numpy()
            column[edge] = np.floor(_positions(azimuth, config.width))
        # float32 holds every pixel number: there are at most 1024 * 16384 = 2**24
        pixel = row * config.width + xp.clip(column, 0, config.width - 1)
        pixel = xp.asarray(pixel, dtype=xp.int64) * usable
    return columns, torch.as_tensor(pixel), torch.as_tensor(usable)


def rasterize(columns: Tensor, pixel: Tensor, usable: Tensor, config: ProjectionConfig) -> RangeImage:
    """The image whose pixels hold the channels of the points that keep them, from the results of `compute_pixels`."""
    xp, size = library(pixel), (config.height, config.width)
    # A point's range and column in one integer: the maximum in a pixel is exact, whatever the order of writing.
    # Positive floats order like their bits; of equally near points the later wins; 0, the `EMPTY` column, loses to all.
    bits = xp.asarray(array(columns[0, 1:]).view(xp.int32), dtype=xp.int64)
    key = torch.arange(1, len(pixel) + 1, device=pixel.device)
    keys = array(key)
    keys += (bits if config.keep == "farthest" else _INFINITY_BITS - bits) << 32
    keys *= array(usable)
    winner = torch.zeros(config.height * config.width, dtype=torch.int64, device=pixel.device)
    winner.scatter_reduce_(0, pixel, key, "amax")
    winners = array(winner)
    winners &= 0xFFFFFFFF
    channels = columns.new_empty((5, len(winner)))
    for values, channel in zip(columns, channels, strict=True):
        torch.index_select(values, 0, winner, out=channel)
    index = torch.as_tensor(winners - 1)
    mask = torch.as_tensor(winners > (1 if config.official_mask else 0))
    return RangeImage(channels.view(5, *size), index.view(size), mask.view(size), pixel, columns[0, 1:], usable)


def normalize(image: RangeImage, normalization: Normalization) -> Tensor:
    """The network's input: (1, 5, H, W) float32, (value - mean) / std by channel, exactly 0 in masked pixels.

    The remission is raised to its exponent first.
    """
    xp, channels = library(image.channels), array(image.channels)
    means, stds = (
        array(constant(values, image.channels.device).view(5, 1, 1))
        for values in (normalization.means, normalization.stds)
    )
    result = torch.empty_like(image.channels)
    values = array(result)
    if normalization.remission_exponent != 1.0:
        channels = xp.stack([*channels[:4], channels[4].clip(0, None) ** normalization.remission_exponent])
    xp.subtract(channels, means, out=values)
    values /= stds
    values *= array(image.mask)
    return result[None]


def mirror(image: RangeImage) -> RangeImage:
    """The image of the scene mirrored left to right (y to -y); its points and the way back to them stay as they are."""
    channels = image.channels.flip(2)
    channels[2].neg_()
    return replace(image, channels=channels, mask=image.mask.flip(1))


def fill_gaps(image: RangeImage, rows: int) -> RangeImage:
    """The image for the network: an empty pixel takes the values of the nearest filled one above or below.

    Args:
        image: The image; its points and the way back to them (`index`, `pixel`) stay as they are.
        rows: How far away the filled pixel may be; of two equally near ones the upper is taken.
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


def restore(image_values: Tensor, image: RangeImage, fill: float = 0) -> Tensor:
    """The inverse of the projection: every point gets its pixel's value.

    Args:
        image_values: (H, W) or (C, H, W).
        image: The image.
        fill: Value of unusable points.

    Returns:
        (N,) or (C, N).
    """
    values = image_values.flatten(-2).index_select(-1, image.pixel)
    return values.masked_fill(~image.usable, fill)


@lru_cache(64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small float32 tensor, copied once per device, as each copy would make the host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def library(tensor: Tensor) -> Any:
    """The library that computes with the tensor's values: numpy for the CPU, torch for other devices."""
    return np if tensor.device.type == "cpu" else torch


def array(tensor: Tensor) -> Any:
    """The tensor as an array of its `library`, in the same memory."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def settings_from_dict(cls: type, data: Mapping[str, Any], what: str) -> Any:
    """An instance of a settings dataclass from plain JSON types. Raises UserError naming a wrong setting of `what`."""
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise UserError(f"{what}: unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except TypeError as error:
        raise UserError(f"{what}: {error}") from error


def _positions(azimuth: Any, width: int) -> Any:
    """Azimuths in radians -> float32 column positions, from the left edge of the image."""
    return (1 - azimuth / math.pi) * (0.5 * width)


def _rows_of_rings(rings: Tensor | None, count: int, config: ProjectionConfig) -> Tensor:
    """(N,) float32 row of each point; -1 for rings that the sensor does not have."""
    if rings is None:
        raise UserError(f"rows '{config.rows}' need the points' ring numbers, found none; set rows to 'elevation'")
    if rings.shape != (count,):
        raise UserError(f"rings must be ({count},), found {tuple(rings.shape)}")
    ring_count = config.ring_count or config.height
    rings = rings.to(torch.int64)
    known = (rings >= 0) & (rings < ring_count)
    from_top = rings if config.rows == "ring_from_top" else ring_count - 1 - rings
    row = torch.div(from_top * config.height, ring_count, rounding_mode="floor")
    return row.masked_fill_(~known, -1).to(torch.float32)
