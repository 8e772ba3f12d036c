# SPDX-License-Identifier: Apache-2.0
"""The nodes of the load test: a publisher of clouds at a fixed rate, and a receiver of the labelled clouds.

Stamps are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.layouts import LAYOUTS
from sqsegv3_ros.data.ros2_messages import structured_points
from sqsegv3_ros.pointcloud2 import make_cloud, stamp_ns

NODE = "/sqsegv3"


class Load:
    """A publisher or a receiver, spun on a thread of its own until `close`.

    Args:
        role: 'publisher' or 'receiver'.
    """

    def __init__(self, role: str) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init()
        self._node = rclpy.create_node(f"load_{role}")
        self._latencies: list[tuple[int, float]] = []
        self._damaged = 0
        self._diagnostics: dict[str, dict[str, str]] = {}
        self._diagnostics_received_s = 0.0
        if role == "receiver":
            from diagnostic_msgs.msg import DiagnosticArray
            from sensor_msgs.msg import PointCloud2

            from sqsegv3_ros.ros.qos import OUTPUT

            self._node.create_subscription(PointCloud2, f"{NODE}/output/points", self._on_cloud, OUTPUT)
            self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    # ---- publisher -------------------------------------------------------------------------------------------------

    def publish(self, points: int, step: int, hz: float, reliable: bool, seconds: float) -> dict[str, Any]:
        """Publish clouds at a fixed rate.

        The x of the first point, derived from the stamp, identifies each cloud.

        Args:
            points: Points of a cloud.
            step: Bytes of a point, a key of LAYOUTS.
            hz: Rate.
            reliable: Reliability of the publisher.
            seconds: Duration.

        Returns:
            `sent`, the number of clouds, and `behind_ms`, the longest delay of a publication.
        """
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import PointCloud2, PointField

        from sqsegv3_ros.benchmark.scene import synthetic_scan

        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        publisher = self._node.create_publisher(
            PointCloud2, f"{NODE}/input/points", QoSProfile(depth=1, reliability=policy)
        )
        try:
            cloud = make_cloud(structured_points(synthetic_scan(points), LAYOUTS[step]), PointCloud2, PointField)
            cloud.header.frame_id = "velodyne"
            end = time.monotonic() + 30
            while publisher.get_subscription_count() == 0 and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(1.5)  # twice a second the node adapts its reliability to the publishers
            # one cloud well before and one well after the others, so that sequence numbers reveal every loss between
            begin = time.monotonic() + 1.0
            count = max(1, round(seconds * hz))
            moments = [begin - 1.0, *(begin + i / hz for i in range(count)), begin + count / hz + 1.0]
            behind_ms = max(_publish_at(moment, publisher, cloud) for moment in moments)
            time.sleep(1.0)  # until the last cloud is delivered
        finally:
            self._node.destroy_publisher(publisher)
        return {"sent": len(moments), "behind_ms": behind_ms}

    # ---- receiver --------------------------------------------------------------------------------------------------

    def _on_cloud(self, cloud: Any) -> None:
        now = time.monotonic_ns()
        stamp = stamp_ns(cloud.header)
        self._latencies.append((now, (now - stamp) / 1e6))
        self._damaged += bytes(cloud.data[0:4]) != mark(stamp)

    def _on_diagnostics(self, array: Any) -> None:
        for status in array.status:
            values = {value.key: value.value for value in status.values}
            name = status.name.partition(": ")[2]
            self._diagnostics[name] = {**values, "level": str(status.level[0]), "says": status.message}
        self._diagnostics_received_s = time.monotonic()

    def connected(self) -> dict[str, Any]:
        """Return whether the node publishes its output and its diagnostics."""
        published = self._node.count_publishers(f"{NODE}/output/points") > 0
        return {"connected": published and "input" in self._diagnostics}

    def collect(self) -> dict[str, Any]:
        """Return what has been received since the last call, with fresh diagnostics.

        Returns:
            `latencies`: receipt time (ns) and latency (ms) of each labelled cloud; `damaged`: the number of clouds with
            the data of another one; `diagnostics`: values by status name.
        """
        asked = time.monotonic()
        while self._diagnostics_received_s <= asked and time.monotonic() < asked + 10:
            time.sleep(0.02)
        latencies, self._latencies = self._latencies, []
        damaged, self._damaged = self._damaged, 0
        return {"latencies": latencies, "damaged": damaged, "diagnostics": self._diagnostics}

    def close(self) -> None:
        """Destroy the node and shut rclpy down."""
        import rclpy

        self._executor.shutdown(timeout_sec=2)
        self._thread.join(5)  # a thread that still waits in rclpy when Python ends aborts the process
        self._node.destroy_node()
        rclpy.try_shutdown()


def _publish_at(moment: float, publisher: Any, cloud: Any) -> float:
    """Publish the cloud at a given time, stamped and marked with it. Returns the delay in ms."""
    time.sleep(max(0.0, moment - time.monotonic()))
    now = time.monotonic_ns()
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(now, 10**9)
    cloud.data[0:4] = type(cloud.data)("B", mark(now))
    publisher.publish(cloud)
    return max(0.0, now / 1e6 - 1e3 * moment)


def mark(stamp_ns: int) -> bytes:
    """Return the x of a cloud's first point: a small float32 that differs from cloud to cloud."""
    return np.float32(1 + (stamp_ns // 1000 % 2**22) / 2**22).tobytes()
