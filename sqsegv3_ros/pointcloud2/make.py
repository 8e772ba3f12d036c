# SPDX-License-Identifier: Apache-2.0
"""Creation of PointCloud2 messages from arrays."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2.layout import DATATYPES

_BY_TYPE = {np.dtype(text): number for number, text in sorted(DATATYPES.items(), reverse=True)} | {np.dtype("?"): 11}
_XYZI = np.dtype([(name, np.float32) for name in ("x", "y", "z", "intensity")])


def make_cloud(
    points: npt.NDArray[Any],
    message: Callable[..., Any],
    field: Callable[..., Any],
    header: Any = None,
) -> Any:
    """Create a message from points. is_dense is set if all coordinates are finite.

    Args:
        points: Structured points, (N,) or organised (H, W), with any order of fields, gaps, one byte order for all
            fields, and one-dimensional subarrays; or float32 (N, 4) or (H, W, 4): x, y, z, intensity.
        message: Class of the message, such as sensor_msgs' PointCloud2.
        field: Class of its fields, such as sensor_msgs' PointField.
        header: Header of the message; None for the default.

    Raises:
        UserError: A type has no PointField (float16, text, nested fields), or byte orders are mixed.
    """
    if points.dtype.names is None:
        if points.ndim not in (2, 3) or points.shape[-1] != 4 or points.dtype != np.float32:
            raise UserError(
                f"points must be structured, or float32 of shape (N, 4) or (H, W, 4); "
                f"found {points.dtype} of shape {points.shape}"
            )
        points = np.ascontiguousarray(points).view(_XYZI)[..., 0]
    if points.ndim not in (1, 2):
        raise UserError(f"structured points must have shape (N,) or (H, W), found {points.shape}")
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    fields, big_endian = _fields(points.dtype, field)
    step = points.dtype.itemsize
    data = array.array("B")
    if points.size:
        whole = points.view(np.dtype((np.void, step)))  # a copy by fields would leave gaps uninitialized
        data.frombytes(np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data)
    attributes = {} if header is None else {"header": header}
    return message(
        **attributes,
        height=height,
        width=width,
        fields=fields,
        is_bigendian=big_endian,
        point_step=step,
        row_step=width * step,
        data=data,
        is_dense=all(bool(np.isfinite(points[name]).all()) for name in "xyz" if name in (points.dtype.names or ())),
    )


def _fields(dtype: np.dtype[Any], field: Callable[..., Any]) -> tuple[list[Any], bool]:
    """Return the message's fields for a structured type, and whether its values are big-endian."""
    fields = []
    orders = set()
    for name in dtype.names or ():
        element, offset = dtype.fields[name][:2]  # type: ignore[index]
        base, shape = element.base, element.shape
        datatype = _BY_TYPE.get(base.newbyteorder("="))
        if datatype is None or len(shape) > 1 or 0 in shape:
            raise UserError(f"field '{name}' has type {element}, which a PointCloud2 cannot represent")
        if base.itemsize > 1:
            orders.add({"=": sys.byteorder == "big", "<": False, ">": True}[base.byteorder])
        fields.append(field(name=name, offset=int(offset), datatype=datatype, count=shape[0] if shape else 1))
    if len(orders) > 1:
        raise UserError("points have fields of both byte orders; a PointCloud2 has one for all fields")
    return fields, orders.pop() if orders else False
