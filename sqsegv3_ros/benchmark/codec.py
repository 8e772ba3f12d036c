# SPDX-License-Identifier: Apache-2.0
"""Decoding and encoding clouds in the usual layouts, without ROS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sqsegv3_ros import process
from sqsegv3_ros.benchmark.layouts import LAYOUTS
from sqsegv3_ros.benchmark.messages import PointCloud2, PointField
from sqsegv3_ros.benchmark.stages import timed
from sqsegv3_ros.data.ros2_messages import structured_points


class Codec:
    """The cloud codec on random points."""

    def __init__(self, points: int) -> None:
        process.prepare()
        from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
        from sqsegv3_ros.pointcloud2 import make_cloud

        generator = np.random.default_rng(0)
        self._colors = SEMANTIC_KITTI.colors
        self._labels = generator.integers(0, len(self._colors), points).astype(np.uint8)
        self._confidences = generator.random(points, np.float32)
        values = generator.normal(0, 10, (points, 4)).astype(np.float32)
        values[:, 3] = np.abs(values[:, 3])
        self._clouds = {}
        for name, (dtype, shape) in _layouts(points).items():
            cloud = structured_points(values[: math.prod(shape)], dtype).reshape(shape)
            self._clouds[name] = make_cloud(cloud, PointCloud2, PointField)

    def run(self) -> dict[str, Any]:
        """Milliseconds of decoding and of encoding, by layout."""
        from sqsegv3_ros.pointcloud2 import LabelledCloudWriter, decode

        writer = LabelledCloudWriter(self._colors)
        result = {}
        for name, cloud in self._clouds.items():
            _, decoding = timed(lambda cloud=cloud: decode(cloud))  # type: ignore[misc]
            _, encoding = timed(lambda cloud=cloud: writer.write(cloud, self._labels, self._confidences))  # type: ignore[misc]
            result[name] = [decoding["wall_ms"], encoding["wall_ms"]]
        return {"layouts": result}


def _layouts(points: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Point layouts of sensors and drivers, and the shape of the cloud."""
    flat, rows = (points,), (points // 1000, 1000)
    xyz = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    return {
        "16 B: x y z intensity": (LAYOUTS[16], flat),
        "22 B: velodyne, packed": (LAYOUTS[22], flat),
        "32 B: velodyne, PCL padding": (LAYOUTS[32], flat),
        "32 B: organised": (LAYOUTS[32], rows),
        "16 B: big-endian": (LAYOUTS[16].newbyteorder(">"), flat),
        "28 B: float64 x y z": (np.dtype([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("intensity", "<f4")]), flat),
        "15 B: intensity uint8, ring uint16": (np.dtype([*xyz, ("intensity", "u1"), ("ring", "<u2")]), flat),
    }
