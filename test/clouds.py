# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 messages from structured arrays and back, independent of the package.

The message classes are dataclasses with the attributes of sensor_msgs, so that tests of the codec do not need ROS.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8", 9: "i8", 10: "u8", 11: "u1"}
NUMBERS = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8, "i8": 9, "u8": 10}


@dataclass
class Stamp:
    sec: int = 0
    nanosec: int = 0


@dataclass
class Header:
    stamp: Stamp = field(default_factory=Stamp)
    frame_id: str = ""


@dataclass
class PointField:
    name: str = ""
    offset: int = 0
    datatype: int = 0
    count: int = 0


@dataclass
class PointCloud2:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    fields: list[PointField] = field(default_factory=list)
    is_bigendian: bool = False
    point_step: int = 0
    row_step: int = 0
    data: Any = field(default_factory=lambda: array.array("B"))
    is_dense: bool = False


def layout(step: int, **fields: tuple[int, str] | tuple[int, str, int]) -> np.dtype[Any]:
    """A point of `step` bytes: name=(offset, type) or name=(offset, type, count), little-endian."""
    formats = [("<" + f[1], (f[2],)) if len(f) == 3 else "<" + f[1] for f in fields.values()]
    return np.dtype(
        {"names": list(fields), "formats": formats, "offsets": [f[0] for f in fields.values()], "itemsize": step}
    )


XYZ = {"x": (0, "f4"), "y": (4, "f4"), "z": (8, "f4")}
LAYOUTS: dict[str, np.dtype[Any]] = {
    "xyzi 16": layout(16, **XYZ, intensity=(12, "f4")),
    "velodyne xyzirt 22": layout(22, **XYZ, intensity=(12, "f4"), ring=(16, "u2"), time=(18, "f4")),
    "velodyne xyzir 18": layout(18, **XYZ, intensity=(12, "f4"), ring=(16, "u2")),
    "velodyne xyzirt 24": layout(24, **XYZ, intensity=(12, "f4"), ring=(16, "u2"), time=(20, "f4")),
    "pcl xyzi 32": layout(32, **XYZ, intensity=(16, "f4")),
    "pcl xyzirt 32": layout(32, **XYZ, intensity=(16, "f4"), ring=(20, "u2"), time=(24, "f4")),
    "pcl normals 48": layout(48, **XYZ, normal=(16, "f4", 3), intensity=(32, "f4"), curvature=(36, "f4")),
    "ouster 48": layout(
        48, **XYZ, intensity=(16, "f4"), t=(20, "u4"), reflectivity=(24, "u2"), ring=(26, "u2"), ambient=(28, "u2"),
        range=(32, "u4"),
    ),
    "autoware xyzirc 16": layout(16, **XYZ, intensity=(12, "u1"), return_type=(13, "u1"), channel=(14, "u2")),
    "autoware xyzircaedt 32": layout(
        32, **XYZ, intensity=(12, "u1"), return_type=(13, "u1"), channel=(14, "u2"), azimuth=(16, "f4"),
        elevation=(20, "f4"), distance=(24, "f4"), time_stamp=(28, "u4"),
    ),
    "hesai 26": layout(26, **XYZ, intensity=(12, "f4"), ring=(16, "u2"), timestamp=(18, "f8")),
    "livox 26": layout(26, **XYZ, intensity=(12, "f4"), tag=(16, "u1"), line=(17, "u1"), timestamp=(18, "f8")),
    "uint16 intensity 14": layout(14, **XYZ, intensity=(12, "u2")),
    "float64 40": layout(40, x=(0, "f8"), y=(8, "f8"), z=(16, "f8"), intensity=(24, "f4"), ring=(28, "u1")),
    "reversed 22": layout(22, ring=(0, "u2"), intensity=(2, "f4"), z=(6, "f4"), y=(10, "f4"), x=(14, "f4")),
    "intensity first 17": layout(17, intensity=(1, "f4"), x=(5, "f4"), y=(9, "f4"), z=(13, "f4")),
    "unaligned mix 23": layout(23, x=(1, "f4"), y=(6, "f4"), z=(11, "f4"), intensity=(17, "u2"), ring=(21, "i1")),
    "integers 13": layout(13, x=(0, "i2"), y=(2, "i4"), z=(6, "i1"), intensity=(7, "u4"), ring=(11, "i2")),
}  # fmt: skip


