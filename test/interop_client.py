# SPDX-License-Identifier: Apache-2.0
"""Publish clouds to a running node from another ROS version, and count the labelled ones.

Run by test_interop.py with the Python of another virtual environment: interop_client.py POINTS COUNT.
"""

from __future__ import annotations

import array
import sys
import time

import numpy as np
import rclpy
from lifecycle_msgs.srv import GetState
from sensor_msgs.msg import PointCloud2, PointField


def cloud(points: np.ndarray) -> PointCloud2:
    message = PointCloud2(height=1, width=len(points), point_step=16, row_step=16 * len(points), is_dense=True)
    message.fields = [
        PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate(("x", "y", "z", "intensity"))
    ]
    message.data = array.array("B", points.tobytes())
    return message


def main() -> int:
    count_points, count = map(int, sys.argv[1:])
    rclpy.init()
    node = rclpy.create_node("other_version")
    back: list[PointCloud2] = []
    node.create_subscription(PointCloud2, "/sqsegv3/output/points", back.append, 10)
    publisher = node.create_publisher(PointCloud2, "/sqsegv3/input/points", 10)
    message = cloud(np.random.default_rng(0).uniform(-30, 30, (count_points, 4)).astype(np.float32))

    def spin(seconds: float, done: object = lambda: False) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not done():
            rclpy.spin_once(node, timeout_sec=0.05)
        return done()

    spin(60, lambda: publisher.get_subscription_count() > 0)
    for _ in range(30):  # until node and client have discovered each other
        publisher.publish(message)
        if spin(1.0, lambda: bool(back)):
            break
    spin(2.0)
    good = 0
    for number in range(1, count + 1):
        message.header.stamp.sec = number
        publisher.publish(message)
        spin(15.0, lambda: bool(back) and back[-1].header.stamp.sec == number)  # noqa: B023  called at once
        labelled = back[-1]
        good += labelled.header.stamp.sec == number and labelled.width == count_points
        good -= [f.name for f in labelled.fields][4:] != ["rgb", "confidence", "label"]
    client = node.create_client(GetState, "/sqsegv3/get_state")
    client.wait_for_service(20)
    answer = client.call_async(GetState.Request())
    rclpy.spin_until_future_complete(node, answer, timeout_sec=20)
    print(f"{good} of {count}, {answer.result().current_state.label}", flush=True)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
