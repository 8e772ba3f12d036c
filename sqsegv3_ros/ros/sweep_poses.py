# SPDX-License-Identifier: Apache-2.0
"""The sensor's poses for the vote of several sweeps, from TF or from an odometry topic."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time

from sqsegv3_ros.data.pose_track import PoseTrack
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
        """Wait briefly for the pose of a cloud's sensor and return it. Called on the worker's thread.

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
        try:
            stamp = Time.from_msg(header.stamp)
            transform = self._buffer.lookup_transform(self._fixed_frame, header.frame_id, stamp).transform
        except self._tf2_ros.TransformException as error:
            raise UserError(
                f"no transform from the cloud's frame '{header.frame_id}' to sweeps.fixed_frame "
                f"'{self._fixed_frame}': {error}"
            ) from error
        t, q = transform.translation, transform.rotation
        return transform_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))

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
        self._node, self._frame = node, ""
        self._lock = threading.Lock()  # messages arrive on the executor's thread
        self._track = PoseTrack(HISTORY)
        # best effort hears publishers of either reliability
        self._subscription = node.create_subscription(Odometry, topic, self._keep, qos_profile_sensor_data)

    def _keep(self, message: Any) -> None:
        stamp, pose = Time.from_msg(message.header.stamp), message.pose.pose
        with self._lock:
            self._frame = message.child_frame_id
            self._track.add(message.header.frame_id, stamp.nanoseconds, pose.position, pose.orientation)

    def find(self, header: Any) -> Pose:
        topic = self._subscription.topic_name
        with self._lock:
            if self._frame not in ("", header.frame_id):
                raise UserError(
                    f"the odometry on {topic} is that of '{self._frame}', but the cloud's frame is "
                    f"'{header.frame_id}'; use odometry of that frame, or TF (sweeps.odometry_topic empty)"
                )
            try:
                return self._track.at(Time.from_msg(header.stamp).nanoseconds)
            except UserError as error:
                raise UserError(f"no odometry at the cloud's time on {topic}: {error}") from error

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)
