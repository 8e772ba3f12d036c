"""The sensor's mount from TF: a level frame and the sensor's frame go in, rotation and height come out."""

from __future__ import annotations

import time
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.settings import Settings

_POLL_S = 0.05


def read_extrinsics(node: Any, settings: Settings) -> Extrinsics:
    """Wait for the transform base_frame <- sensor_frame. Raises UserError where it does not come.

    Its rotation levels the sensor, and how high it stands above the base frame is its height over the ground.

    The transforms are received by a node of their own, which is spun here: the asking node's executor is busy with its
    transition. (The listener's own thread, spin_thread=True, would keep the listener alive and go on for ever.)
    """
    try:
        import tf2_ros
    except ImportError:
        raise UserError(
            "base_frame is set, but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or leave base_frame "
            "empty and set mount.roll_deg, mount.pitch_deg, mount.yaw_deg"
        ) from None
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.time import Time

    base, sensor, timeout_s = settings["base_frame"], settings["sensor_frame"], settings["tf_timeout_s"]
    # it may be renamed to the asking node's name by the command line, so it offers nothing under that name
    listener_node = rclpy.create_node(
        f"{node.get_name()}_mount", context=node.context, start_parameter_services=False, enable_rosout=False
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(listener_node)
    try:
        buffer = tf2_ros.Buffer()
        listener = tf2_ros.TransformListener(buffer, listener_node)
        end = time.monotonic() + timeout_s
        while not buffer.can_transform(base, sensor, Time()) and time.monotonic() < end:
            executor.spin_once(timeout_sec=_POLL_S)
        transform = buffer.lookup_transform(base, sensor, Time()).transform  # Time(): the newest there is
        listener.unregister()
    except tf2_ros.TransformException as error:
        raise UserError(f"no transform from '{sensor}' to '{base}' came within {timeout_s:g} s: {error}") from error
    finally:
        executor.shutdown()
        listener_node.destroy_node()
    rotation = transform.rotation
    return Extrinsics.from_quaternion(rotation.x, rotation.y, rotation.z, rotation.w, max(transform.translation.z, 0.0))
