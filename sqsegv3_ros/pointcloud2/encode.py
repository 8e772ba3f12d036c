# SPDX-License-Identifier: Apache-2.0
"""Encoder of labelled and filtered PointCloud2 messages.

Outputs keep the input's header, byte order and is_dense, the bytes of its points and their order; a labelled cloud also
keeps height and width. Padding within points is kept, padding between rows is removed: row_step is width * point_step.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2.layout import (
    BLOCK_BYTES,
    FLOAT32,
    SIZE_LIMIT,
    UINT8,
    UINT16,
    CloudError,
    Field,
    Layout,
    PointBytes,
    PointCloudLike,
    open_points,
    quote_name,
)

OUTPUTS = ("rgb", "confidence", "entropy", "label")
DEFAULT_OUTPUTS = ("rgb", "confidence", "label")
_PLURAL = {"confidence": "confidences", "entropy": "entropies"}
_ALIGNMENT = 4
_ZEROS = bytes(64 * 1024)


class LabelledCloudWriter:
    """Adds the results of a model to clouds. Stateless between calls, so threads may share it.

    Args:
        colors: (C, 3) uint8 RGB by label; C is the number of classes.
        outputs: The fields to write, a subset of OUTPUTS.

    Raises:
        UserError: The arguments are not of this form.
    """

    def __init__(self, colors: npt.ArrayLike, outputs: Collection[str] = DEFAULT_OUTPUTS) -> None:
        table = np.asarray(colors)
        if table.ndim != 2 or table.shape[1] != 3 or not 1 <= len(table) <= 65536 or table.dtype.kind not in "ui":
            raise UserError(f"colors must be 1 to 65536 rows of RGB bytes, found shape {table.shape} of {table.dtype}")
        if table.min() < 0 or table.max() > 255:
            raise UserError(f"colors must be in 0..255, found {table.min()}..{table.max()}")
        unknown = [name for name in outputs if name not in OUTPUTS]
        if isinstance(outputs, str) or unknown:
            raise UserError(f"unknown outputs {outputs!r}; expected some of {', '.join(OUTPUTS)}")
        red, green, blue = table.astype(np.uint32).T
        self._packed = red << 16 | green << 8 | blue  # 0x00RRGGBB, as PCL and RViz read it from a float32
        self._outputs = tuple(name for name in OUTPUTS if name in outputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The fields to write."""
        return self._outputs

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self._packed)

    def write(
        self,
        cloud: PointCloudLike,
        labels: npt.NDArray[Any],
        confidences: npt.NDArray[Any] | None = None,
        entropies: npt.NDArray[Any] | None = None,
    ) -> Any:
        """Encode a labelled cloud.

        Each point is the input's bytes, then rgb (float32 with bits 0x00RRGGBB), confidence and entropy (float32) and
        label (uint8; uint16 for more than 256 classes), then zeros up to a multiple of 4 bytes. An input field of that
        name is overwritten in place: rgb as float32 or uint32, confidence and entropy as float32 or float64, label as
        any integer type with room for C - 1.

        Args:
            cloud: The input.
            labels: (N,) integers in 0..C-1, in the order of the points.
            confidences: (N,) numbers in 0..1; may be None if not an output.
            entropies: The same.

        Returns:
            A new message of the input's class. It shares the header with the input, but no data.

        Raises:
            CloudError: The message is inconsistent, an input field cannot be overwritten by the output of its name, the
                output would have 2**31 bytes or more, or labels or confidences do not match the number of points.
            UserError: Labels or confidences are not of this form.
        """
        points = open_points(cloud)
        plan = _plan(points.layout, self._outputs, self.num_classes)
        size = points.count * plan.point_step
        if max(size, plan.point_step) >= SIZE_LIMIT:
            raise CloudError(
                "output_too_large",
                f"the labelled cloud would have {points.count} points of {plan.point_step} bytes; "
                f"expected less than {SIZE_LIMIT} bytes: disable outputs or reduce the cloud",
            )
        columns = self._checked_columns(points, labels, {"confidence": confidences, "entropy": entropies})
        fields = list(cloud.fields)
        kind = type(fields[0])
        fields += [kind(name=f.name, offset=f.offset, datatype=f.datatype, count=1) for f in plan.added]
        message = _message_like(cloud, fields, int(cloud.height), int(cloud.width), plan.point_step)
        data = _own_data(message)
        _append_zeros(data, size)
        if points.count:
            self._fill(np.frombuffer(data, np.uint8), points, plan, columns)
        return _finished(message, data, cloud)

    def _checked_columns(
        self, points: PointBytes, labels: npt.NDArray[Any], numbers: dict[str, npt.NDArray[Any] | None]
    ) -> dict[str, npt.NDArray[Any]]:
        """Check the values and return them by output, each (rows, columns). Those of rgb are labels."""
        labels = _per_point("labels", labels, points)
        if labels.dtype.kind not in "ui":
            raise UserError(f"labels must be integers, found {labels.dtype}")
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(
                f"labels must be in 0..{self.num_classes - 1}, found {int(labels.min())}..{int(labels.max())}"
            )
        columns = {"rgb": labels, "label": labels}
        for name, values in numbers.items():
            if name in self._outputs:
                if values is None:
                    raise UserError(f"the output '{name}' needs {_PLURAL[name]}, found None")
                columns[name] = _per_point(_PLURAL[name], values, points)
        return columns

    def _fill(
        self, buffer: npt.NDArray[np.uint8], points: PointBytes, plan: _Plan, columns: dict[str, npt.NDArray[Any]]
    ) -> None:
        """Assemble the output's points, in blocks that stay in the cache until they are complete."""
        shape, strides = (points.rows, points.columns), (points.columns * plan.point_step, plan.point_step)
        source = points.view(points.whole)
        target = np.ndarray(shape, points.whole, buffer, 0, strides)
        targets = [(f.name, np.ndarray(shape, f.dtype, buffer, f.offset, strides)) for f in plan.written]
        for block in points.blocks(BLOCK_BYTES // plan.point_step):
            target[block] = source[block]
            for name, column in targets:
                values = columns[name][block]
                column[block] = self._packed.take(values) if name == "rgb" else values


def encode_filtered(cloud: PointCloudLike, keep: npt.NDArray[np.bool_]) -> Any:
    """Encode a cloud with only some of its points.

    Args:
        cloud: The input.
        keep: (N,) bool, the points to keep.

    Returns:
        A new, unorganised message (height 1) of the input's class. It shares the header with the input, but no data.

    Raises:
        CloudError: The message is inconsistent, or `keep` does not match the number of points.
        UserError: `keep` is not bool.
    """
    points = open_points(cloud)
    keep = _per_point("keep", keep, points)
    if keep.dtype != np.bool_:
        raise UserError(f"keep must be bool, found {keep.dtype}")
    step = points.layout.point_step
    message = _message_like(cloud, list(cloud.fields), 1, int(np.count_nonzero(keep)), step)
    data = _own_data(message)
    if message.width:
        data.frombytes(points.view(points.whole)[keep].view(np.uint8).data)
    return _finished(message, data, cloud)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Layout of an output point. written: output fields; added: those of them that the input lacks."""

    point_step: int
    written: tuple[Field, ...]
    added: tuple[Field, ...]


@lru_cache(maxsize=64)
def _plan(layout: Layout, outputs: tuple[str, ...], num_classes: int) -> _Plan:
    end = layout.point_step
    written: list[Field] = []
    added: list[Field] = []
    order = ">" if layout.big_endian else "<"
    label_type = UINT8 if num_classes <= 256 else UINT16
    for name in outputs:
        existing = layout.fields.get(name)
        if existing is not None:
            written.append(_replaced(layout, existing, num_classes))
            continue
        datatype = label_type if name == "label" else FLOAT32
        stored = {"rgb": "u4", "confidence": "f4", "entropy": "f4", "label": "u1" if datatype == UINT8 else "u2"}[name]
        field = Field(name, end, datatype, 1, np.dtype(order + stored))
        end = field.end
        added.append(field)
        written.append(field)
    return _Plan(-(-end // _ALIGNMENT) * _ALIGNMENT, tuple(written), tuple(added))


def _replaced(layout: Layout, field: Field, num_classes: int) -> Field:
    """Return an input field with the name of an output, with the type to write. Raises CloudError."""
    dtype = field.dtype
    if field.name == "rgb":
        fits, expected = dtype.itemsize == 4 and dtype.kind in "fu", "float32 or uint32"
    elif field.name in _PLURAL:
        fits, expected = dtype.kind == "f", "float32 or float64"
    else:
        fits = dtype.kind in "ui" and num_classes - 1 <= np.iinfo(dtype).max
        expected = f"an integer type with room for {num_classes - 1}"
    if field.count != 1 or not fits:
        raise CloudError(
            "output_field_type",
            f"the cloud has a field '{field.name}' of {field.count} x {dtype.newbyteorder('=')}, which the output of "
            f"that name cannot overwrite; expected one {expected}: rename the field or disable that output",
        )
    for other in layout.fields.values():
        if other is not field and field.offset < other.end and other.offset < field.end:
            raise CloudError(
                "output_field_overlap",
                f"the cloud's field '{field.name}' shares bytes with {quote_name(other.name)}, so the output of that "
                "name cannot overwrite it: rename the field or disable that output",
            )
    stored = dtype if field.name != "rgb" else np.dtype(dtype.str[0] + "u4")
    return Field(field.name, field.offset, field.datatype, 1, stored)


def _per_point(what: str, values: npt.NDArray[Any], points: PointBytes) -> npt.NDArray[Any]:
    """Reshape (N,) values to (rows, columns) of the points. Raises CloudError if the number does not match."""
    values = np.asarray(values)
    if values.shape != (points.count,):
        raise CloudError("wrong_length", f"{what} have shape {values.shape}, but the cloud has {points.count} points")
    return values.reshape(points.rows, points.columns)


def _message_like(cloud: PointCloudLike, fields: list[Any], height: int, width: int, point_step: int) -> Any:
    """Create a message of the cloud's class with its header, byte order and is_dense, without data."""
    kind: Callable[..., Any] = type(cloud)
    return kind(
        header=cloud.header,
        height=height,
        width=width,
        fields=fields,
        is_bigendian=cloud.is_bigendian,
        point_step=point_step,
        row_step=width * point_step,
        data=array.array("B"),
        is_dense=cloud.is_dense,
    )


def _own_data(message: Any) -> array.array[int]:
    """Return the message's own empty array if it has one: filling it avoids the copy that rclpy's setter makes."""
    data = message.data
    return data if isinstance(data, array.array) and data.typecode == "B" else array.array("B")


def _append_zeros(data: array.array[int], size: int) -> None:
    """Grow an empty array to `size` zero bytes at once; appending the points would reallocate it repeatedly."""
    pieces, rest = divmod(size, len(_ZEROS))
    if pieces:
        data.frombytes(_ZEROS)
        data *= pieces
    data.frombytes(_ZEROS[:rest])


def _finished(message: Any, data: array.array[int], cloud: PointCloudLike) -> Any:
    """Set the message's data, in the container type of the input's data."""
    if isinstance(cloud.data, np.ndarray):  # rosbags expects numpy arrays
        message.data = np.frombuffer(data, np.uint8)
    elif message.data is not data:
        message.data = data
    return message
