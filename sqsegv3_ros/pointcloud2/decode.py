# SPDX-License-Identifier: Apache-2.0
"""Decoder of PointCloud2 messages: points, rings and single fields as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2.layout import (
    BLOCK_BYTES,
    Field,
    Layout,
    PointBytes,
    PointCloudLike,
    open_points,
    quote_name,
)

INTENSITY_FIELDS = ("intensity", "reflectivity", "i")  # usual names, read without a setting
_OTHER_INTENSITIES = ("remission", "intensities", "reflectance", "signal")
RING_NAMES = ("ring", "channel", "laser_id", "line", "row", "beam")
NO_RING = -1
_UNALIGNED = np.dtype("V4")  # an unaligned float32, copied as bytes
_ROW = np.dtype("V16")  # x, y, z, intensity as adjacent float32, copied in one piece


@dataclass(frozen=True)
class CloudSettings:
    """Meaning of the fields of a cloud.

    Attributes:
        intensity_fields: Names of the intensity's field; the first that the cloud has is read. () for none: the
            intensity is then 0.
        intensity_scale: The model's remission is scale * intensity ** exponent: scale 1/255 for a driver with 0..255
            and a model trained on KITTI's 0..1.
        intensity_exponent: 0.5 for calibrated reflectivity, most of which is near 0, unlike KITTI's remission.
        ring_field: Field with the laser's number; "" for none.
        ring_required: Reject clouds without that field; set if it determines the rows of the image.
        max_points: Reject clouds that declare more points, so that a header cannot exhaust the memory.
    """

    intensity_fields: tuple[str, ...] = INTENSITY_FIELDS
    intensity_scale: float = 1.0
    intensity_exponent: float = 1.0
    ring_field: str = "ring"
    ring_required: bool = False
    max_points: int = 10_000_000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.intensity_scale) and self.intensity_scale > 0):
            raise UserError(
                f"intensity_scale is {self.intensity_scale}; expected a positive number "
                "(set intensity_fields to [''] to ignore the intensity)"
            )
        if not (math.isfinite(self.intensity_exponent) and self.intensity_exponent > 0):
            raise UserError(f"intensity_exponent is {self.intensity_exponent}; expected a positive number")
        if self.max_points < 1:
            raise UserError(f"max_points is {self.max_points}; expected at least 1")
        if self.ring_required and not self.ring_field:
            raise UserError("ring_required is set, but ring_field is empty; set ring_field to the field's name")


_DEFAULT_SETTINGS = CloudSettings()


@dataclass(frozen=True, eq=False)
class DecodedCloud:
    """Points and rings of a cloud, in the message's order (row by row if organised).

    Attributes:
        points: (N, 4) float32, C-contiguous: x, y, z in metres in the sensor frame as stored (NaN stays NaN; float64
            beyond float32 becomes Inf), and the remission (see `to_remission`). May be a view of the message's data: do
            not write to it.
        rings: (N,) int32, -1 for values that are not an int32; None if the cloud has no such field.
    """

    points: npt.NDArray[np.float32]
    rings: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.points)


def decode(cloud: PointCloudLike, settings: CloudSettings = _DEFAULT_SETTINGS) -> DecodedCloud:
    """Decode a PointCloud2 into points and rings.

    Args:
        cloud: The message.
        settings: Meaning of its fields.

    Raises:
        CloudError: The message is inconsistent or lacks a field.
    """
    points = open_points(cloud, settings.max_points)
    plan = _plan(points.layout, settings)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are passed on
        return _read(points, plan)


def read_field(cloud: PointCloudLike, name: str) -> npt.NDArray[Any]:
    """Read one field of every point.

    Args:
        cloud: The message.
        name: The field.

    Returns:
        (N,) copy in the field's type and native byte order (booleans as uint8); (N, count) if the field has several
        elements.

    Raises:
        CloudError: The message is inconsistent or lacks the field.
    """
    points = open_points(cloud)
    field = points.layout.fields.get(name)
    if field is None:
        raise points.layout.missing(name, help_text="choose one of these")
    shape = (points.count,) if field.count == 1 else (points.count, field.count)
    values = np.empty(shape, field.dtype.newbyteorder("="))
    if points.count:
        element = field.dtype if field.count == 1 else np.dtype((field.dtype, (field.count,)))
        values.reshape(points.rows, points.columns, *shape[1:])[...] = points.view(element, field.offset)
    return values


@dataclass(frozen=True, eq=False)
class _Plan:
    """How to read one layout with given settings.

    row_offset: offset of 16 bytes that start with x, y, z as native float32; None if there are none.
    fields: (column of the result, field) of the remaining fields, which are read one by one.
    """

    row_offset: int | None
    fields: tuple[tuple[int, Field], ...]
    no_intensity: bool
    settings: CloudSettings
    ring: Field | None


@lru_cache(maxsize=64)
def _plan(layout: Layout, settings: CloudSettings) -> _Plan:
    x, y, z = (_require(layout, (name,), "expected x, y and z") for name in "xyz")
    columns = [x, y, z]
    if settings.intensity_fields:
        columns.append(_require(layout, settings.intensity_fields, _intensity_help(layout)))
    in_row = [x.offset + 4 * column == field.offset and _is_float32(field) for column, field in enumerate(columns)]
    whole_row = all(in_row[:3]) and x.offset + _ROW.itemsize <= layout.point_step
    columns_in_row = (3 + (len(columns) == 4 and in_row[3])) if whole_row else 0
    ring = layout.fields.get(settings.ring_field) if settings.ring_field else None
    if ring is None and settings.ring_required:
        raise layout.missing(settings.ring_field, help_text=f"set ring_field to {_usual(layout, RING_NAMES)}")
    return _Plan(
        row_offset=x.offset if whole_row else None,
        fields=tuple((column, field) for column, field in enumerate(columns) if column >= columns_in_row),
        no_intensity=not settings.intensity_fields,
        settings=settings,
        ring=ring,
    )


def _require(layout: Layout, names: tuple[str, ...], help_text: str) -> Field:
    """Return the field with the first of the names that the layout has."""
    for name in names:
        if name in layout.fields:
            return layout.fields[name]
    raise layout.missing(*names, help_text=help_text)


def _intensity_help(layout: Layout) -> str:
    name = _usual(layout, (*INTENSITY_FIELDS, *_OTHER_INTENSITIES))
    return f"set intensity_fields to [{name}], or to [''] to use 0 for every point"


def _usual(layout: Layout, names: tuple[str, ...]) -> str:
    """The first of the usual names that the cloud has."""
    return next((quote_name(name) for name in names if name in layout.fields), "the name of one of these")


def _is_float32(field: Field) -> bool:
    return field.dtype == np.float32  # false for swapped bytes


def _read(points: PointBytes, plan: _Plan) -> DecodedCloud:
    """Copy the columns block by block: 16 bytes per point at once if possible, otherwise field by field."""
    rings = None if plan.ring is None else np.empty(points.count, np.int32)
    view = _zero_copy_view(points, plan)
    result = np.empty((points.count, 4), np.float32) if view is None else view
    decoded = DecodedCloud(result, rings)
    if not points.count:
        return decoded
    grid = result.reshape(points.rows, points.columns, 4)
    copies = []
    if view is None:
        if plan.row_offset is not None:
            copies.append((grid.view(_ROW)[..., 0], points.view(_ROW, plan.row_offset)))
        copies += [(grid[..., column], _source(points, field)) for column, field in plan.fields]
    if rings is not None and plan.ring is not None:
        copies.append((rings.reshape(points.rows, points.columns), _ring_source(points, plan.ring)))
    for block in points.blocks(BLOCK_BYTES // points.layout.point_step):
        for target, source in copies:
            piece = source[block]
            target[block] = piece if piece.dtype != _UNALIGNED else np.ascontiguousarray(piece).view(np.float32)
    if plan.no_intensity:
        result[:, 3] = 0
    elif view is None:
        to_remission(result[:, 3], plan.settings)
    return decoded


def to_remission(intensity: npt.NDArray[np.float32], settings: CloudSettings) -> None:
    """Convert (N,) intensities to the model's remission, in place.

    Negative intensities become NaN if the exponent is not an integer.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if settings.intensity_exponent == 0.5:
            np.sqrt(intensity, out=intensity)
        elif settings.intensity_exponent != 1:
            np.power(intensity, np.float32(settings.intensity_exponent), out=intensity)
        if settings.intensity_scale != 1:
            intensity *= np.float32(settings.intensity_scale)


