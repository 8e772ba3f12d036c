# SPDX-License-Identifier: Apache-2.0
"""Publish every scan of a SemanticKITTI data set, each after the previous one has been labelled."""

from __future__ import annotations

import sys
import time

from live import NODE, Client, message
from programs import wait_until
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.data.semantic_kitti import find_scans, read_scan

client = Client()
publisher = client.publisher()
labelled = client.collect(PointCloud2, f"{NODE}/output/points")
time.sleep(1)  # until the node has discovered the subscriber; without one it labels nothing
for number, scan in enumerate(find_scans(sys.argv[1])):
    publisher.publish(message(read_scan(scan.path), stamp_s=number + 1, frame=f"{scan.sequence}/{scan.stem}"))
    wait_until(lambda done=number + 1: len(labelled) >= done, 120, lambda: f"{len(labelled)} labelled")
client.close()
