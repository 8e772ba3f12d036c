"""The two ends of a node under load: a publisher of clouds at a fixed rate, and a receiver of the labelled ones.

Stamps are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

NODE = "/sqsegv3"
_F4, _U2, _U4 = np.float32, np.uint16, np.uint32
_XYZ = {"x": (0, _F4), "y": (4, _F4), "z": (8, _F4)}
# what drivers send: KITTI players, Velodyne, PCL's padded points, Ouster
LAYOUTS: dict[int, dict[str, tuple[int, Any]]] = {
    16: {**_XYZ, "intensity": (12, _F4)},
    22: {**_XYZ, "intensity": (12, _F4), "ring": (16, _U2), "time": (18, _F4)},
    32: {**_XYZ, "intensity": (16, _F4), "ring": (20, _U2), "time": (24, _F4)},
    48: {**_XYZ, "intensity": (16, _F4), "t": (20, _U4), "reflectivity": (24, _U2), "range": (32, _U4)},
}


def structured(points: npt.NDArray[np.float32], step: int) -> npt.NDArray[Any]:
    """(N, 4) x, y, z, intensity -> (N,) points of so many bytes, one of LAYOUTS; the other fields are 0."""
    fields = LAYOUTS[step]
    layout: Any = {"names": list(fields), "itemsize": step}
    layout["offsets"], layout["formats"] = zip(*fields.values(), strict=True)
    result = np.zeros(len(points), np.dtype(layout))
    for column, name in enumerate(("x", "y", "z", "intensity")):
        result[name] = points[:, column]
    return result


class Load:
    """One end. role: 'publisher' or 'receiver'."""

    def __init__(self, role: str) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init()
        self._node = rclpy.create_node(f"load_{role}")
        self._latencies: list[tuple[int, float]] = []
        self._damaged = 0
        self._said: dict[str, dict[str, str]] = {}
        self._said_at = 0.0
        if role == "receiver":
            from diagnostic_msgs.msg import DiagnosticArray
            from rclpy.qos import QoSProfile, ReliabilityPolicy
            from sensor_msgs.msg import PointCloud2

            reliable = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
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

    # ---- the publisher ---------------------------------------------------------------------------------------------

    def publish(self, points: int, step: int, hz: float, reliable: bool, seconds: float) -> dict[str, Any]:
        """Publish clouds of so many points of so many bytes at a pace. Returns how many, and the worst delay.

        The first field of the first point tells each cloud from the others: its stamp, as far as float32 holds it.
        """
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import PointCloud2, PointField

        from sqsegv3_ros.benchmark.scene import synthetic_scan
        from sqsegv3_ros.pointcloud2 import make_cloud

        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        publisher = self._node.create_publisher(
            PointCloud2, f"{NODE}/input/points", QoSProfile(depth=1, reliability=policy)
        )
        try:
            cloud = make_cloud(structured(synthetic_scan(points), step), PointCloud2, PointField)
            cloud.header.frame_id = "velodyne"
            end = time.monotonic() + 30
            while publisher.get_subscription_count() == 0 and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(2.5)  # the node chooses its reliability by the publishers that it sees, once a second
            # one apart before and one after the others: the node knows by them that those between are missing
            begin = time.monotonic() + 1.0
            count = max(1, round(seconds * hz))
            moments = [begin - 1.0, *(begin + i / hz for i in range(count)), begin + count / hz + 1.0]
            behind_ms = max(_publish_at(moment, publisher, cloud) for moment in moments)
            time.sleep(1.0)  # what is on the way arrives
        finally:
            self._node.destroy_publisher(publisher)
        return {"sent": len(moments), "behind_ms": behind_ms}

    # ---- the receiver ----------------------------------------------------------------------------------------------

    def _on_cloud(self, cloud: Any) -> None:
        now = time.monotonic_ns()
        stamp = cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec
        self._latencies.append((now, (now - stamp) / 1e6))
        self._damaged += bytes(cloud.data[0:4]) != mark(stamp)

    def _on_diagnostics(self, array: Any) -> None:
        for status in array.status:
            said = {value.key: value.value for value in status.values}
            self._said[status.name.partition(": ")[2]] = {**said, "level": str(status.level[0]), "says": status.message}
        self._said_at = time.monotonic()

    def connected(self) -> dict[str, Any]:
        """Whether the node is there, and says how it is."""
        return {"connected": self._node.count_publishers(f"{NODE}/output/points") > 0 and "input" in self._said}

    def collect(self) -> dict[str, Any]:
        """What has come since the last call: (receipt in ns, latency in ms) of each labelled cloud, how many held
        another cloud's bytes, and what the node says now of itself."""
        asked = time.monotonic()
        while self._said_at <= asked and time.monotonic() < asked + 10:
            time.sleep(0.02)
        latencies, self._latencies = self._latencies, []
        damaged, self._damaged = self._damaged, 0
        return {"latencies": latencies, "damaged": damaged, "diagnostics": self._said}

    def close(self) -> None:
        """Leave ROS."""
        import rclpy

        self._executor.shutdown(timeout_sec=2)
        self._node.destroy_node()
        rclpy.try_shutdown()


def _publish_at(moment: float, publisher: Any, cloud: Any) -> float:
    """Publish the cloud, stamped and marked with the time, at that moment. Returns by how many ms that was too late."""
    time.sleep(max(0.0, moment - time.monotonic()))
    now = time.monotonic_ns()
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(now, 10**9)
    cloud.data[0:4] = type(cloud.data)("B", mark(now))
    publisher.publish(cloud)
    return max(0.0, now / 1e6 - 1e3 * moment)


def mark(stamp_ns: int) -> bytes:
    """What a cloud's first four bytes are: a small float32 that differs from cloud to cloud."""
    return np.float32(1 + (stamp_ns // 1000 % 2**22) / 2**22).tobytes()
