# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 replay` as a process with a client."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from live import BEST_EFFORT, RELIABLE, Client
from programs import depends_on_discovery, module, running, wait_until
from recording import PERIOD_NS, STAMP_S, cloud, record, scans, stores
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.pointcloud2 import read_field
from sqsegv3_ros.process import PROFILE_VARIABLES, use_fastdds_profile

pytestmark = depends_on_discovery

REPLAY = (*module("cli"), "replay")
FOUND = scans(4, 20_000)


def test_the_bytes_of_a_ros_2_bag_are_published_unchanged_with_the_recorded_clock(
    client: Client, tmp_path: Path
) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/replay_a": FOUND, "/other": FOUND[:1]})
    received: list[bytes] = []
    client.node.create_subscription(PointCloud2, "/replay_a", received.append, RELIABLE, raw=True)
    ticks = client.collect(Clock, "/clock", connected=False)
    with running(*REPLAY, bag, "--topic", "/replay_a", "--clock", "--wait-for-subscribers") as player:
        assert player.exit_code() == 0, player.log
    wait_until(lambda: len(received) == 4, 5, lambda: player.log)
    assert received == [cloud(stores("mcap"), scan, number, "mcap") for number, scan in enumerate(FOUND)]
    assert "published 4 of 4 clouds on /replay_a" in player.log
    times = [tick.clock.sec * 10**9 + tick.clock.nanosec for tick in ticks]
    first = STAMP_S * 10**9 + 7_000_000
    assert times == sorted(times) and len(times) >= 4
    assert first <= times[0] <= times[-1] == first + 3 * PERIOD_NS


def test_the_clouds_of_a_ros_1_bag_are_published_as_ros_2_messages_on_the_output_topic(
    client: Client, tmp_path: Path
) -> None:
    bag = record(tmp_path / "drive.bag", "ros1", {"/lidar": FOUND})
    received = client.collect(PointCloud2, "/replay_b", BEST_EFFORT, connected=False)
    options = ("--output-topic", "/replay_b", "--rate", "0.5", "--wait-for-subscribers", "1", "--best-effort")
    with running(*REPLAY, bag, *options) as player:
        assert player.exit_code() == 0, player.log
    wait_until(lambda: received, 5, lambda: player.log)
    newest = received[-1]  # best effort: a busy machine may lose some
    number = newest.header.stamp.nanosec // PERIOD_NS
    assert (newest.header.stamp.sec, newest.header.frame_id) == (STAMP_S, "lidar")
    np.testing.assert_array_equal(read_field(newest, "ground_truth"), FOUND[number]["ground_truth"])


def test_a_sequence_is_replayed_until_the_player_is_interrupted(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "kitti" / "sequences" / "00"
    points = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    for number in range(2):
        write_scan(folder / "velodyne" / f"{number:06d}.bin", points)
        write_labels(folder / "labels" / f"{number:06d}.label", np.full(1000, 40))
    received = client.collect(PointCloud2, "/replay_c", connected=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        received.clear()
        with running(*REPLAY, tmp_path / "kitti", "--loop", "--output-topic", "/replay_c") as player:
            wait_until(lambda: len(received) >= 5, 30, lambda: player.log)
            player.send(number)
            assert player.exit_code(10) == 0, player.log
        assert "interrupted" in player.log and "Traceback" not in player.log
        np.testing.assert_array_equal(read_field(received[0], "intensity"), points[:, 3])
        assert set(read_field(received[0], "ground_truth")) == {9}
        assert received[0].header.frame_id == "velodyne"


def test_a_player_that_waits_for_subscribers_can_be_interrupted(tmp_path: Path) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/nobody_listens": FOUND[:1]})
    with running(*REPLAY, bag, "--wait-for-subscribers", "2") as player:
        player.wait_for_log("waiting for 2 subscribers of /nobody_listens")
        player.send(signal.SIGINT)
        assert player.exit_code(10) == 0
    assert "published 0 of 1 clouds" in player.log


def test_following_a_topic_plays_no_faster_than_its_clouds_arrive(client: Client, tmp_path: Path) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/replay_d": FOUND})
    answers = client.node.create_publisher(PointCloud2, "/answers", RELIABLE)
    arrivals: list[float] = []

    def answer_later(asked: PointCloud2) -> None:
        arrivals.append(time.monotonic())
        threading.Timer(0.3, answers.publish, [asked]).start()

    client.node.create_subscription(PointCloud2, "/replay_d", answer_later, RELIABLE)
    options = ("--wait-for-subscribers", "--follow", "/answers", "--rate", "100")
    with running(*REPLAY, bag, *options) as player:
        assert player.exit_code() == 0, player.log
    wait_until(lambda: len(arrivals) == 4, 5, lambda: player.log)
    assert np.diff(arrivals).min() > 0.25  # at its own pace it would be 1 ms


def test_the_fast_dds_profile_is_used_unless_another_is_set() -> None:
    first, second = PROFILE_VARIABLES
    for environment, expected in (
        ({"ROS_DISTRO": "jazzy"}, {second}),
        ({"ROS_DISTRO": "kilted"}, {first}),
        ({first: "mine"}, {first}),
        ({second: "mine"}, {second}),
    ):
        before = dict(environment)
        assert use_fastdds_profile(environment) is not bool(before.keys() & {first, second})
        assert environment.keys() - {"ROS_DISTRO"} == expected
        for name in expected:
            assert before.get(name) == "mine" or Path(environment[name]).name == "fastdds.xml"
