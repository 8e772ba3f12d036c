# SPDX-License-Identifier: Apache-2.0
"""The live evaluation node as a process, with simulated and with real peers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import sensor_msgs.msg as ros
from clouds import layout
from conftest import ROOT
from live import LATCHED, RELIABLE, Client
from programs import PythonProcess, depends_on_discovery, module, parameters, running, running_node, wait_until
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from sqsegv3_ros.pointcloud2 import make_cloud

pytestmark = depends_on_discovery


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def cloud(scan: np.ndarray, number: int) -> ros.PointCloud2:
    message = make_cloud(scan, ros.PointCloud2, ros.PointField)
    message.header.stamp.sec, message.header.stamp.nanosec = 100, number
    return message


class FakeNode:
    """Publishes scans and their labels on topics of its own."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.truth, self.labels = client, f"/{name}/truth", f"/{name}/labels"
        self.publishers = {t: client.node.create_publisher(ros.PointCloud2, t, RELIABLE) for t in self.topics}

    @property
    def topics(self) -> tuple[str, str]:
        return self.truth, self.labels

    def arguments(self, **values: Any) -> list[str]:
        remaps = [f"~/input/ground_truth:={self.truth}", f"~/input/labelled:={self.labels}"]
        return [*parameters(**values), *(word for remap in remaps for word in ("-r", remap))]

    def wait_for(self, evaluator: PythonProcess) -> None:
        for publisher in self.publishers.values():
            wait_until(lambda p=publisher: p.get_subscription_count() > 0, 30, lambda: evaluator.log)

    def send(self, topic: str, number: int, scan: np.ndarray) -> None:
        self.publishers[topic].publish(cloud(scan, number))


EVALUATE_NODE = module("ros.evaluate_node")
XYZ = {"x": (0, "f4"), "y": (4, "f4"), "z": (8, "f4")}
TRUTH = layout(13, **XYZ, ground_truth=(12, "u1"))
LABELLED = layout(13, **XYZ, label=(12, "u1"))
CAR, ROAD = 1, 9


def points(layout_: np.dtype, field: str, classes: list[int]) -> np.ndarray:
    scan = np.zeros(len(classes), layout_)
    scan["x"] = 5.0
    scan[field] = classes
    return scan


SCAN = points(TRUTH, "ground_truth", [CAR, CAR, ROAD, 0])
ANSWER = points(LABELLED, "label", [CAR, ROAD, ROAD, ROAD])


def test_the_evaluation_ends_after_the_last_scan_and_is_published_printed_and_saved(
    client: Client, tmp_path: Path
) -> None:
    fake = FakeNode(client, "whole")
    with running(
        *EVALUATE_NODE, *fake.arguments(scans=3, output=tmp_path / "e.json", publish_period_s=0.1)
    ) as evaluator:
        fake.wait_for(evaluator)
        briefs = client.collect(String, "/evaluate_node/summary", LATCHED)
        for number in range(3):
            fake.send(fake.truth, number, SCAN)
            fake.send(fake.labels, number, ANSWER)
        wait_until(lambda: briefs and json.loads(briefs[-1].data)["scans_evaluated"] == 3, 20, lambda: evaluator.log)
        assert evaluator.exit_code(20) == 0, evaluator.log
    assert json.loads(briefs[-1].data)["iou"]["car"] == pytest.approx(1 / 2)
    saved = json.loads((tmp_path / "e.json").read_text())
    assert (saved["scans_in"], saved["scans_out"], saved["lost"], saved["complete"]) == (3, 3, 0, True)
    assert saved["iou"]["car"] == pytest.approx(1 / 2) and len(saved["latency_ms"]) == 3
    rows = {line[:18].strip(): line[18:].split() for line in evaluator.lines}
    assert rows["car"][0] == "50.0" and rows["scans lost"] == ["0"]
    assert "every scan was evaluated" in evaluator.log


def test_exit_code_is_1_for_a_lost_scan_once_the_input_is_quiet(client: Client, tmp_path: Path) -> None:
    fake = FakeNode(client, "lossy")
    with running(*EVALUATE_NODE, *fake.arguments(quiet_s=1.0, output=tmp_path / "e.json")) as evaluator:
        fake.wait_for(evaluator)
        for number in range(4):
            fake.send(fake.truth, number, SCAN)
            if number != 2:
                fake.send(fake.labels, number, ANSWER)
        assert evaluator.exit_code(30) == 1, evaluator.log
    saved = json.loads((tmp_path / "e.json").read_text())
    assert (saved["scans_in"], saved["scans_out"], saved["lost"]) == (4, 3, 1)
    assert "not every scan was evaluated" in evaluator.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_evaluation_so_far(client: Client, tmp_path: Path, number: signal.Signals) -> None:
    fake = FakeNode(client, f"stopped_{number}")
    with running(*EVALUATE_NODE, *fake.arguments(output=tmp_path / "e.json", publish_period_s=0.1)) as evaluator:
        fake.wait_for(evaluator)
        briefs = client.collect(String, "/evaluate_node/summary", LATCHED)
        briefs.clear()
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER)
        wait_until(lambda: any(json.loads(b.data)["scans_evaluated"] == 1 for b in briefs), 20, lambda: evaluator.log)
        evaluator.send(number)
        assert evaluator.exit_code(15) == 0, evaluator.log
    assert json.loads((tmp_path / "e.json").read_text())["scan_count"] == 1
    assert "Traceback" not in evaluator.log


