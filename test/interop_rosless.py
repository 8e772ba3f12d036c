# SPDX-License-Identifier: Apache-2.0
"""Publish clouds to a node with an RTPS client that is not ROS, and count those that are labelled correctly.

Run by test_interop.py in a network namespace of its own: interop_rosless.py MODEL POINTS COUNT DOMAIN.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import rosless

FIELDS = ["x", "y", "z", "intensity"]


def cloud(points: np.ndarray, number: int) -> dict:
    return {
        "header": {"stamp": {"sec": number, "nanosec": 5}, "frame_id": "rust"},
        "height": 1,
        "width": len(points),
        "fields": [{"name": n, "offset": 4 * i, "datatype": 7, "count": 1} for i, n in enumerate(FIELDS)],
        "is_bigendian": False,
        "point_step": 16,
        "row_step": 16 * len(points),
        "data": points.tobytes(),
        "is_dense": True,
    }


def is_labelled(message: object, points: np.ndarray, number: int) -> bool:
    if message is None or message.header.stamp.sec != number or message.width != len(points):
        return False
    names = [field.name for field in message.fields]
    data = np.frombuffer(message.data, np.uint8).reshape(len(points), message.point_step)
    same = np.array_equal(np.ascontiguousarray(data[:, :16]), points.view(np.uint8).reshape(len(points), 16))
    labels = data[:, message.fields[-1].offset]
    return same and names == [*FIELDS, "rgb", "confidence", "label"] and labels.max() < 20


def main() -> int:
    model, count_points, count, domain = sys.argv[1], *map(int, sys.argv[2:])
    command = [sys.executable, "-m", "sqsegv3_ros.ros.segment_node", "--ros-args"]
    command += ["-p", f"model:={model}", "-p", "threads:=1"]
    node = subprocess.Popen(command, env={**os.environ, "ROS_DOMAIN_ID": str(domain)})
    try:
        points = np.random.default_rng(0).uniform(-30, 30, (count_points, 4)).astype(np.float32)
        topic, kind = "/sqsegv3/{}/points", "sensor_msgs/msg/PointCloud2"
        with rosless.advertise(topic.format("input"), kind, domain=domain) as out:
            end = time.monotonic() + 60
            while out.subscriber_count == 0 and time.monotonic() < end:
                time.sleep(0.1)
            with rosless.subscribe(topic.format("output"), domain=domain, wait=10.0, reliability="reliable") as back:
                # until node and client have discovered each other
                for _ in range(30):
                    out.send(cloud(points[:10], 0))
                    if back.read(timeout=1.0) is not None:
                        break
                while back.read(timeout=1.0) is not None:
                    pass
                good = 0
                for number in range(1, count + 1):
                    out.send(cloud(points, number))
                    good += is_labelled(back.read(timeout=15.0), points, number)
        print(f"{good} of {count}", flush=True)
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
