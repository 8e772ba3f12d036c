"""A PointCloud2 and its labels come in; the same cloud with rgb, confidence and label, or with fewer points, goes out.

The order and number of points, header, height, width, byte order and is_dense stay. Padding between rows is dropped:
row_step is width * point_step. Padding within points stays, as it is part of the input's bytes.
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
    shown,
)

OUTPUTS = ("rgb", "confidence", "label")
_ALIGNMENT = 4
_ZEROS = bytes(64 * 1024)


class LabelledCloudWriter:
    """Writes the results of a model into clouds: made once for its colours and the wanted outputs, then used for each.

    colors: (C, 3) uint8 RGB by label; C is the number of classes. outputs: which of OUTPUTS are wanted.
    Holds nothing of a cloud between calls, so threads may share it. Raises UserError where the arguments do not fit.
    """

    def __init__(self, colors: npt.ArrayLike, outputs: Collection[str] = OUTPUTS) -> None:
        table = np.asarray(colors)
        if table.ndim != 2 or table.shape[1] != 3 or not 1 <= len(table) <= 65536 or table.dtype.kind not in "ui":
            raise UserError(f"colors must be 1 to 65536 rows of RGB bytes, found shape {table.shape} of {table.dtype}")
        if table.min() < 0 or table.max() > 255:
            raise UserError(f"colors must lie in 0..255, found {table.min()}..{table.max()}")
        unknown = [name for name in outputs if name not in OUTPUTS]
        if isinstance(outputs, str) or unknown:
            raise UserError(f"unknown outputs {outputs!r}; expected some of {', '.join(OUTPUTS)}")
        red, green, blue = table.astype(np.uint32).T
        self._packed = red << 16 | green << 8 | blue  # 0x00RRGGBB, as PCL and RViz read it from a float32
        self._outputs = tuple(name for name in OUTPUTS if name in outputs)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self._packed)

    def write(
        self, cloud: PointCloudLike, labels: npt.NDArray[Any], confidences: npt.NDArray[Any] | None = None
    ) -> Any:
        """The cloud plus the wanted outputs, as a new message of the cloud's own class.

        labels: (N,) integers in 0..C-1, in the cloud's order. confidences: (N,) numbers in 0..1; None where not wanted.
        Each point is the input's bytes, then rgb (float32 holding 0x00RRGGBB), confidence (float32) and label (uint8,
        uint16 for more than 256 classes), then zeros up to a multiple of 4 bytes. A field of that name in the input is
        overwritten in place: rgb as float32 or uint32, confidence as float32 or float64, label as any integer type
        that holds C - 1. The header object is shared with the input, the data is not.
        Raises CloudError where the message is inconsistent, where a field of an output's name is of another type or
        shares bytes with a field that stays, where the output would reach 2**31 bytes, and where labels or confidences
        are not one a point.
        """
        points = open_points(cloud)
        plan = _plan(points.layout, self._outputs, self.num_classes)
        size = points.count * plan.point_step
        if max(size, plan.point_step) >= SIZE_LIMIT:
            raise CloudError(
                "output_too_large",
                f"the labelled cloud would have {points.count} points of {plan.point_step} bytes; "
                f"expected less than {SIZE_LIMIT} bytes: switch outputs off or make the cloud smaller",
            )
        columns = self._columns(points, labels, confidences)
        fields = list(cloud.fields)
        kind = type(fields[0])
        fields += [kind(name=f.name, offset=f.offset, datatype=f.datatype, count=1) for f in plan.added]
        message = _message_like(cloud, fields, int(cloud.height), int(cloud.width), plan.point_step)
        data = _own_data(message)
        _append_zeros(data, size)
        if points.count:
            self._fill(np.frombuffer(data, np.uint8), points, plan, columns)
        return _finished(message, data, cloud)

    def _columns(
        self, points: PointBytes, labels: npt.NDArray[Any], confidences: npt.NDArray[Any] | None
    ) -> dict[str, npt.NDArray[Any]]:
        """The checked values by output, each (rows, columns). Those of rgb are labels: colours are looked up later."""
        labels = _one_each("labels", labels, points)
        if labels.dtype.kind not in "ui":
            raise UserError(f"labels must be integers, found {labels.dtype}")
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(
                f"labels must lie in 0..{self.num_classes - 1}, found {int(labels.min())}..{int(labels.max())}"
            )
        columns = {"rgb": labels, "label": labels}
        if "confidence" in self._outputs:
            if confidences is None:
                raise UserError("the output 'confidence' is wanted, but no confidences are given")
            columns["confidence"] = _one_each("confidences", confidences, points)
        return columns

    def _fill(
        self, buffer: npt.NDArray[np.uint8], points: PointBytes, plan: _Plan, columns: dict[str, npt.NDArray[Any]]
    ) -> None:
        """Put the points together in the output's bytes, block by block: each stays in the cache until it is done."""
        shape, strides = (points.rows, points.columns), (points.columns * plan.point_step, plan.point_step)
        source = points.view(points.whole)
        target = np.ndarray(shape, points.whole, buffer, 0, strides)
        targets = [(f.name, np.ndarray(shape, f.dtype, buffer, f.offset, strides)) for f in plan.written]
        for block in points.blocks(BLOCK_BYTES // plan.point_step):
            target[block] = source[block]
            for name, column in targets:
                values = columns[name][block]
                column[block] = self._packed.take(values) if name == "rgb" else values


def encode_labelled(
    cloud: PointCloudLike,
    labels: npt.NDArray[Any],
    confidences: npt.NDArray[Any] | None,
    colors: npt.ArrayLike,
    outputs: Collection[str] = OUTPUTS,
) -> Any:
    """One labelled cloud, where no writer is kept. See LabelledCloudWriter for arguments, result and errors."""
    return LabelledCloudWriter(colors, outputs).write(cloud, labels, confidences)


def encode_filtered(cloud: PointCloudLike, keep: npt.NDArray[np.bool_]) -> Any:
    """The cloud without the points where `keep` ((N,) bool) is False, as a new message of the cloud's own class.

    It is unorganised (height 1); fields, point_step, byte order and is_dense stay, and the header object is shared.
    Raises CloudError where the message is inconsistent or `keep` is not one a point.
    """
    points = open_points(cloud)
    keep = _one_each("keep", keep, points)
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
    """What is written where in an output point. written: fields in the output's point; added: those the input lacks."""

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
        there = layout.fields.get(name)
        if there is not None:
            written.append(_replaced(layout, there, num_classes))
            continue
        datatype = label_type if name == "label" else FLOAT32
        stored = {"rgb": "u4", "confidence": "f4", "label": "u1" if datatype == UINT8 else "u2"}[name]
        field = Field(name, end, datatype, 1, np.dtype(order + stored))
        end = field.end
        added.append(field)
        written.append(field)
    return _Plan(-(-end // _ALIGNMENT) * _ALIGNMENT, tuple(written), tuple(added))


def _replaced(layout: Layout, field: Field, num_classes: int) -> Field:
    """The field of an output's name that the input has already, as the type to write. Raises CloudError."""
    dtype = field.dtype
    if field.name == "rgb":
        fits, expected = dtype.itemsize == 4 and dtype.kind in "fu", "float32 or uint32"
    elif field.name == "confidence":
        fits, expected = dtype.kind == "f", "float32 or float64"
    else:
        fits = dtype.kind in "ui" and num_classes - 1 <= np.iinfo(dtype).max
        expected = f"an integer type that holds {num_classes - 1}"
    if field.count != 1 or not fits:
        raise CloudError(
            "output_field_type",
            f"the cloud has a field '{field.name}' of {field.count} x {dtype.newbyteorder('=')}, which the output of "
            f"that name cannot replace; expected one {expected}: rename the field or switch that output off",
        )
    for other in layout.fields.values():
        if other is not field and field.offset < other.end and other.offset < field.end:
            raise CloudError(
                "output_field_overlap",
                f"the cloud's field '{field.name}' shares bytes with {shown(other.name)}, so the output of that name "
                "cannot replace it: rename the field or switch that output off",
            )
    stored = dtype if field.name != "rgb" else np.dtype(dtype.str[0] + "u4")
    return Field(field.name, field.offset, field.datatype, 1, stored)


def _one_each(what: str, values: npt.NDArray[Any], points: PointBytes) -> npt.NDArray[Any]:
    """(N,) values -> (rows, columns), as the points are seen. Raises CloudError where they are not one a point."""
    values = np.asarray(values)
    if values.shape != (points.count,):
        raise CloudError("wrong_length", f"{what} have shape {values.shape}, but the cloud has {points.count} points")
    return values.reshape(points.rows, points.columns)


def _message_like(cloud: PointCloudLike, fields: list[Any], height: int, width: int, point_step: int) -> Any:
    """A message of the cloud's class with its header, byte order and is_dense, still without data."""
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
    """The message's own, still empty array where it has one: filling it saves the copy that rclpy's setter makes."""
    data = message.data
    return data if isinstance(data, array.array) and data.typecode == "B" else array.array("B")


def _append_zeros(data: array.array[int], size: int) -> None:
    """Grow an empty array to `size` zero bytes at once: appending the real bytes would move it again and again."""
    pieces, rest = divmod(size, len(_ZEROS))
    if pieces:
        data.frombytes(_ZEROS)
        data *= pieces
    data.frombytes(_ZEROS[:rest])


def _finished(message: Any, data: array.array[int], cloud: PointCloudLike) -> Any:
    """The message with its data, in the kind of container in which the input's is."""
    if isinstance(cloud.data, np.ndarray):  # rosbags: its messages hold, and its writer expects, numpy arrays
        message.data = np.frombuffer(data, np.uint8)
    elif message.data is not data:
        message.data = data
    return message
