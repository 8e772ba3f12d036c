# SPDX-License-Identifier: Apache-2.0
"""The live evaluation node with simulated peers, and as a process with real ones."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import sensor_msgs.msg as ros
from clouds import layout
from conftest import ROOT
from live import LATCHED, RELIABLE, Client
from programs import depends_on_discovery, module, parameters, running, running_node, wait_until
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI_MULTISCAN
from sqsegv3_ros.pointcloud2 import make_cloud
from sqsegv3_ros.ros import evaluate_node

pytestmark = depends_on_discovery


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

    def wait_for(self, explain: Callable[[], Any] = lambda: "no subscriber") -> None:
        for publisher in self.publishers.values():
            wait_until(lambda p=publisher: p.get_subscription_count() > 0, 30, explain)

    def send(self, topic: str, number: int, scan: np.ndarray) -> None:
        self.publishers[topic].publish(cloud(scan, number))


EVALUATE_NODE = module("ros.evaluate_node")


def evaluate(*arguments: str, send: Callable[[], None] = lambda: None) -> int:
    """The exit code of the node in this process, which starts faster, while a thread sends it clouds."""
    sender = threading.Thread(target=send)
    sender.start()
    try:
        return evaluate_node.main(["evaluate_node", *arguments])
    finally:
        sender.join()


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
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNode(client, "whole")
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(*EVALUATE_NODE, *fake.arguments(scans=3, output="~/e.json", publish_period_s=0.1)) as evaluator:
        fake.wait_for(lambda: evaluator.log)
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


def test_exit_code_is_1_for_a_lost_scan_once_the_input_is_quiet(
    client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeNode(client, "lossy")

    def send() -> None:
        fake.wait_for()
        for number in range(4):
            fake.send(fake.truth, number, SCAN)
            if number != 2:
                fake.send(fake.labels, number, ANSWER)

    assert evaluate(*fake.arguments(quiet_s=1.0, output=tmp_path / "e.json"), send=send) == 1
    saved = json.loads((tmp_path / "e.json").read_text())
    assert (saved["scans_in"], saved["scans_out"], saved["lost"]) == (4, 3, 1)
    assert "not every scan was evaluated" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_evaluation_so_far(client: Client, tmp_path: Path, number: signal.Signals) -> None:
    fake = FakeNode(client, f"stopped_{number}")
    with running(*EVALUATE_NODE, *fake.arguments(output=tmp_path / "e.json", publish_period_s=0.1)) as evaluator:
        fake.wait_for(lambda: evaluator.log)
        briefs = client.collect(String, "/evaluate_node/summary", LATCHED)
        briefs.clear()
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER)
        wait_until(lambda: any(json.loads(b.data)["scans_evaluated"] == 1 for b in briefs), 20, lambda: evaluator.log)
        evaluator.send(number)
        assert evaluator.exit_code(15) == 0, evaluator.log
    assert json.loads((tmp_path / "e.json").read_text())["scan_count"] == 1
    assert "Traceback" not in evaluator.log


def test_clouds_that_cannot_be_evaluated_end_it_with_exit_code_2(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeNode(client, "strange")

    def send() -> None:
        fake.wait_for()
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER[:3])

    assert evaluate(*fake.arguments(), send=send) == 2
    said = capfd.readouterr().err
    assert "3 labels, but the ground truth has 4 points" in said and "Traceback" not in said


@pytest.mark.parametrize("topic", ["truth", "labels"])
@pytest.mark.parametrize("size", [5, 40], ids=["header", "fields"])
def test_a_message_that_cannot_be_read_ends_it_with_exit_code_2(
    client: Client, capfd: pytest.CaptureFixture[str], topic: str, size: int
) -> None:
    """Garbage on a topic must neither stop the worker thread, which would never end, nor raise in a callback."""
    fake = FakeNode(client, f"garbage_{topic}_{size}")

    def send() -> None:
        fake.wait_for()
        for name, content in ((fake.truth, SCAN), (fake.labels, ANSWER)):
            message = serialize_message(cloud(content, 1))
            fake.publishers[name].publish(message[:size] if name.endswith(topic) else message)

    assert evaluate(*fake.arguments(), send=send) == 2
    said = capfd.readouterr().err
    assert "cannot be read" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("label_set", "words"),
    [
        pytest.param("{", ["/announced/label_set cannot be read"], id="garbled"),
        pytest.param(
            json.dumps(SEMANTIC_KITTI_MULTISCAN.to_dict()), ["moving-car", "set the parameter labels"], id="other"
        ),
    ],
)
def test_a_label_set_that_does_not_fit_ends_it_with_exit_code_2(
    client: Client, capfd: pytest.CaptureFixture[str], label_set: str, words: list[str]
) -> None:
    fake = FakeNode(client, "announced")
    publisher = client.node.create_publisher(String, "/announced/label_set", LATCHED)
    publisher.publish(String(data=label_set))
    try:
        assert evaluate(*fake.arguments(), "-r", "~/input/label_set:=/announced/label_set") == 2
    finally:
        client.node.destroy_publisher(publisher)
    said = capfd.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said, said


def test_it_gives_up_without_input_and_names_the_missing_topics(capfd: pytest.CaptureFixture[str]) -> None:
    remaps = ["-r", "~/input/ground_truth:=/nowhere", "-r", "~/input/labelled:=/nobody"]
    assert evaluate(*parameters(start_timeout_s=0.5), *remaps) == 1
    assert "no publisher of /nowhere and /nobody" in capfd.readouterr().err


def test_a_wrong_parameter_ends_it_with_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    for values, words in (
        ({"max_pending": 0}, "max_pending out of range. Min: 1, Max: 10000, value: 0"),
        ({"quiet_s": -1.0}, "quiet_s out of range Min: 0.1, Max: 86400.0, value: -1.0"),
        ({"scans": "many"}, "scans"),
        ({"labels": "/no"}, "/no"),
    ):
        assert evaluate(*parameters(**values)) == 2
        said = capfd.readouterr().err
        assert words in said and "Traceback" not in said, said


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
