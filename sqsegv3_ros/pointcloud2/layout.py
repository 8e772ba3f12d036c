"""A PointCloud2's header comes in, its checked layout and a view of its bytes go out, or a CloudError with the reason.

Nothing here allocates by a declared size: the sizes of the header are compared with the length of the data first.
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
    "malformed_message",  # an attribute is missing or has a type that no message gives it
    "number_out_of_range",  # a size, offset or count is negative or 2**31 and more
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
    "output_field_type",  # the input has a field of an output's name whose type cannot hold the output
    "output_field_overlap",  # ... or that shares its bytes with another field
    "output_too_large",  # the labelled cloud would have a size of 2**31 and more
    "wrong_length",  # labels, confidences or the mask do not have one value for each point
]
REASONS: tuple[str, ...] = get_args(Reason)

# sensor_msgs/PointField: 1..8 from the start; 9..11 (INT64, UINT64, BOOLEAN) since 2025, and as PCL always numbered
# them. A boolean is read as a byte, because numpy's bool must not hold anything but 0 and 1.
DATATYPES: Mapping[int, str] = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8", 9: "i8", 10: "u8", 11: "u1",
}  # fmt: skip
UINT8, UINT16, FLOAT32 = 2, 4, 7

BLOCK_BYTES = 512 * 1024  # points are moved in blocks that stay in the second-level cache until they are done
PADDING_NAME = "_"  # PCL's name for a field that fills a gap; the only name that may be there more than once
MAX_FIELDS = 256
SIZE_LIMIT = 2**31  # wire numbers are uint32; what is above reads as negative elsewhere and is never a real size
_SHOWN_NAMES = 20
_SHOWN_NAME_LENGTH = 40
_CACHED_NAMES_LENGTH = 4096  # layouts with longer names than this are read anew each time, so the cache stays small


class CloudError(UserError):
    """A cloud that cannot be used. `reason` is one of REASONS: short and stable, fit to be a key in diagnostics."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class PointCloudLike(Protocol):
    """The attributes of a sensor_msgs/PointCloud2 (ROS 1 or 2), as any library or test double gives them.

    fields: objects with name, offset, datatype, count. data: any contiguous buffer of bytes.
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
    """One checked field of a point: where it lies in the point's bytes, and as what.

    dtype: the type of one element, in the cloud's byte order. count: elements, at least 1 (a declared 0 means 1, as PCL
    reads it). Where one value a point is asked for, a field with more elements gives its first.
    """

    name: str
    offset: int
    datatype: int
    count: int
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """The first byte of the point behind the field."""
        return self.offset + self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Layout:
    """How a point lies in its bytes. Equal headers give the same object, so that plans can be kept by identity."""

    fields: Mapping[str, Field]
    point_step: int
    big_endian: bool

    def missing(self, name: str, help_text: str) -> CloudError:
        """The error for a field that is needed and not there: names the fields there are, and says what to do."""
        return CloudError(
            "missing_field", f"points have no field {shown(name)} (fields: {shown_list(self.fields)}); {help_text}"
        )


@dataclass(frozen=True, eq=False)
class PointBytes:
    """The bytes of a cloud whose sizes are verified: `rows` x `columns` points, `row_step` bytes from row to row.

    Rows without padding between them are seen as one row, whatever the message's height.
    """

    layout: Layout
    buffer: npt.NDArray[np.uint8]
    rows: int
    columns: int
    row_step: int

    @property
    def count(self) -> int:
        """The number of points."""
        return self.rows * self.columns

    @property
    def whole(self) -> np.dtype[Any]:
        """A type that moves a point's bytes as one piece."""
        return np.dtype((np.void, self.layout.point_step))

    def view(self, dtype: Any, offset: int = 0) -> npt.NDArray[Any]:
        """(rows, columns) view of what lies at a byte offset of every point, without a copy. Needs count > 0."""
        shape, strides = (self.rows, self.columns), (self.row_step, self.layout.point_step)
        return np.ndarray(shape, dtype, self.buffer, offset, strides)

    def blocks(self, limit: int) -> Iterator[tuple[slice, slice]]:
        """Cut (rows, columns) into rectangles of at most `limit` points, at least 1: whole rows, or parts of one."""
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
    """The layout of a cloud's points from its fields, point_step and is_bigendian. Raises CloudError."""
    try:
        step = index(cloud.point_step)
        big_endian = bool(cloud.is_bigendian)
        fields = tuple([(str(f.name), index(f.offset), index(f.datatype), index(f.count)) for f in cloud.fields])
    except (AttributeError, TypeError, ValueError) as error:
        raise _malformed(error) from error
    if len(fields) > MAX_FIELDS:
        raise CloudError("too_many_fields", f"points have {len(fields)} fields; at most {MAX_FIELDS} are taken")
    if sum([len(field[0]) for field in fields]) > _CACHED_NAMES_LENGTH:
        return _analyse(fields, step, big_endian)
    return _analyse_cached(fields, step, big_endian)


