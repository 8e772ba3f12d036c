# SPDX-License-Identifier: Apache-2.0
"""The sensor's extrinsics from TF."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.settings import Settings

if TYPE_CHECKING:
    from rclpy.node import Node

_POLL_S = 0.05


def read_extrinsics(node: Node, settings: Settings) -> Extrinsics:
    """Wait for the transform from the sensor's frame to the base frame.

    Its rotation levels the sensor, and its z translation is the sensor's height above the ground.

    Args:
        node: Node that asks, in whose context the transforms are received.
        settings: Values of base_frame, sensor_frame and tf_timeout_s.

    Raises:
        UserError: tf2_ros is not installed, or the transform does not arrive in time.
    """
    try:
        import tf2_ros
    except ImportError:
        raise UserError(
            "base_frame is set, but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or leave base_frame "
            "empty and set extrinsics.roll_deg, extrinsics.pitch_deg, extrinsics.yaw_deg"
        ) from None
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.time import Time

    base, sensor, timeout_s = settings["base_frame"], settings["sensor_frame"], settings["tf_timeout_s"]
    # A separate node, spun here, because the asking node's executor is busy with its transition. The listener's own
    # thread (spin_thread=True) would keep the listener alive forever. A remapping rule may give this node the asking
    # node's name, so it offers no services under it.
    listener_node = rclpy.create_node(
        f"{node.get_name()}_extrinsics", context=node.context, start_parameter_services=False, enable_rosout=False
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(listener_node)
    try:
        buffer = tf2_ros.Buffer()
        listener = tf2_ros.TransformListener(buffer, listener_node)
        end = time.monotonic() + timeout_s
        while not buffer.can_transform(base, sensor, Time()) and time.monotonic() < end:
            executor.spin_once(timeout_sec=_POLL_S)
        transform = buffer.lookup_transform(base, sensor, Time()).transform  # Time(): the latest
        listener.unregister()
    except tf2_ros.TransformException as error:
        raise UserError(f"no transform from '{sensor}' to '{base}' within {timeout_s:g} s: {error}") from error
    finally:
        executor.shutdown()
        listener_node.destroy_node()
    rotation = transform.rotation
    return Extrinsics.from_quaternion(rotation.x, rotation.y, rotation.z, rotation.w, max(transform.translation.z, 0.0))
