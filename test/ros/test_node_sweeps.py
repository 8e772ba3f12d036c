# SPDX-License-Identifier: Apache-2.0
"""Labels voted over several sweeps in the real node, with poses from an odometry topic and from TF."""

from __future__ import annotations

import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
pytest.importorskip("nav_msgs.msg", reason="needs nav_msgs: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from clouds import points_of
from geometry_msgs.msg import TransformStamped
from live import RELIABLE, Client, message, node_of, outputs_of, street
from nav_msgs.msg import Odometry
from programs import depends_on_discovery
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.inference.sweeps import SweepVote

pytestmark = depends_on_discovery

SPEED_MPS, YAW_RATE = 2.0, 0.1
STAMPS_S = (100, 101, 102)


def pose_at(time_s: float) -> tuple[float, float]:
    """x and yaw of the sensor: it drives along x and turns."""
    return SPEED_MPS * (time_s - STAMPS_S[0]), YAW_RATE * (time_s - STAMPS_S[0])


def matrix_at(time_s: float) -> np.ndarray:
    x, yaw = pose_at(time_s)
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0, x], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def sweep(time_s: int) -> np.ndarray:
    return street(6000, seed=time_s)


@pytest.fixture(scope="module")
def voted(small_model: Path) -> list[np.ndarray]:
    """The labels that the vote gives for each sweep, without ROS."""
    segmenter, vote = Segmenter(small_model, backend="torch"), SweepVote(3, 20)
    results = []
    for stamp in STAMPS_S:
        points = sweep(stamp)
        result = vote.vote(
            segmenter.segment(points), points, matrix_at(stamp), stamp * 10**9, segmenter.projection, Extrinsics()
        )
        results.append(result.labels)
    alone = segmenter.segment(sweep(STAMPS_S[-1])).labels
    assert (results[-1] != alone).mean() > 0.01
    return results


def odometry(time_s: float, frame: str = "velodyne") -> Odometry:
    x, yaw = pose_at(time_s)
    result = Odometry(child_frame_id=frame)
    result.header.frame_id = "odom"
    result.header.stamp.sec, result.header.stamp.nanosec = int(time_s), round(time_s % 1 * 1e9)
    result.pose.pose.position.x = x
    result.pose.pose.orientation.z, result.pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
    return result


def label_all(client: Client, node: Any) -> list[np.ndarray]:
    """The labels of the sweeps, published once each: a second cloud of the same stamp would start the vote again."""
    name = node.get_fully_qualified_name()
    outputs_of(client, node, message(sweep(1), 1), points=PointCloud2)  # until both have discovered each other
    results = client.collect(PointCloud2, f"{name}/output/points")
    for stamp in STAMPS_S:
        client.publish(message(sweep(stamp), stamp), f"{name}/input/points")
        end = time.monotonic() + 20
        while len(results) < stamp - STAMPS_S[0] + 1 and time.monotonic() < end:
            time.sleep(0.01)
    assert [cloud.header.stamp.sec for cloud in results] == list(STAMPS_S), client.diagnostics
    return [points_of(cloud).reshape(-1)["label"] for cloud in results]


def test_labels_are_voted_with_the_poses_of_an_odometry_topic(
    client: Client, small_model: Path, voted: list[np.ndarray]
) -> None:
    settings = {"sweeps__count": 3, "sweeps__odometry_topic": "odometry_of_the_test"}
    with node_of(client, model=small_model, **settings) as node:
        topic = f"{node.get_namespace()}/odometry_of_the_test"
        publisher = client.node.create_publisher(Odometry, topic, RELIABLE)
        end = time.monotonic() + 20
        while not publisher.get_subscription_count() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        for step in range(7):  # 99.7 s to 102.7 s in half seconds: no message has the stamp of a cloud
            publisher.publish(odometry(99.7 + step / 2))
            time.sleep(0.02)
        found = label_all(client, node)
        for labels, expected in zip(found, voted, strict=True):
            assert (labels == expected).mean() > 0.998  # between two messages, x and yaw are linear
        # without a pose, the labels are those of one sweep, and diagnostics say why
        late = message(sweep(200), 200)
        result = outputs_of(client, node, late, points=PointCloud2)["points"]
        np.testing.assert_array_equal(
            points_of(result).reshape(-1)["label"], Segmenter(small_model, backend="torch").segment(sweep(200)).labels
        )
        client.status("input", lambda s: "labels are those of one sweep: no odometry at the cloud's time" in s.message)


def test_labels_are_voted_with_the_transforms_of_tf(
    client: Client, small_model: Path, voted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the part of tf2_ros that the node uses, by its documentation: it is not on PyPI."""
    tf2_ros = types.ModuleType("tf2_ros")
    heard: dict[tuple[str, str, int], TransformStamped] = {}

    class TransformException(Exception):  # noqa: N818
        pass

    class Buffer:
        def lookup_transform(self, target: str, source: str, at: Any) -> TransformStamped:
            try:
                return heard[target, source, at.nanoseconds]
            except KeyError:
                raise TransformException("Lookup would require extrapolation into the future.") from None

    class TransformListener:
        def __init__(self, buffer: Buffer, node: Any) -> None:
            self.is_listening = True

        def unregister(self) -> None:
            self.is_listening = False

    for part in (TransformException, Buffer, TransformListener):
        setattr(tf2_ros, part.__name__, part)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_ros)
    for stamp in STAMPS_S:
        pose = odometry(stamp).pose.pose
        transform = TransformStamped(child_frame_id="velodyne")
        transform.transform.translation.x, transform.transform.rotation = pose.position.x, pose.orientation
        heard["world", "velodyne", stamp * 10**9] = transform
    with node_of(client, model=small_model, sweeps__count=3, sweeps__fixed_frame="world") as node:
        for labels, expected in zip(label_all(client, node), voted, strict=True):
            np.testing.assert_array_equal(labels, expected)
        message_ = "no transform from the cloud's frame 'velodyne' to sweeps.fixed_frame 'world'"
        outputs_of(client, node, message(sweep(300), 300), points=PointCloud2)
        client.status("input", lambda s: message_ in s.message)


def test_odometry_of_another_frame_does_not_vote(client: Client, small_model: Path) -> None:
    settings = {"sweeps__count": 2, "sweeps__odometry_topic": "/odometry_of_the_base"}
    with node_of(client, model=small_model, **settings) as node:
        publisher = client.node.create_publisher(Odometry, "/odometry_of_the_base", qos_profile_sensor_data)
        cloud = message(sweep(101), 101)

        def refused(status: Any) -> bool:
            publisher.publish(odometry(101, "base_link"))
            client.publish(cloud, f"{node.get_fully_qualified_name()}/input/points")
            time.sleep(0.2)
            return "is that of 'base_link', but the cloud's frame is 'velodyne'" in status.message

        outputs_of(client, node, cloud, points=PointCloud2)
        client.status("input", refused, 30)