def open_points(cloud: PointCloudLike, max_points: int | None = None) -> PointBytes:
    """Check a whole message and give access to its bytes, without a copy. Raises CloudError."""
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
    count, found = height * width, raw.nbytes
    if max_points is not None and count > max_points:
        raise CloudError(
            "too_many_points",
            f"the cloud declares {height} x {width} = {count} points; at most {max_points} are taken (max_points)",
        )
    if row_step < width * layout.point_step:
        raise CloudError(
            "row_step_too_small",
            f"row_step is {row_step}, but {width} points of {layout.point_step} bytes need {width * layout.point_step}",
        )
    if found != height * row_step:
        raise CloudError(
            "data_too_short" if found < height * row_step else "data_too_long",
            f"data has {found} bytes; expected {height * row_step} (height {height} x row_step {row_step})",
        )
    buffer = np.frombuffer(raw, dtype=np.uint8)
    if row_step == width * layout.point_step:
        return PointBytes(layout, buffer, 1, count, len(buffer))
    return PointBytes(layout, buffer, height, width, row_step)


def _analyse(fields: tuple[tuple[str, int, int, int], ...], step: int, big_endian: bool) -> Layout:
    """Check the fields and make the layout. See Reason for what is refused."""
    _check_range("point_step", step)
    if not fields:
        raise CloudError("no_fields", "the cloud declares no fields; expected at least x, y and z")
    if step == 0:
        raise CloudError("zero_point_step", "point_step is 0; expected the number of bytes of one point")
    order = ">" if big_endian else "<"
    layout: dict[str, Field] = {}
    for name, offset, datatype, count in fields:
        _check_range(f"offset of field {shown(name)}", offset)
        _check_range(f"count of field {shown(name)}", count)
        if datatype not in DATATYPES:
            raise CloudError(
                "unknown_datatype", f"field {shown(name)} has datatype {datatype}; expected 1..{max(DATATYPES)}"
            )
        field = Field(name, offset, datatype, max(count, 1), np.dtype(order + DATATYPES[datatype]))
        if field.end > step:
            raise CloudError(
                "field_outside_point",
                f"field {shown(name)} ends at byte {field.end} of a point, but point_step is {step}",
            )
        if name in layout and name != PADDING_NAME:
            raise CloudError(
                "duplicate_field", f"field {shown(name)} is there twice (fields: {shown_list(f[0] for f in fields)})"
            )
        layout[name] = field
    return Layout(layout, step, big_endian)


_analyse_cached = lru_cache(maxsize=64)(_analyse)


def _check_range(what: str, number: int) -> None:
    if not 0 <= number < SIZE_LIMIT:
        raise CloudError("number_out_of_range", f"{what} is {number}; expected 0..{SIZE_LIMIT - 1}")


def _malformed(error: Exception) -> CloudError:
    return CloudError("malformed_message", f"not a PointCloud2 message: {ascii(str(error))[1:-1][:200]}")


def shown(name: str) -> str:
    """A field's name as fit for any terminal and log: quoted, escaped to ASCII, of bounded length."""
    return ascii(name if len(name) <= _SHOWN_NAME_LENGTH else name[: _SHOWN_NAME_LENGTH - 3] + "...")


def shown_list(names: Iterable[str]) -> str:
    """Names for an error message: without quotes where plain, at most some twenty."""
    texts = [name if name.isidentifier() and name.isascii() and len(name) < 40 else shown(name) for name in names]
    more = len(texts) - _SHOWN_NAMES
    return ", ".join(texts[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
