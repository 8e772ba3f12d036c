# SPDX-License-Identifier: Apache-2.0
"""Readers of point-cloud files, one function per format, each through the library of its format.

A reader yields the fields of one cloud after another, as arrays by name in the order of the points. It may raise any
error: `data/point_files.py` turns it into a message that names the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.semantic_kitti import read_scan
from sqsegv3_ros.errors import UserError, missing_package

Fields = dict[str, npt.NDArray[Any]]

KITTI_FIELDS = ("x", "y", "z", "intensity")
NUSCENES_FIELDS = (*KITTI_FIELDS, "ring")


def read_kitti(path: Path) -> Iterator[Fields]:
    """Read a .bin of KITTI: x, y, z, remission as float32."""
    yield _by_column(read_scan(path), KITTI_FIELDS)


def read_nuscenes(path: Path) -> Iterator[Fields]:
    """Read a .pcd.bin of nuScenes: x, y, z, intensity (0..255), ring as float32."""
    data = path.read_bytes()
    if len(data) % 20:
        raise UserError(
            f"{path}: {len(data)} bytes is not a whole number of points "
            "(20 bytes each: x, y, z, intensity, ring as float32)"
        )
    yield _by_column(np.frombuffer(data, "<f4").reshape(-1, 5), NUSCENES_FIELDS)


def read_pcd(path: Path) -> Iterator[Fields]:
    """Read a .pcd of PCL: ascii, binary or compressed."""
    try:
        from pypcd4 import PointCloud
    except ImportError as error:
        raise missing_package("pypcd4", "reading a PCD file", "files") from error
    with path.open("rb") as file:
        if b"FIELDS" not in file.read(4096):
            raise ValueError("its header has no FIELDS")
    cloud = PointCloud.from_path(path)
    points = np.atleast_1d(cloud.pc_data)
    _require_points(cloud.metadata.points, len(points))
    yield _by_name(points)


def read_ply(path: Path) -> Iterator[Fields]:
    """Read the vertices of a .ply: ascii or binary."""
    try:
        from plyfile import PlyData
    except ImportError as error:
        raise missing_package("plyfile", "reading a PLY file", "files") from error
    ply = PlyData.read(path)
    if "vertex" not in ply:
        raise ValueError(f"it has no element 'vertex' (elements: {', '.join(e.name for e in ply) or 'none'})")
    yield {name.removeprefix("scalar_"): values for name, values in _by_name(ply["vertex"].data).items()}


def read_npy(path: Path) -> Iterator[Fields]:
    """Read a .npy: structured points, or a plain array whose last axis is x, y, z, intensity."""
    points = np.load(path, allow_pickle=False)
    if points.dtype.names is not None:
        yield _by_name(points.reshape(-1))
        return
    if points.ndim < 2 or points.shape[-1] < 3 or points.dtype.kind not in "fiu":
        raise ValueError(
            f"it has {points.dtype} of shape {points.shape}; expected structured points, or numbers of shape (N, 4): "
            "x, y, z, intensity"
        )
    yield _by_column(points.reshape(-1, points.shape[-1]), KITTI_FIELDS)


def read_las(path: Path) -> Iterator[Fields]:
    """Read a .las or a compressed .laz: intensity is 0..65535."""
    try:
        import laspy
        import lazrs  # noqa: F401  decompresses .laz for laspy
    except ImportError as error:
        raise missing_package("laspy[lazrs]", "reading a LAS file", "files") from error
    cloud = laspy.read(path)
    _require_points(cloud.header.point_count, len(cloud.points))
    fields = {axis: np.asarray(cloud[axis]) for axis in "xyz"}  # scaled, unlike the stored X, Y, Z
    stored = (name for name in cloud.point_format.dimension_names if name not in ("X", "Y", "Z"))
    yield fields | {name.lower(): np.asarray(cloud[name]) for name in stored}


def read_ouster(path: Path) -> Iterator[Fields]:
    """Read the scans of an Ouster recording: .pcap with its .json, or .osf.

    The points are those that the ROS driver publishes: destaggered, row by row, reflectivity 0..255, in the sensor's
    frame, (0, 0, 0) for beams without a return. `ring` is the row.
    """
    try:
        from ouster.sdk import core, open_source
        from ouster.sdk.open_source import SourceURLException
    except ImportError as error:
        raise missing_package("ouster-sdk", "reading an Ouster recording", "ouster") from error
    try:
        source = open_source(str(path))
    except SourceURLException as error:
        reason = str(error.get_sub_exception())
        hint = "; the sensor's metadata must be beside it, as <name>.json" if "metadata" in reason else ""
        raise ValueError(reason.rstrip(".") + hint) from error
    to_xyz: dict[str, Any] = {}
    for frames in source:
        for frame in (frame for frame in frames if frame is not None):
            info = frame.sensor_info
            if info.sn not in to_xyz:
                to_xyz[info.sn] = core.XYZLut(info)
            xyz = core.destagger(info, to_xyz[info.sn](frame)).reshape(-1, 3)
            fields = _by_column(xyz, ("x", "y", "z"))
            for name in ("REFLECTIVITY", "SIGNAL", "NEAR_IR"):
                if frame.has_field(name):
                    fields[name.lower()] = core.destagger(info, frame.field(name)).reshape(-1)
            fields["ring"] = np.repeat(np.arange(frame.h), frame.w)
            yield fields


def _by_column(points: npt.NDArray[Any], names: tuple[str, ...]) -> Fields:
    return {name: points[:, column] for column, name in enumerate(names[: points.shape[1]])}


def _by_name(points: npt.NDArray[Any]) -> Fields:
    return {name.lower(): points[name] for name in points.dtype.names or ()}


def _require_points(announced: int, found: int) -> None:
    if announced != found:
        raise ValueError(f"its header declares {announced} points, but it has {found}")
