# SPDX-License-Identifier: Apache-2.0
"""The sensor's poses for the vote of several sweeps, from TF or from an odometry topic."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from sqsegv3_ros.data.rotations import transform_from_quaternion
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.settings import Settings
from sqsegv3_ros.inference.sweeps import Pose

if TYPE_CHECKING:
    from rclpy.node import Node

MAX_WAIT_S = 0.05  # for a pose that arrives after its cloud has been labelled
POLL_S = 0.005
HISTORY = 500  # messages of odometry: 5 s at 100 Hz


class SweepPoses:
    """Listens to poses from construction to `close`.

    Args:
        node: Node that listens.
        settings: Values of sweeps.fixed_frame and sweeps.odometry_topic.

    Raises:
        UserError: tf2_ros or nav_msgs is not installed.
    """

    def __init__(self, node: Node, settings: Settings) -> None:
        topic, frame = settings["sweeps.odometry_topic"], settings["sweeps.fixed_frame"]
        self._source = _Odometry(node, topic) if topic else _Tf(node, frame)

    def find(self, header: Any) -> Pose:
        """Return the pose of a cloud's sensor, after waiting for it for a moment. Called by the worker's thread.

        Args:
            header: The cloud's header.

        Raises:
            UserError: The pose is not known.
        """
        end = time.monotonic() + MAX_WAIT_S
        while True:
            try:
                return self._source.find(header)
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)

    def close(self) -> None:
        """Stop listening."""
        self._source.close()


class _Tf:
    """Poses from TF."""

    def __init__(self, node: Node, fixed_frame: str) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise UserError(
                "sweeps.count is set, but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or set "
                "sweeps.odometry_topic"
            ) from None
        self._tf2_ros, self._fixed_frame = tf2_ros, fixed_frame
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def find(self, header: Any) -> Pose:
        from rclpy.time import Time

        try:
            stamp = Time.from_msg(header.stamp)
            transform = self._buffer.lookup_transform(self._fixed_frame, header.frame_id, stamp).transform
        except self._tf2_ros.TransformException as error:
            raise UserError(
                f"no transform from the cloud's frame '{header.frame_id}' to sweeps.fixed_frame "
                f"'{self._fixed_frame}': {error}"
            ) from error
        q = transform.rotation
        return transform_from_quaternion(_vector(transform.translation), (q.x, q.y, q.z, q.w))

    def close(self) -> None:
        self._listener.unregister()


class _Odometry:
    """Poses from nav_msgs/Odometry, interpolated to the time of a cloud."""

    def __init__(self, node: Node, topic: str) -> None:
        try:
            from nav_msgs.msg import Odometry
        except ImportError:
            raise UserError(
                "sweeps.odometry_topic is set, but nav_msgs is not installed: install ros-$ROS_DISTRO-nav-msgs"
            ) from None
        from rclpy.qos import qos_profile_sensor_data

        self._node = node
        self._lock = threading.Lock()  # messages arrive on the executor's thread
        self._stamps: deque[int] = deque(maxlen=HISTORY)
        self._poses: deque[Any] = deque(maxlen=HISTORY)
        self._frame = ""
        # best effort hears publishers of either reliability
        self._subscription = node.create_subscription(Odometry, topic, self._keep, qos_profile_sensor_data)

    def _keep(self, message: Any) -> None:
        with self._lock:
            stamp_ns = _nanoseconds(message.header.stamp)
            if self._stamps and stamp_ns <= self._stamps[-1]:  # a recording is replayed again
                self._stamps.clear()
                self._poses.clear()
            self._stamps.append(stamp_ns)
            self._poses.append(message.pose.pose)
            self._frame = message.child_frame_id

    def find(self, header: Any) -> Pose:
        stamp_ns = _nanoseconds(header.stamp)
        with self._lock:
            if not self._stamps:
                raise UserError(f"no odometry on {self._subscription.topic_name}")
            if self._frame != header.frame_id:
                raise UserError(
                    f"the odometry on {self._subscription.topic_name} is that of '{self._frame}', but the cloud's "
                    f"frame is '{header.frame_id}'; use odometry of that frame, or TF (sweeps.odometry_topic empty)"
                )
            if not self._stamps[0] <= stamp_ns <= self._stamps[-1]:
                first_ms, last_ms = ((stamp - stamp_ns) / 1e6 for stamp in (self._stamps[0], self._stamps[-1]))
                raise UserError(
                    f"no odometry at the cloud's time on {self._subscription.topic_name}: its messages are from "
                    f"{first_ms:+.0f} to {last_ms:+.0f} ms"
                )
            after = bisect_left(self._stamps, stamp_ns)
            before = max(after - 1, 0) if self._stamps[after] != stamp_ns else after
            first, second = self._poses[before], self._poses[after]
            span_ns = self._stamps[after] - self._stamps[before]
            share = (stamp_ns - self._stamps[before]) / span_ns if span_ns else 0.0
        return _interpolated(first, second, share)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


def _interpolated(first: Any, second: Any, share: float) -> Pose:
    """The pose between two geometry_msgs/Pose, a share of the way; rotations along the chord, as they are close."""
    positions = [_vector(pose.position) for pose in (first, second)]
    a, b = (np.append(_vector(pose.orientation), pose.orientation.w) for pose in (first, second))
    if a @ b < 0:
        b = -b  # the same rotation
    position = (1 - share) * positions[0] + share * positions[1]
    return transform_from_quaternion(position, ((1 - share) * a + share * b).tolist())


def _vector(values: Any) -> Any:
    return np.array([values.x, values.y, values.z])


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
