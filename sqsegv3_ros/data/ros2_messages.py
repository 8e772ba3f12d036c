# SPDX-License-Identifier: Apache-2.0
"""ROS 2 messages of recordings that the package writes: point layouts, topics, frames and serialization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, ros2_types
from sqsegv3_ros.data.rotations import Matrix, quaternion_from_rotation
from sqsegv3_ros.pointcloud2 import make_cloud

CLOCK_TYPE, TF_TYPE = "rosgraph_msgs/msg/Clock", "tf2_msgs/msg/TFMessage"
TOPIC, FRAME, WORLD_FRAME, CAMERA_FRAME = "/velodyne_points", "velodyne", "map", "camera"
START_NS = 1_700_000_000 * 10**9  # stamp of the first scan: fixed, and far from 0, which ROS reads as unset
_XYZI = {name: ("<f4", 4 * i) for i, name in enumerate(("x", "y", "z", "intensity"))}


def point_type(itemsize: int, **fields: tuple[str, int]) -> np.dtype[Any]:
    """Make a point type: x, y, z, intensity as float32, then further fields as name=(type, byte offset)."""
    layout = {**_XYZI, **fields}
    formats, offsets = zip(*layout.values(), strict=True)
    return np.dtype({"names": list(layout), "formats": formats, "offsets": offsets, "itemsize": itemsize})


POINT = point_type(16)
POINT_GROUND_TRUTH = point_type(20, ground_truth=("u1", 16))
# raw_label: the data set's own value with raw id and instance, so that a conversion and back loses nothing
POINT_RAW_LABEL = point_type(24, raw_label=("<u4", 16), ground_truth=("u1", 20))
POINT_RING = point_type(20, ring=("<u2", 16), ground_truth=("u1", 18))


def structured_points(points: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert (N, 4) x, y, z, intensity to (N,) points of a type above; its further fields are 0."""
    result = np.zeros(len(points), dtype)
    for column, name in enumerate(_XYZI):
        result[name] = points[:, column]
    return result


class Transform(NamedTuple):
    """A transform to publish on /tf.

    Attributes:
        matrix: (4, 4), from the child frame to the parent frame, metres.
        parent: Parent frame.
        child: Child frame.
    """

    matrix: Matrix
    parent: str
    child: str


class Ros2Messages:
    """Makes serialized (CDR) ROS 2 messages. Needs rosbags."""

    def __init__(self) -> None:
        self._store = ros2_types()
        self._types = self._store.types

    def cloud(self, points: npt.NDArray[Any], stamp_ns: int) -> memoryview:
        """Make a PointCloud2 in frame FRAME from structured points."""
        types = self._types
        header = self._header(stamp_ns, FRAME)
        cloud = make_cloud(points, types[CLOUD_TYPE], types["sensor_msgs/msg/PointField"], header)
        cloud.data = np.frombuffer(cloud.data, np.uint8)
        return self._serialized(cloud, CLOUD_TYPE)

    def tf(self, transforms: Iterable[Transform], stamp_ns: int) -> memoryview:
        """Make a TFMessage."""
        types = self._types
        stamped = []
        for matrix, parent, child in transforms:
            x, y, z, w = quaternion_from_rotation(matrix[:3, :3])
            translation = types["geometry_msgs/msg/Vector3"](*(float(value) for value in matrix[:3, 3]))
            rotation = types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
            stamped.append(
                types["geometry_msgs/msg/TransformStamped"](
                    header=self._header(stamp_ns, parent),
                    child_frame_id=child,
                    transform=types["geometry_msgs/msg/Transform"](translation=translation, rotation=rotation),
                )
            )
        return self._serialized(types[TF_TYPE](transforms=stamped), TF_TYPE)

    def clock(self, time_ns: int) -> memoryview:
        """Make a Clock."""
        return self._serialized(self._types[CLOCK_TYPE](clock=self._time(time_ns)), CLOCK_TYPE)

    def _header(self, stamp_ns: int, frame: str) -> Any:
        return self._types["std_msgs/msg/Header"](stamp=self._time(stamp_ns), frame_id=frame)

    def _time(self, time_ns: int) -> Any:
        return self._types["builtin_interfaces/msg/Time"](sec=time_ns // 10**9, nanosec=time_ns % 10**9)

    def _serialized(self, message: Any, kind: str) -> memoryview:
        serialized: memoryview = self._store.serialize_cdr(message, kind)
        return serialized
