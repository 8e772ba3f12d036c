"""The live evaluator as a process, beside clients of the test's own and beside the real node and player."""

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
from conftest import ROOT
from live import LATCHED, RELIABLE, Client, NodeProcess, wait_until
from programs import Program, parameters, running
from std_msgs.msg import String
from test_evaluate_live import CAR, LABELLED, ROAD, TRUTH, points

from sqsegv3_ros.pointcloud2 import make_cloud


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


class FakeNode:
    """Publishes scans and their labels itself, on topics of its own."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.truth, self.labels = client, f"/{name}/truth", f"/{name}/labels"
        self.publishers = {t: client.node.create_publisher(ros.PointCloud2, t, RELIABLE) for t in self.topics}

    @property
    def topics(self) -> tuple[str, str]:
        return self.truth, self.labels

    def arguments(self, **values: Any) -> list[str]:
        remaps = [f"~/input/ground_truth:={self.truth}", f"~/input/labelled:={self.labels}"]
        return [*parameters(**values), *(word for remap in remaps for word in ("-r", remap))]

    def wait_for(self, evaluator: Program) -> None:
        for publisher in self.publishers.values():
            wait_until(lambda p=publisher: p.get_subscription_count() > 0, 30, lambda: evaluator.log)

    def send(self, topic: str, number: int, scan: np.ndarray) -> None:
        cloud = make_cloud(scan, ros.PointCloud2, ros.PointField)
        cloud.header.stamp.sec, cloud.header.stamp.nanosec = 100, number
        self.publishers[topic].publish(cloud)


SCAN = points(TRUTH, "ground_truth", [CAR, CAR, ROAD, 0])
ANSWER = points(LABELLED, "label", [CAR, ROAD, ROAD, ROAD])


def test_the_judge_ends_when_all_scans_are_judged_and_publishes_prints_and_saves_the_evaluation(
    client: Client, tmp_path: Path
) -> None:
    fake = FakeNode(client, "whole")
    with running(
        "evaluate_node", *fake.arguments(scans=3, output=tmp_path / "e.json", publish_period_s=0.1)
    ) as evaluator:
        fake.wait_for(evaluator)
        briefs = client.collect(String, "/evaluate_node/summary", LATCHED)
        for number in range(3):
            fake.send(fake.truth, number, SCAN)
            fake.send(fake.labels, number, ANSWER)
        wait_until(lambda: briefs and json.loads(briefs[-1].data)["scans_evaluated"] == 3, 20, lambda: evaluator.log)
        assert evaluator.result(20) == 0, evaluator.log
    assert json.loads(briefs[-1].data)["iou"]["car"] == pytest.approx(1 / 2)
    saved = json.loads((tmp_path / "e.json").read_text())
    assert (saved["scans_in"], saved["scans_out"], saved["lost"], saved["complete"]) == (3, 3, 0, True)
    assert saved["iou"]["car"] == pytest.approx(1 / 2) and len(saved["latency_ms"]) == 3
    rows = {line[:18].strip(): line[18:].split() for line in evaluator.lines}
    assert rows["car"][0] == "50.0" and rows["scans lost"] == ["0"]
    assert "every scan was evaluated" in evaluator.log


def test_a_lost_scan_is_said_by_the_exit_code_when_the_input_falls_quiet(client: Client, tmp_path: Path) -> None:
    fake = FakeNode(client, "lossy")
    with running("evaluate_node", *fake.arguments(quiet_s=1.0, output=tmp_path / "e.json")) as evaluator:
        fake.wait_for(evaluator)
        for number in range(4):
            fake.send(fake.truth, number, SCAN)
            if number != 2:
                fake.send(fake.labels, number, ANSWER)
        assert evaluator.result(30) == 1, evaluator.log
    saved = json.loads((tmp_path / "e.json").read_text())
    assert (saved["scans_in"], saved["scans_out"], saved["lost"]) == (4, 3, 1)
    assert "not every scan was evaluated" in evaluator.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_judged_so_far(client: Client, tmp_path: Path, number: signal.Signals) -> None:
    fake = FakeNode(client, f"stopped_{number}")
    with running("evaluate_node", *fake.arguments(output=tmp_path / "e.json", publish_period_s=0.1)) as evaluator:
        fake.wait_for(evaluator)
        briefs = client.collect(String, "/evaluate_node/summary", LATCHED)
        briefs.clear()
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER)
        wait_until(lambda: any(json.loads(b.data)["scans_evaluated"] == 1 for b in briefs), 20, lambda: evaluator.log)
        evaluator.interrupt(number)
        assert evaluator.result(15) == 0, evaluator.log
    assert json.loads((tmp_path / "e.json").read_text())["scan_count"] == 1
    assert "Traceback" not in evaluator.log


def test_what_cannot_be_judged_ends_it_with_exit_code_2(client: Client) -> None:
    fake = FakeNode(client, "strange")
    with running("evaluate_node", *fake.arguments()) as evaluator:
        fake.wait_for(evaluator)
        fake.send(fake.truth, 1, SCAN)
        fake.send(fake.labels, 1, ANSWER[:3])
        assert evaluator.result(20) == 2
    assert "3 labels, but the ground truth has 4 points" in evaluator.log and "Traceback" not in evaluator.log


def test_a_node_with_other_classes_is_not_judged_by_the_wrong_ones(client: Client) -> None:
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI_MULTISCAN

    fake = FakeNode(client, "other_classes")
    announcement = client.node.create_publisher(String, "/other_classes/label_set", LATCHED)
    announcement.publish(String(data=json.dumps(SEMANTIC_KITTI_MULTISCAN.to_dict())))
    arguments = [*fake.arguments(), "-r", "~/input/label_set:=/other_classes/label_set"]
    with running("evaluate_node", *arguments) as evaluator:
        assert evaluator.result(30) == 2
    assert "moving-car" in evaluator.log and "set the parameter labels" in evaluator.log


def test_it_gives_up_where_nothing_comes_and_says_what_is_missing() -> None:
    remaps = ["-r", "~/input/ground_truth:=/nowhere", "-r", "~/input/labelled:=/nobody"]
    with running("evaluate_node", *parameters(start_timeout_s=0.5), *remaps) as evaluator:
        assert evaluator.result(30) == 1
    assert "nobody publishes /nowhere nor /nobody" in evaluator.log


def test_a_wrong_parameter_ends_it_with_a_message() -> None:
    for values, words in (({"max_pending": 0}, "at least 1"), ({"scans": "many"}, "scans"), ({"labels": "/no"}, "/no")):
        with running("evaluate_node", *parameters(**values)) as evaluator:
            assert evaluator.result(30) == 2, evaluator.log
        assert words in evaluator.log and "Traceback" not in evaluator.log


def test_node_player_and_judge_give_the_numbers_of_labelling_and_evaluating_the_bag(
    small_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    from recording import record, scans

    from sqsegv3_ros.cli import main

    bag = record(tmp_path / "drive", "mcap", {"/velodyne_points": scans(4, 20_000)})
    assert main(["label", "--model", str(small_model), str(bag), "--output", str(tmp_path / "out")]) == 0
    assert main(["evaluate", "--predictions", str(tmp_path / "out" / "drive"), "--json", str(tmp_path / "a.json")]) == 0
    node = NodeProcess("-r", "~/input/points:=/velodyne_points", model=small_model)
    evaluator = Program("ros.evaluate_node", *parameters(scans=4, output=tmp_path / "b.json"))
    player = Program("cli", "replay", bag, "--wait-for-subscribers", 2, "--follow", "/sqsegv3/output/points")
    try:
        assert evaluator.result(120) == 0, f"{evaluator.log}\n{player.log}\n{node.log}"
        assert player.result(20) == 0, player.log
        assert node.stop() == 0
    finally:
        for process in (node.process, evaluator.process, player.process):
            process.kill()
    offline, live = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for key in ("confusion", "miou", "iou", "by_range", "support", "scan_count"):
        assert live[key] == offline[key], key
    assert live["complete"] and len(live["latency_ms"]) == 4 and min(live["latency_ms"]) > 0


def test_the_executable_is_installed() -> None:
    assert "evaluate_node = sqsegv3_ros.ros.evaluate_node:main" in (ROOT / "setup.py").read_text()