def _zero_copy_view(points: PointBytes, plan: _Plan) -> npt.NDArray[np.float32] | None:
    """Return the data as (N, 4) if it is stored exactly like that, otherwise None."""
    complete = plan.row_offset is not None and not plan.fields and not plan.no_intensity
    as_stored = plan.settings.intensity_scale == 1 and plan.settings.intensity_exponent == 1
    if not (complete and as_stored) or points.layout.point_step != _ROW.itemsize or points.rows > 1:
        return None
    view = points.buffer[: points.count * _ROW.itemsize].view(np.float32).reshape(-1, 4)
    return view if view.flags.aligned else None


def _source(points: PointBytes, field: Field) -> npt.NDArray[Any]:
    """View a field's first element as (rows, columns); unaligned float32 as bytes, which copies 2.5 times faster."""
    view = points.view(field.dtype, field.offset)
    return view if view.flags.aligned or not _is_float32(field) else points.view(_UNALIGNED, field.offset)


def _ring_source(points: PointBytes, field: Field) -> npt.NDArray[Any]:
    """Read ring numbers as (rows, columns) values in the range of int32."""
    values = points.view(field.dtype, field.offset)
    if np.can_cast(field.dtype, np.int32):
        return values
    wide = values.astype(np.float64)  # exact for every int32
    return np.where((wide >= -(2.0**31)) & (wide < 2.0**31) & (wide == np.floor(wide)), wide, NO_RING)
