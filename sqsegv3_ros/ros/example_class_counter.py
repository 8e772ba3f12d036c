# SPDX-License-Identifier: Apache-2.0
"""Example to copy: counts the classes of the labelled cloud by range, and warns of a person in front.

It is not a safety function: the network misses people.
"""

import json
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

try:
    from sensor_msgs_py.point_cloud2 import read_points
except ImportError:  # ROS 2 from pip does not have it
    from sqsegv3_ros.pointcloud2 import read_field

    def read_points(cloud: PointCloud2, field_names: Any) -> Any:
        """Read fields of every point."""
        return {name: read_field(cloud, name) for name in field_names}


BANDS_M = [0, 10, 20, 30, 50]
FRONT_DEG, FRONT_M, FRONT_POINTS = 30.0, 15.0, 5  # to each side; distance; points below are noise
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class ClassCounter(Node):
    """Logs the classes around the robot once a second."""

    def __init__(self) -> None:
        super().__init__("example_class_counter")
        self.names: list[str] = []
        # the node sends the classes of its model once, and to those who come later
        self.create_subscription(String, "sqsegv3/output/label_set", self.on_label_set, LATCHED)
        self.create_subscription(PointCloud2, "sqsegv3/output/points", self.on_cloud, RELIABLE)
        self.get_logger().warning("an example, not a safety function: the network misses people")

    def on_label_set(self, message: String) -> None:
        """Remember the names of the classes."""
        self.names = [label["name"] for label in json.loads(message.data)["classes"]]

    def on_cloud(self, cloud: PointCloud2) -> None:
        """Count the points of every class in every band."""
        if not self.names:
            return
        points = read_points(cloud, field_names=["x", "y", "z", "label"])
        x, y, z, label = (np.asarray(points[name]) for name in ("x", "y", "z", "label"))
        distance = np.sqrt(x**2 + y**2 + z**2)  # NaN, which no band contains, for invalid points

        counts = {n: np.histogram(distance[label == i], BANDS_M)[0] for i, n in enumerate(self.names) if i}
        rows = [f"{name}: {' '.join(map(str, count))}" for name, count in counts.items() if count.any()]
        bands = " ".join(f"{low}-{high}" for low, high in pairwise(BANDS_M))
        self.get_logger().info(f"points at {bands} m: {'; '.join(rows)}", throttle_duration_sec=1.0)

        if "person" in self.names:
            in_front = (np.abs(np.degrees(np.arctan2(y, x))) < FRONT_DEG) & (distance < FRONT_M)
            person = distance[in_front & (label == self.names.index("person"))]
            if len(person) >= FRONT_POINTS:
                self.get_logger().warning(f"person in front, {np.median(person):.1f} m", throttle_duration_sec=1.0)


def main() -> int:
    """Run the node until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(ClassCounter())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
