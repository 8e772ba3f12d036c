"""The other ends of the running node: a process that publishes clouds, and one that receives the labelled ones.

The time of publication goes along in the stamp, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine
share; the receiver subtracts it from the same clock's time at the receipt.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NODE = "/sqsegv3"


class Peer:
    """One end. role: 'publisher' or 'receiver'. answer: where the receiver says what has come."""

    def __init__(self, role: str, answer: Callable[[dict[str, Any]], None], scan: str = "") -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import PointCloud2, PointField

        from sqsegv3_ros.cloud import make_cloud

        rclpy.init()
        self._node = rclpy.create_node(f"benchmark_{role}")
        self._answer = answer
        self._stages: dict[str, str] = {}
        reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        if role == "publisher":
            self._cloud = make_cloud(np.load(scan), PointCloud2, PointField)
            self._cloud.header.frame_id = "velodyne"
            self._publisher = self._node.create_publisher(PointCloud2, f"{NODE}/input/points", reliable)
        else:
            from diagnostic_msgs.msg import DiagnosticArray

            self._node.create_subscription(PointCloud2, f"{NODE}/output/points", self._on_cloud, reliable)
            self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def connected(self) -> dict[str, Any]:
        """Whether the node is there, at the other end."""
        if hasattr(self, "_publisher"):
            return {"connected": self._publisher.get_subscription_count() > 0}
        return {"connected": self._node.count_publishers(f"{NODE}/output/points") > 0}

    def publish(self) -> dict[str, Any]:
        """Publish the cloud, stamped with this moment."""
        now = time.monotonic_ns()
        self._cloud.header.stamp.sec, self._cloud.header.stamp.nanosec = divmod(now, 10**9)
        self._publisher.publish(self._cloud)
        return {"stamp_ns": now, "took_ms": (time.monotonic_ns() - now) / 1e6}

    def _on_cloud(self, cloud: Any) -> None:
        now = time.monotonic_ns()
        stamp = cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec
        self._answer({"stamp_ns": stamp, "latency_ms": (now - stamp) / 1e6, "received_ns": now})

    def _on_diagnostics(self, array: Any) -> None:
        for status in array.status:
            if status.name.endswith("processing"):
                self._stages = {value.key: value.value for value in status.values}

    def stages(self) -> dict[str, Any]:
        """What the node's diagnostics last said about processing."""
        return {"diagnostics": self._stages}

    def close(self) -> None:
        """Leave ROS."""
        import rclpy

        self._executor.shutdown(timeout_sec=2)
        self._node.destroy_node()
        rclpy.try_shutdown()