def test_clouds_that_cannot_be_evaluated_end_it_with_exit_code_2(client: Client) -> None:
    fake = FakeNode(client, "strange")
    with running(*EVALUATE_NODE, *fake.arguments()) as evaluator:
        fake.wait_for(evaluator)
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER[:3])
        assert evaluator.exit_code(20) == 2
    assert "3 labels, but the ground truth has 4 points" in evaluator.log and "Traceback" not in evaluator.log


@pytest.mark.parametrize("topic", ["truth", "labels"])
@pytest.mark.parametrize("size", [5, 40], ids=["header", "fields"])
def test_a_message_that_cannot_be_read_ends_it_with_exit_code_2(client: Client, topic: str, size: int) -> None:
    """Garbage on a topic must neither stop the worker thread, which would never end, nor raise in a callback."""
    fake = FakeNode(client, f"garbage_{topic}_{size}")
    with running(*EVALUATE_NODE, *fake.arguments()) as evaluator:
        fake.wait_for(evaluator)
        for name, content in ((fake.truth, SCAN), (fake.labels, ANSWER)):
            message = serialize_message(cloud(content, 1))
            fake.publishers[name].publish(message[:size] if name.endswith(topic) else message)
        assert evaluator.exit_code(20) == 2
    assert "cannot be read" in evaluator.log and "Traceback" not in evaluator.log, evaluator.log


def test_a_label_set_that_cannot_be_read_ends_it_with_exit_code_2(client: Client) -> None:
    fake = FakeNode(client, "garbled_label_set")
    publisher = client.node.create_publisher(String, "/garbled_label_set/label_set", LATCHED)
    publisher.publish(String(data="{"))
    with running(
        *EVALUATE_NODE, *fake.arguments(), "-r", "~/input/label_set:=/garbled_label_set/label_set"
    ) as evaluator:
        assert evaluator.exit_code(30) == 2
    assert "/garbled_label_set/label_set cannot be read" in evaluator.log and "Traceback" not in evaluator.log


def test_a_node_with_other_classes_is_refused(client: Client) -> None:
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI_MULTISCAN

    fake = FakeNode(client, "other_classes")
    announcement = client.node.create_publisher(String, "/other_classes/label_set", LATCHED)
    announcement.publish(String(data=json.dumps(SEMANTIC_KITTI_MULTISCAN.to_dict())))
    arguments = [*fake.arguments(), "-r", "~/input/label_set:=/other_classes/label_set"]
    with running(*EVALUATE_NODE, *arguments) as evaluator:
        assert evaluator.exit_code(30) == 2
    assert "moving-car" in evaluator.log and "set the parameter labels" in evaluator.log


def test_it_gives_up_without_input_and_names_the_missing_topics() -> None:
    remaps = ["-r", "~/input/ground_truth:=/nowhere", "-r", "~/input/labelled:=/nobody"]
    with running(*EVALUATE_NODE, *parameters(start_timeout_s=0.5), *remaps) as evaluator:
        assert evaluator.exit_code(30) == 1
    assert "no publisher of /nowhere and /nobody" in evaluator.log


def test_a_wrong_parameter_ends_it_with_a_message() -> None:
    for values, words in (({"max_pending": 0}, "at least 1"), ({"scans": "many"}, "scans"), ({"labels": "/no"}, "/no")):
        with running(*EVALUATE_NODE, *parameters(**values)) as evaluator:
            assert evaluator.exit_code(30) == 2, evaluator.log
        assert words in evaluator.log and "Traceback" not in evaluator.log


def test_live_evaluation_equals_the_offline_evaluation_of_the_bag(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    from recording import record, scans

    from sqsegv3_ros.cli import main

    bag = record(tmp_path / "drive", "mcap", {"/velodyne_points": scans(4, 20_000)})
    assert main(["label", "--model", str(small_model), str(bag), "--output", str(tmp_path / "out")]) == 0
    assert main(["evaluate", "--predictions", str(tmp_path / "out" / "drive"), "--json", str(tmp_path / "a.json")]) == 0
    follow = ("--wait-for-subscribers", 2, "--follow", "/sqsegv3/output/points")
    with (
        running_node("-r", "~/input/points:=/velodyne_points", model=small_model) as node,
        running(*EVALUATE_NODE, *parameters(scans=4, output=tmp_path / "b.json")) as evaluator,
        running(*module("cli"), "replay", bag, *follow) as player,
    ):
        assert evaluator.exit_code(120) == 0, f"{evaluator.log}\n{player.log}\n{node.log}"
        assert player.exit_code(20) == 0, player.log
        assert node.stop() == 0
    offline, live = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for key in ("confusion", "miou", "iou", "by_range", "support", "scan_count"):
        assert live[key] == offline[key], key
    assert live["complete"] and len(live["latency_ms"]) == 4 and min(live["latency_ms"]) > 0


def test_the_executable_is_installed() -> None:
    assert "evaluate_node = sqsegv3_ros.ros.evaluate_node:main" in (ROOT / "setup.py").read_text()
