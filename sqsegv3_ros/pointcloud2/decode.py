"""A PointCloud2 comes in; (N, 4) points x, y, z, intensity, the points' rings, or any one field go out as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2.layout import BLOCK_BYTES, Field, Layout, PointBytes, PointCloudLike, open_points, shown

INTENSITY_NAMES = ("intensity", "i", "reflectivity", "remission", "intensities", "reflectance", "signal")
RING_NAMES = ("ring", "channel", "laser_id", "line", "row", "beam")
NO_RING = -1
_UNALIGNED = np.dtype("V4")  # a float32 that numpy may not read where it lies
_ROW = np.dtype("V16")  # x, y, z, intensity as float32: one row of the result, moved as a whole where it lies so


@dataclass(frozen=True)
class CloudSettings:
    """Which fields of a cloud mean what.

    intensity_field: the field that holds the intensity; "" for clouds without one, whose intensity is then 0.
    intensity_scale, intensity_exponent: the model's remission is scale * intensity ** exponent (scale 1/255 for a
    driver that gives 0..255 and a model trained on KITTI's 0..1; exponent 0.5 for calibrated reflectivity, most of
    which lies near 0, where KITTI's remission does not).
    ring_field: the field that holds the laser's number; "" to read none.
    ring_required: refuse clouds without that field, because rows of the image are taken from it.
    max_points: clouds that declare more are refused, so that no header decides how much memory is used.
    """

    intensity_field: str = "intensity"
    intensity_scale: float = 1.0
    intensity_exponent: float = 1.0
    ring_field: str = "ring"
    ring_required: bool = False
    max_points: int = 10_000_000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.intensity_scale) and self.intensity_scale > 0):
            raise UserError(
                f"intensity_scale is {self.intensity_scale}; expected a positive number "
                "(set intensity_field to '' to ignore the intensity)"
            )
        if not (math.isfinite(self.intensity_exponent) and self.intensity_exponent > 0):
            raise UserError(f"intensity_exponent is {self.intensity_exponent}; expected a positive number")
        if self.max_points < 1:
            raise UserError(f"max_points is {self.max_points}; expected at least 1")
        if self.ring_required and not self.ring_field:
            raise UserError("ring_required is set, but ring_field is empty; set ring_field to the field's name")


DEFAULT_SETTINGS = CloudSettings()


@dataclass(frozen=True, eq=False)
class DecodedCloud:
    """The columns of a cloud, points in the message's order (row after row where organised).

    points: (N, 4) float32, C-contiguous: x, y, z in metres in the sensor frame as stored (NaN stays NaN; float64
    beyond float32 becomes Inf), and the remission (see `to_remission`). Where the message lies exactly so, this is a
    view of its data: do not write to it, and expect it to be read-only where the message's buffer is.
    rings: (N,) int32, or None where the cloud has no such field; -1 where a value is no whole number in int32's range.
    """

    points: npt.NDArray[np.float32]
    rings: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.points)


def decode(cloud: PointCloudLike, settings: CloudSettings = DEFAULT_SETTINGS) -> DecodedCloud:
    """Message -> columns. Raises CloudError where the message is inconsistent or lacks a field."""
    points = open_points(cloud, settings.max_points)
    plan = _plan(points.layout, settings)
    with np.errstate(over="ignore", invalid="ignore"):  # a sensor's odd values are passed on, not worth a warning
        return _read(points, plan)


def read_field(cloud: PointCloudLike, name: str) -> npt.NDArray[Any]:
    """One field of every point: (N,), or (N, count) where the field holds several; own memory, native byte order.

    The type is the field's own (booleans as uint8). Raises CloudError where the message is inconsistent or lacks it.
    """
    points = open_points(cloud)
    field = points.layout.fields.get(name)
    if field is None:
        raise points.layout.missing(name, "ask for one of these")
    shape = (points.count,) if field.count == 1 else (points.count, field.count)
    values = np.empty(shape, field.dtype.newbyteorder("="))
    if points.count:
        element = field.dtype if field.count == 1 else np.dtype((field.dtype, (field.count,)))
        values.reshape(points.rows, points.columns, *shape[1:])[...] = points.view(element, field.offset)
    return values


@dataclass(frozen=True, eq=False)
class _Plan:
    """How one layout is read under one setting.

    row_offset: where 16 bytes begin that start with x, y, z as native float32, None where no such place is.
    fields: the fields to read one by one, by column of the result (those that the 16 bytes hold already are left out).
    """

    row_offset: int | None
    fields: tuple[tuple[int, Field], ...]
    no_intensity: bool
    settings: CloudSettings
    ring: Field | None


@lru_cache(maxsize=64)
def _plan(layout: Layout, settings: CloudSettings) -> _Plan:
    x, y, z = (_need(layout, name, "expected x, y and z") for name in "xyz")
    columns = [x, y, z]
    if settings.intensity_field:
        columns.append(_need(layout, settings.intensity_field, _intensity_help(layout)))
    row = [x.offset + 4 * column == field.offset and _is_float32(field) for column, field in enumerate(columns)]
    whole_row = all(row[:3]) and x.offset + _ROW.itemsize <= layout.point_step
    done = (3 + (len(columns) == 4 and row[3])) if whole_row else 0
    ring = layout.fields.get(settings.ring_field) if settings.ring_field else None
    if ring is None and settings.ring_required:
        raise layout.missing(settings.ring_field, _advice(layout, "ring_field", RING_NAMES, ""))
    return _Plan(
        row_offset=x.offset if whole_row else None,
        fields=tuple((column, field) for column, field in enumerate(columns) if column >= done),
        no_intensity=not settings.intensity_field,
        settings=settings,
        ring=ring,
    )


def _need(layout: Layout, name: str, help_text: str) -> Field:
    field = layout.fields.get(name)
    if field is None:
        raise layout.missing(name, help_text)
    return field


def _intensity_help(layout: Layout) -> str:
    return _advice(layout, "intensity_field", INTENSITY_NAMES, ", or to '' to use 0 for every point")


def _advice(layout: Layout, setting: str, candidates: tuple[str, ...], otherwise: str) -> str:
    """What to set instead: the usual other name where the cloud has one."""
    seen = [name for name in candidates if name in layout.fields]
    return f"set {setting} to {shown(seen[0]) if seen else 'the name of one of these'}{otherwise}"


def _is_float32(field: Field) -> bool:
    return field.dtype == np.float32  # false for swapped bytes


def _read(points: PointBytes, plan: _Plan) -> DecodedCloud:
    """Fill the columns, block by block: 16 bytes a point in one move where they lie so, else field by field."""
    rings = None if plan.ring is None else np.empty(points.count, np.int32)
    view = _as_it_lies(points, plan)
    result = np.empty((points.count, 4), np.float32) if view is None else view
    decoded = DecodedCloud(result, rings)
    if not points.count:
        return decoded
    grid = result.reshape(points.rows, points.columns, 4)
    moves = []
    if view is None:
        if plan.row_offset is not None:
            moves.append((grid.view(_ROW)[..., 0], points.view(_ROW, plan.row_offset)))
        moves += [(grid[..., column], _source(points, field)) for column, field in plan.fields]
    if rings is not None and plan.ring is not None:
        moves.append((rings.reshape(points.rows, points.columns), _ring_source(points, plan.ring)))
    for block in points.blocks(BLOCK_BYTES // points.layout.point_step):
        for target, source in moves:
            piece = source[block]
            target[block] = piece if piece.dtype != _UNALIGNED else np.ascontiguousarray(piece).view(np.float32)
    if plan.no_intensity:
        result[:, 3] = 0
    elif view is None:
        to_remission(result[:, 3], plan.settings)
    return decoded


def to_remission(intensity: npt.NDArray[np.float32], settings: CloudSettings) -> None:
    """(N,) intensities become the model's remission, in place; negative ones NaN where the exponent is not whole."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if settings.intensity_exponent == 0.5:
            np.sqrt(intensity, out=intensity)
        elif settings.intensity_exponent != 1:
            np.power(intensity, np.float32(settings.intensity_exponent), out=intensity)
        if settings.intensity_scale != 1:
            intensity *= np.float32(settings.intensity_scale)


