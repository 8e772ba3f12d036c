"""The sensor's mount from TF: a level frame and the sensor's frame go in, the rotation between them comes out."""

from __future__ import annotations

from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.mount import Mount
from sqsegv3_ros.parameters import Settings


def read_mount(node: Any, settings: Settings) -> Mount:
    """Wait for the transform base_frame <- sensor_frame and keep its rotation. Raises UserError where it does not come.

    The transforms are received by a node of their own, because the asking node is busy with its transition.
    """
    try:
        import rclpy
        import tf2_ros
        from rclpy.duration import Duration
        from rclpy.time import Time
    except ImportError:
        raise UserError(
            "base_frame is set, but tf2_ros is not installed: install ros-$ROS_DISTRO-tf2-ros-py, or leave base_frame "
            "empty and set mount.roll_deg, mount.pitch_deg, mount.yaw_deg"
        ) from None
    base, sensor = settings["base_frame"], settings["sensor_frame"]
    listener_node = rclpy.create_node(f"{node.get_name()}_mount", context=node.context)
    try:
        buffer = tf2_ros.Buffer(node=listener_node)
        tf2_ros.TransformListener(buffer, listener_node, spin_thread=True)
        timeout = Duration(seconds=settings["tf_timeout_s"])
        rotation = buffer.lookup_transform(base, sensor, Time(), timeout=timeout).transform.rotation
    except tf2_ros.TransformException as error:
        raise UserError(
            f"no transform from '{sensor}' to '{base}' within {settings['tf_timeout_s']} s: {error}"
        ) from error
    finally:
        listener_node.destroy_node()
    return Mount.from_quaternion(rotation.x, rotation.y, rotation.z, rotation.w)
