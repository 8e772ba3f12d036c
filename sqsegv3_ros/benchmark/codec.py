# SPDX-License-Identifier: Apache-2.0
"""Decoding and encoding clouds in the usual layouts, without ROS."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros import process
from sqsegv3_ros.benchmark.messages import PointCloud2, PointField
from sqsegv3_ros.benchmark.stages import timed


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
        self._clouds = {
            name: make_cloud(_structured(dtype, values, shape), PointCloud2, PointField)
            for name, (dtype, shape) in _layouts(points).items()
        }

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


def _layouts(points: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Point layouts of sensors and drivers, and the shape of the cloud."""
    flat, rows = (points,), (points // 1000, 1000)
    xyz = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    padded = {"names": ["x", "y", "z", "intensity", "ring", "time"], "formats": ["<f4"] * 4 + ["<u2", "<f4"]}
    return {
        "16 B: x y z intensity": ([*xyz, ("intensity", "<f4")], flat),
        "22 B: velodyne, packed": ([*xyz, ("intensity", "<f4"), ("ring", "<u2"), ("time", "<f4")], flat),
        "32 B: velodyne, PCL padding": ({**padded, "offsets": [0, 4, 8, 16, 20, 24], "itemsize": 32}, flat),
        "32 B: organised": ({**padded, "offsets": [0, 4, 8, 16, 20, 24], "itemsize": 32}, rows),
        "16 B: big-endian": ([(name, ">f4") for name in ("x", "y", "z", "intensity")], flat),
        "28 B: float64 x y z": ([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("intensity", "<f4")], flat),
        "15 B: intensity uint8, ring uint16": ([*xyz, ("intensity", "u1"), ("ring", "<u2")], flat),
    }


def _structured(layout: Any, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    cloud = np.zeros(len(values), np.dtype(layout))
    for column, name in enumerate(("x", "y", "z", "intensity")):
        cloud[name] = np.abs(values[:, column]) if name == "intensity" else values[:, column]
    return cloud[: int(np.prod(shape))].reshape(shape)
