# SPDX-License-Identifier: Apache-2.0
"""Checked layout and bytes of a PointCloud2.

Declared sizes are compared with the length of the data before anything is allocated by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError

Reason = Literal[
    "malformed_message",  # an attribute is missing or has a wrong type
    "number_out_of_range",  # a size, offset or count is negative, or 2**31 or more
    "no_fields",
    "too_many_fields",
    "duplicate_field",
    "unknown_datatype",
    "zero_point_step",
    "field_outside_point",
    "too_many_points",
    "row_step_too_small",
    "data_too_short",
    "data_too_long",
    "missing_field",
    "output_field_type",  # an input field with the name of an output has a type that cannot hold it
    "output_field_overlap",  # ... or shares bytes with another field
    "output_too_large",  # the labelled cloud would have 2**31 bytes or more
    "wrong_length",  # labels, confidences or the mask do not match the number of points
]
REASONS: tuple[str, ...] = get_args(Reason)

# sensor_msgs/PointField; 9..11 (INT64, UINT64, BOOLEAN) since 2025, with PCL's numbers. Booleans are read as bytes,
# because numpy's bool allows 0 and 1 only.
DATATYPES: Mapping[int, str] = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8", 9: "i8", 10: "u8", 11: "u1",
}  # fmt: skip
UINT8, UINT16, FLOAT32 = 2, 4, 7

BLOCK_BYTES = 512 * 1024  # points are copied in blocks that fit the second-level cache
PADDING_NAME = "_"  # PCL's name for padding; the only name that may occur more than once
MAX_FIELDS = 256
SIZE_LIMIT = 2**31  # sizes are uint32 on the wire; larger ones become negative in other libraries
_LISTED_NAMES = 20
_QUOTED_NAME_LENGTH = 40
_CACHED_NAMES_LENGTH = 4096  # layouts with longer names are not cached, to bound the cache


class CloudError(UserError):
    """A cloud that cannot be used.

    Attributes:
        reason: One of REASONS: stable, used as a key in diagnostics.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class PointCloudLike(Protocol):
    """The attributes of a sensor_msgs/PointCloud2 (ROS 1 or 2).

    Attributes:
        header: Shared with outputs.
        height: Rows.
        width: Points per row.
        fields: Objects with name, offset, datatype, count.
        is_bigendian: Byte order of all fields.
        point_step: Bytes per point.
        row_step: Bytes per row.
        data: Any contiguous buffer of bytes.
        is_dense: Copied to outputs.
    """

    header: Any
    height: Any
    width: Any
    fields: Any
    is_bigendian: Any
    point_step: Any
    row_step: Any
    data: Any
    is_dense: Any


@dataclass(frozen=True)
class Field:
    """A checked field of a point.

    Attributes:
        name: Name.
        offset: Byte offset in the point.
        datatype: Number of the type in sensor_msgs/PointField.
        count: Number of elements, at least 1 (a declared 0 means 1, as in PCL). Readers of one value use the first.
        dtype: Type of one element, in the cloud's byte order.
    """

    name: str
    offset: int
    datatype: int
    count: int
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """Byte offset of the end of the field."""
        return self.offset + self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Layout:
    """Layout of a point. Equal headers give the same object, so that plans can be cached by identity.

    Attributes:
        fields: Fields by name.
        point_step: Bytes per point.
        big_endian: Byte order.
    """

    fields: Mapping[str, Field]
    point_step: int
    big_endian: bool

    def missing(self, *names: str, help_text: str) -> CloudError:
        """Return the error for a missing field of one of these names, which lists the fields of the cloud."""
        missing = " or ".join(map(quote_name, names))
        return CloudError(
            "missing_field", f"points have no field {missing} (fields: {_list_names(self.fields)}); {help_text}"
        )


@dataclass(frozen=True, eq=False)
class PointBytes:
    """Bytes of a cloud with verified sizes. Rows without padding between them count as a single row.

    Attributes:
        layout: Layout of a point.
        buffer: (B,) uint8 view of the data.
        rows: Number of rows.
        columns: Points per row.
        row_step: Bytes per row.
    """

    layout: Layout
    buffer: npt.NDArray[np.uint8]
    rows: int
    columns: int
    row_step: int

    @property
    def count(self) -> int:
        """Number of points."""
        return self.rows * self.columns

    @property
    def whole(self) -> np.dtype[Any]:
        """Type of all bytes of a point."""
        return np.dtype((np.void, self.layout.point_step))

    def view(self, dtype: Any, offset: int = 0) -> npt.NDArray[Any]:
        """View values at a byte offset of every point as (rows, columns), without a copy. Needs count > 0."""
        shape, strides = (self.rows, self.columns), (self.row_step, self.layout.point_step)
        return np.ndarray(shape, dtype, self.buffer, offset, strides)

    def blocks(self, limit: int) -> Iterator[tuple[slice, slice]]:
        """Split (rows, columns) into rectangles of at most `limit` points: whole rows, or parts of one row."""
        limit = max(limit, 1)
        if self.columns <= limit:
            step = limit // max(self.columns, 1)
            for row in range(0, self.rows, step):
                yield slice(row, min(row + step, self.rows)), slice(0, self.columns)
            return
        for row in range(self.rows):
            for column in range(0, self.columns, limit):
                yield slice(row, row + 1), slice(column, min(column + limit, self.columns))