def random_points(dtype: np.dtype[Any], shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Points with random values: floats in -80..80, integers in their whole range, and non-zero gaps."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    points = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8).view(dtype).reshape(shape)
    for name in dtype.names or ():
        if points[name].dtype.kind == "f":
            points[name] = rng.uniform(-80, 80, points[name].shape)
    return points


def swapped(points: np.ndarray) -> np.ndarray:
    """The same values, offsets and gaps in big-endian order."""
    big = np.empty(points.shape, points.dtype.newbyteorder(">"))
    big.reshape(-1).view(np.uint8)[...] = np.ascontiguousarray(points).reshape(-1).view(np.uint8)
    for name in points.dtype.names or ():
        big[name] = points[name]
    return big


def bytes_of(points: np.ndarray) -> np.ndarray:
    """(N, point_step) uint8 of the points, including gaps."""
    return np.frombuffer(points.tobytes(), np.uint8).reshape(points.size, points.dtype.itemsize)


def message(
    points: np.ndarray,
    row_padding: int = 0,
    container: Callable[[bytes], Any] = lambda data: array.array("B", data),
    cloud_type: Any = PointCloud2,
    field_type: Any = PointField,
    header: Any = None,
    is_dense: bool = True,
) -> Any:
    """A message with these bytes: (N,) unorganised or (H, W) organised, with `row_padding` bytes after each row."""
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    step = points.dtype.itemsize
    rows = np.frombuffer(points.tobytes(), np.uint8).reshape(height, width * step)
    padding = np.full((height, row_padding), 0xAB, np.uint8)
    bases = {name: points.dtype.fields[name][0] for name in points.dtype.names}  # type: ignore[index,union-attr]
    return cloud_type(
        header=header if header is not None else Header(Stamp(1700000000, 123456789), "velodyne"),
        height=height,
        width=width,
        fields=[
            field_type(
                name=name,
                offset=int(points.dtype.fields[name][1]),  # type: ignore[index]
                datatype=NUMBERS[base.base.str[1:]],
                count=base.shape[0] if base.shape else 1,
            )
            for name, base in bases.items()
        ],
        is_bigendian=any(base.base.byteorder == ">" for base in bases.values()),
        point_step=step,
        row_step=width * step + row_padding,
        data=container(np.hstack([rows, padding]).tobytes()),
        is_dense=is_dense,
    )


def dtype_of(cloud: Any, count_of: Callable[[Any], int] = lambda f: max(f.count, 1)) -> np.dtype[Any]:
    """The numpy type of a message's points, by its fields."""
    order = ">" if cloud.is_bigendian else "<"
    return np.dtype(
        {
            "names": [f.name for f in cloud.fields],
            "formats": [(order + TYPES[f.datatype], (count_of(f),) if count_of(f) > 1 else ()) for f in cloud.fields],
            "offsets": [f.offset for f in cloud.fields],
            "itemsize": cloud.point_step,
        }
    )


def points_of(cloud: Any) -> np.ndarray:
    """(height, width) structured array of a message's points, a copy."""
    dtype = dtype_of(cloud)
    raw = bytes(cloud.data)
    height = cloud.height if cloud.width else 0  # a cloud may have 2**31 - 1 empty rows
    rows = [raw[row * cloud.row_step :][: cloud.width * cloud.point_step] for row in range(height)]
    return np.frombuffer(b"".join(rows), dtype).reshape(cloud.height, cloud.width).copy()


def first(values: np.ndarray, ndim: int) -> np.ndarray:
    """A field's first element if it is a subarray; `ndim` is the number of axes of the points."""
    return values[..., 0] if values.ndim > ndim else values


def expected_columns(points: np.ndarray, intensity: str = "intensity") -> np.ndarray:
    """(N, 4) float32 x, y, z, intensity of a structured array, row by row."""
    flat = points.reshape(-1)
    names = ("x", "y", "z", intensity) if intensity else ("x", "y", "z")
    columns = np.zeros((len(flat), 4), np.float32)
    with np.errstate(all="ignore"):
        for k, name in enumerate(names):
            columns[:, k] = first(flat[name], 1).astype(np.float32)
    return columns