def _as_it_lies(points: PointBytes, plan: _Plan) -> npt.NDArray[np.float32] | None:
    """(N, 4) view of the data where it is just what is asked for, else None."""
    complete = plan.row_offset is not None and not plan.fields and not plan.no_intensity
    as_stored = plan.settings.intensity_scale == 1 and plan.settings.intensity_exponent == 1
    if not (complete and as_stored) or points.layout.point_step != _ROW.itemsize or points.rows > 1:
        return None
    view = points.buffer[: points.count * _ROW.itemsize].view(np.float32).reshape(-1, 4)
    return view if view.flags.aligned else None


def _source(points: PointBytes, field: Field) -> npt.NDArray[Any]:
    """(rows, columns) of a field's first element; unaligned float32 as bytes, to be gathered: 2.5 times faster."""
    view = points.view(field.dtype, field.offset)
    return view if view.flags.aligned or not _is_float32(field) else points.view(_UNALIGNED, field.offset)


def _ring_source(points: PointBytes, field: Field) -> npt.NDArray[Any]:
    """(rows, columns) of values that all are an int32, whatever numbers the field holds."""
    values = points.view(field.dtype, field.offset)
    if np.can_cast(field.dtype, np.int32):
        return values
    wide = values.astype(np.float64)  # exact for every value that an int32 can hold
    return np.where((wide >= -(2.0**31)) & (wide < 2.0**31) & (wide == np.floor(wide)), wide, NO_RING)