def read_layout(cloud: PointCloudLike) -> Layout:
    """Read the layout of a cloud's points from its fields, point_step and is_bigendian.

    Raises:
        CloudError: The layout is inconsistent.
    """
    try:
        step = index(cloud.point_step)
        big_endian = bool(cloud.is_bigendian)
        fields = tuple([(str(f.name), index(f.offset), index(f.datatype), index(f.count)) for f in cloud.fields])
    except (AttributeError, TypeError, ValueError) as error:
        raise _malformed(error) from error
    if len(fields) > MAX_FIELDS:
        raise CloudError("too_many_fields", f"points have {len(fields)} fields; at most {MAX_FIELDS} are supported")
    if sum([len(field[0]) for field in fields]) > _CACHED_NAMES_LENGTH:
        return _make_layout(fields, step, big_endian)
    return _make_layout_cached(fields, step, big_endian)


def open_points(cloud: PointCloudLike, max_points: int | None = None) -> PointBytes:
    """Check a message and return its bytes, without a copy.

    Args:
        cloud: The message.
        max_points: Upper limit of the number of points; None for none.

    Raises:
        CloudError: The message is inconsistent or has too many points.
    """
    layout = read_layout(cloud)
    try:
        height, width, row_step = index(cloud.height), index(cloud.width), index(cloud.row_step)
        raw = memoryview(cloud.data)
        if raw.itemsize != 1 or not raw.c_contiguous:
            raise TypeError(f"data has items of {raw.itemsize} bytes or gaps; expected contiguous bytes")
    except (AttributeError, TypeError, ValueError, BufferError) as error:
        raise _malformed(error) from error
    for what, number in (("height", height), ("width", width), ("row_step", row_step)):
        _check_range(what, number)
    count, size = height * width, raw.nbytes
    if max_points is not None and count > max_points:
        raise CloudError(
            "too_many_points",
            f"the cloud declares {height} x {width} = {count} points; at most {max_points} are allowed (max_points)",
        )
    if row_step < width * layout.point_step:
        raise CloudError(
            "row_step_too_small",
            f"row_step is {row_step}, but {width} points of {layout.point_step} bytes need {width * layout.point_step}",
        )
    if size != height * row_step:
        raise CloudError(
            "data_too_short" if size < height * row_step else "data_too_long",
            f"data has {size} bytes; expected {height * row_step} (height {height} x row_step {row_step})",
        )
    buffer = np.frombuffer(raw, dtype=np.uint8)
    if row_step == width * layout.point_step:
        return PointBytes(layout, buffer, 1, count, len(buffer))
    return PointBytes(layout, buffer, height, width, row_step)


def _make_layout(fields: tuple[tuple[str, int, int, int], ...], step: int, big_endian: bool) -> Layout:
    """Check the fields and make the layout."""
    _check_range("point_step", step)
    if not fields:
        raise CloudError("no_fields", "the cloud declares no fields; expected at least x, y and z")
    if step == 0:
        raise CloudError("zero_point_step", "point_step is 0; expected the number of bytes of one point")
    order = ">" if big_endian else "<"
    layout: dict[str, Field] = {}
    for name, offset, datatype, count in fields:
        _check_range(f"offset of field {quote_name(name)}", offset)
        _check_range(f"count of field {quote_name(name)}", count)
        if datatype not in DATATYPES:
            raise CloudError(
                "unknown_datatype", f"field {quote_name(name)} has datatype {datatype}; expected 1..{max(DATATYPES)}"
            )
        field = Field(name, offset, datatype, max(count, 1), np.dtype(order + DATATYPES[datatype]))
        if field.end > step:
            raise CloudError(
                "field_outside_point",
                f"field {quote_name(name)} ends at byte {field.end} of a point, but point_step is {step}",
            )
        if name in layout and name != PADDING_NAME:
            raise CloudError(
                "duplicate_field",
                f"field {quote_name(name)} occurs twice (fields: {_list_names(f[0] for f in fields)})",
            )
        layout[name] = field
    return Layout(layout, step, big_endian)


_make_layout_cached = lru_cache(maxsize=64)(_make_layout)


def _check_range(what: str, number: int) -> None:
    if not 0 <= number < SIZE_LIMIT:
        raise CloudError("number_out_of_range", f"{what} is {number}; expected 0..{SIZE_LIMIT - 1}")


def _malformed(error: Exception) -> CloudError:
    return CloudError("malformed_message", f"not a PointCloud2 message: {ascii(str(error))[1:-1][:200]}")


def quote_name(name: str) -> str:
    """Format a field's name for a log: quoted, escaped to ASCII, of bounded length."""
    return ascii(name if len(name) <= _QUOTED_NAME_LENGTH else name[: _QUOTED_NAME_LENGTH - 3] + "...")


def _list_names(names: Iterable[str]) -> str:
    """Format names for an error message: quoted only if necessary, at most about twenty."""
    texts = [name if name.isidentifier() and name.isascii() and len(name) < 40 else quote_name(name) for name in names]
    more = len(texts) - _LISTED_NAMES
    return ", ".join(texts[:_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
