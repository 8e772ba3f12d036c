# SPDX-License-Identifier: Apache-2.0
"""Seeded generator of PointCloud2 messages that are malformed in ways that can be transmitted. Fast, without ROS."""

from __future__ import annotations

import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from clouds import LAYOUTS, PointCloud2, PointField, layout, message, random_points, swapped

SIZES = [(1, 3), (2, 4), (3, 5), (1, 1), (1, 64), (1, 0), (0, 3)]
NUMBERS = [0, 1, 2, 3, 5, 7, 12, 16, 22, 255, 256, 65535, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
NAMES = [*"xyz", "intensity", "ring", "i", "rgb", "label", "confidence", "_", "", "größe", "\U0001f600", "n" * 300]
ODD_VALUES = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-45, -0.0, 0.0, 3e38], np.float32)
_OVERLAPPING = layout(12, x=(0, "f4"), y=(2, "f4"), z=(4, "f4"), intensity=(6, "f4"), ring=(1, "u2"))


def sound_clouds(seed: int) -> list[PointCloud2]:
    """Valid clouds of all layouts, in several sizes, byte orders and paddings, some with overlapping fields."""
    rng = np.random.default_rng(seed)
    clouds = []
    for dtype in [*LAYOUTS.values(), _OVERLAPPING]:
        for size in SIZES:
            points = random_points(dtype, size, int(rng.integers(2**31)))
            for name in ("x", "y", "z"):
                if points.size and points[name].dtype.kind == "f" and rng.random() < 0.3:
                    points[name].flat[0] = rng.choice(ODD_VALUES)
            if dtype is not _OVERLAPPING and rng.random() < 0.2:
                points = swapped(points)
            clouds.append(message(points, row_padding=int(rng.choice([0, 0, 0, 5])), header=None))
    return clouds


def malformed_clouds(seed: int, count: int) -> Iterator[PointCloud2]:
    """`count` messages with one or two changes, the same for the same seed. Some stay valid by chance."""
    rng = np.random.default_rng(seed)
    pool = sound_clouds(seed)
    block = 4096
    for begin in range(0, count, block):
        dice = rng.integers(
            0, 2**31, (min(block, count - begin), 20)
        ).tolist()  # in one call, which takes the most time
        for d in dice:
            cloud = copy_of(pool[d[0] % len(pool)])
            for k in range(1 + (d[1] % 4) // 2):
                _CHANGES[d[2 + k] % len(_CHANGES)](cloud, d[5 + 5 * k : 10 + 5 * k])
            yield cloud


def copy_of(cloud: PointCloud2) -> PointCloud2:
    """A copy whose fields can be changed, and whose data can be replaced."""
    fields = [PointField(f.name, f.offset, f.datatype, f.count) for f in cloud.fields]
    return PointCloud2(cloud.header, cloud.height, cloud.width, fields, cloud.is_bigendian, cloud.point_step,
                       cloud.row_step, cloud.data, cloud.is_dense)  # fmt: skip


def _number(near: int, d: list[int]) -> int:
    how = d[0] % 4
    if how == 0:
        return NUMBERS[d[1] % len(NUMBERS)]
    return d[1] * 2 + d[2] % 2 if how == 1 else max(near + (-1, 1, 2, 4, 16, -4)[d[1] % 6], 0)


def _size(cloud: PointCloud2, d: list[int]) -> None:
    name = ("height", "width", "point_step", "row_step")[d[3] % 4]
    setattr(cloud, name, _number(getattr(cloud, name), d))


def _field(cloud: PointCloud2, d: list[int]) -> None:
    if not cloud.fields:
        return
    field = cloud.fields[d[3] % len(cloud.fields)]
    what = d[4] % 4
    if what == 0:
        field.name = NAMES[d[0] % len(NAMES)]
    elif what == 1:
        field.offset = _number(field.offset, d)
    elif what == 2:
        field.count = _number(field.count, d)
    else:
        field.datatype = d[0] % 256 if d[1] % 2 else d[0] % 13


def _fields(cloud: PointCloud2, d: list[int]) -> None:
    how = d[0] % 4
    if how == 0:
        cloud.fields = []
    elif how == 1:
        cloud.fields = cloud.fields[: d[1] % (len(cloud.fields) + 1)]
    elif how == 2:
        cloud.fields = cloud.fields + [PointField(**vars(f)) for f in cloud.fields[:2]]
    else:
        cloud.fields = cloud.fields + [PointField(f"f{i}", 0, 2, 1) for i in range(d[1] % 300)]


def _data(cloud: PointCloud2, d: list[int]) -> None:
    data = bytes(cloud.data)
    how = d[0] % 4
    if how == 0:
        data = data[: d[1] % (len(data) + 1)]
    elif how == 1:
        data += bytes(d[1] % 40)
    elif how == 2:
        data = b""
    else:
        data = bytes(b ^ (d[1] >> (i % 24)) & 255 for i, b in enumerate(data[:64])) + data[64:]
    cloud.data = array.array("B", data)


def _sizes(cloud: PointCloud2, d: list[int]) -> None:
    """Declared sizes that are consistent, but not with the data."""
    cloud.width, cloud.height = NUMBERS[d[0] % len(NUMBERS)], NUMBERS[d[1] % len(NUMBERS)]
    cloud.row_step = cloud.width * cloud.point_step % 2**32


def _order(cloud: PointCloud2, d: list[int]) -> None:
    cloud.is_bigendian = not cloud.is_bigendian


_CHANGES: list[Any] = [_size, _size, _field, _field, _fields, _data, _sizes, _order]
