# SPDX-License-Identifier: Apache-2.0
"""The sensor's extrinsics from TF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics

if TYPE_CHECKING:
    from rclpy.node import Node


class TfExtrinsics:
    """The extrinsics of each frame in which clouds arrive, read from TF once.

    A transform's rotation levels the sensor, and its z translation is the sensor's height above the ground. The node
    listens to TF only until the frame of its clouds is known, as /tf may have hundreds of messages a second.

    Args:
        node: Node that listens. Its executor must call `find`, so that no callback runs meanwhile.
        base_frame: Level frame on the ground.

    Raises:
        UserError: tf2_ros is not installed.
    """

    def __init__(self, node: Node, base_frame: str) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise UserError(
                "base_frame is set, but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or leave "
                "base_frame empty and set extrinsics.roll_deg, extrinsics.pitch_deg, extrinsics.yaw_deg and "
                "extrinsics.height_m"
            ) from None
        self._tf2_ros = tf2_ros
        self._node, self._base_frame = node, base_frame
        self._known: dict[str, Extrinsics] = {}
        self._listener: Any = None
        self._listen()

    def find(self, frame: str) -> Extrinsics:
        """Return the extrinsics of a sensor.

        Args:
            frame: The sensor's frame, of the cloud's header.

        Raises:
            UserError: The transform is not known yet.
        """
        from rclpy.time import Time

        if frame in self._known:
            return self._known[frame]
        if self._listener is None:
            self._listen()
        try:
            transform = self._buffer.lookup_transform(self._base_frame, frame, Time()).transform  # Time(): the latest
        except self._tf2_ros.TransformException as error:
            raise UserError(
                f"no transform from the cloud's frame '{frame}' to base_frame '{self._base_frame}': {error}; publish "
                "it, or leave base_frame empty and set extrinsics.*"
            ) from error
        self.close()
        q, height_m = transform.rotation, transform.translation.z
        self._known[frame] = Extrinsics.from_quaternion(q.x, q.y, q.z, q.w, height_m if height_m > 0 else None)
        return self._known[frame]

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None

    def _listen(self) -> None:
        self._buffer = self._tf2_ros.Buffer()
        self._listener = self._tf2_ros.TransformListener(self._buffer, self._node)
