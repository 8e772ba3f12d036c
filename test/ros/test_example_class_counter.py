# SPDX-License-Identifier: Apache-2.0
"""The example that counts classes: with the real node, and with hand-made clouds for its warning."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import itertools

from clouds import layout
from conftest import ROOT
from live import LATCHED, NODE, Client, message, node_of, street
from programs import depends_on_discovery, module, running, wait_until
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import String

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.pointcloud2 import make_cloud, read_field

pytestmark = depends_on_discovery

COUNTER = module("ros.example_class_counter")
BANDS_M = (0, 10, 20, 30, 50)


def remapped(namespace: str) -> list[str]:
    """ROS arguments with which the counter listens to the node in a namespace."""
    topics = [f"{NODE}/output/{name}" for name in ("points", "label_set")]
    return ["--ros-args", *(word for topic in topics for word in ("-r", f"{topic}:={namespace}{topic}"))]


def test_the_counts_are_those_of_the_labelled_cloud(client: Client, small_model: Path) -> None:
    with node_of(client, model=small_model) as node, running(*COUNTER, *remapped(node.get_namespace())) as counter:
        name = node.get_fully_qualified_name()
        counter.wait_for_log("not a safety function")
        labelled = client.collect(PointCloud2, f"{name}/output/points")
        wait_until(lambda: client.node.count_subscribers(f"{name}/output/points") == 2, 30, lambda: counter.log)
        points = street()

        def counted() -> bool:
            if "points at 0-10 10-20 20-30 30-50 m: " not in counter.log:
                client.publish(message(points), f"{name}/input/points")
            return "points at" in counter.log and bool(labelled)

        wait_until(counted, 60, lambda: counter.log)
    labels = read_field(labelled[0], "label")
    distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    line = next(line for line in counter.lines if "points at" in line)
    found = {name: [int(n) for n in numbers.split()] for name, numbers in re.findall(r"([a-z-]+): ([\d ]+)", line)}
    expected = {}
    for label, name in enumerate(SEMANTIC_KITTI.names[1:], 1):
        bands = itertools.pairwise(BANDS_M)
        counts = [int(((labels == label) & (distance >= low) & (distance < high)).sum()) for low, high in bands]
        if any(counts):
            expected[name] = counts
    assert found == expected and len(expected) > 1


PERSON = np.zeros(6, layout(13, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), label=(12, "u1")))
PERSON["x"], PERSON["y"], PERSON["label"] = 8.0, 2.0, SEMANTIC_KITTI.index("person")


def changed(points: np.ndarray, **fields: float) -> np.ndarray:
    points = points.copy()
    for name, value in fields.items():
        points[name] = value
    return points


def test_only_a_person_in_front_is_warned_of(client: Client) -> None:
    topic, label_set = (f"/by_hand{NODE}/output/{name}" for name in ("points", "label_set"))
    classes = client.node.create_publisher(String, label_set, LATCHED)
    classes.publish(String(data=json.dumps(SEMANTIC_KITTI.to_dict())))
    no_reason = {
        "behind": changed(PERSON, x=-8.0),
        "to the left": changed(PERSON, x=2.0, y=8.0),
        "far": changed(PERSON, x=16.0),
        "noise": PERSON[:4],
        "another class": changed(PERSON, label=SEMANTIC_KITTI.index("trunk")),
        "invalid": changed(PERSON, z=np.nan),
    }
    with running(*COUNTER, *remapped("/by_hand")) as counter:
        wait_until(lambda: classes.get_subscription_count() == 1, 30, lambda: counter.log)

        def counts(points: np.ndarray) -> bool:
            client.publish(make_cloud(points, PointCloud2, PointField), topic)
            return "points at" in counter.log

        wait_until(lambda: counts(no_reason["noise"]), 30, lambda: counter.log)
        for points in no_reason.values():
            client.publish(make_cloud(points, PointCloud2, PointField), topic)
            time.sleep(0.1)
        assert "person in front" not in counter.log
        client.publish(make_cloud(PERSON, PointCloud2, PointField), topic)
        counter.wait_for_log("person in front, 8.2 m")
        assert counter.stop() == 0, counter.log
        assert "Traceback" not in counter.log


def test_it_is_short_enough_to_copy() -> None:
    assert len((ROOT / "sqsegv3_ros/ros/example_class_counter.py").read_text().splitlines()) <= 90
