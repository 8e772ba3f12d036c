# SPDX-License-Identifier: Apache-2.0
"""The node on distributions whose rclpy lacks names of the installed one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import ROOT
from live import NODE, Client, publish_until_labelled
from node_as_on_humble import LATER_THAN_HUMBLE
from programs import depends_on_discovery, parameters, running
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.pointcloud2 import read_field

pytestmark = depends_on_discovery


def test_the_node_labels_with_the_names_that_humble_has(small_model: Path) -> None:
    client = Client()
    try:
        with running(
            ROOT / "test" / "node_as_on_humble.py", *parameters(model=small_model, stale_after_s=300.0)
        ) as node:
            node.wait_for_log("labelling clouds of")
            assert "message info: False" in node.log
            labelled = client.collect(PointCloud2, f"{NODE}/output/points")
            publish_until_labelled(client, labelled, f"{NODE}/input/points")
            assert read_field(labelled[0], "label").any()
            assert client.set_parameters(latency_budget_ms=500.0) == [(True, "")]
            client.diagnostics.clear()  # those from before the first cloud say nothing about it
            status = client.status("input", lambda s: {v.key: v.value for v in s.values}["received"] != "0")
            assert status.level == status.OK, status.message
            assert client.get_parameters("projection.width") == [256]
            assert client.transition("deactivate") and client.transition("cleanup")
            assert client.get_parameters("projection.width") == []  # not declared
            assert client.transition("configure")
            assert client.get_parameters("projection.width") == [256]
            assert node.stop() == 0
    finally:
        client.close()


def test_names_later_than_humble_are_used_in_one_module_only() -> None:
    for path in [*(ROOT / "sqsegv3_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        if path.name == "distributions.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            names = {*imported.split(".")} if imported.startswith("rclpy") else set()
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            later = names & LATER_THAN_HUMBLE
            assert not later, f"{path.name} uses {', '.join(later)}: see sqsegv3_ros/ros/distributions.py"
