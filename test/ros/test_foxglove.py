# SPDX-License-Identifier: Apache-2.0
"""The Foxglove layout: its topics, their types and the diagnostics it plots are those of the running node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import ROOT
from live import NODE, Client, message, publish_until_labelled, street
from programs import depends_on_discovery, running_node, wait_until
from sensor_msgs.msg import PointCloud2

pytestmark = depends_on_discovery

LAYOUT = json.loads((ROOT / "config/foxglove.json").read_text())
PANELS = LAYOUT["configById"]
CLOUD, IMAGE = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/Image"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"


def topics_of(panel: str, config: dict[str, Any]) -> dict[str, str]:
    """The topics of a panel with the type that it shows."""
    kind = panel.partition("!")[0]
    if kind == "3D":
        return dict.fromkeys(config["topics"], CLOUD)
    if kind == "Image":
        return {config["imageMode"]["imageTopic"]: IMAGE}
    if kind == "Plot":
        return {path["value"].partition(".")[0]: DIAGNOSTICS for path in config["paths"]}
    return {config["topicToRender"]: DIAGNOSTICS}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def test_the_layout_names_topics_and_diagnostics_of_the_node(client: Client, small_model: Path) -> None:
    shown = {topic: kind for panel, config in PANELS.items() for topic, kind in topics_of(panel, config).items()}
    assert {f"{NODE}/output/points", f"{NODE}/output/range_image", "/diagnostics"} <= set(shown)
    plotted = re.findall(r'name==\\?"(.*?)\\?".*?key==\\?"(.*?)\\?"', json.dumps(PANELS["Plot!latency"]))
    assert len(plotted) == len(PANELS["Plot!latency"]["paths"])
    with running_node(model=small_model):

        def published() -> dict[str, list[str]]:
            return dict(client.node.get_publisher_names_and_types_by_node("sqsegv3", "/"))

        expected = {topic: [kind] for topic, kind in shown.items()}
        wait_until(lambda: expected.items() <= _quiet(published).items(), 60, lambda: f"published: {_quiet(published)}")
        labelled = client.collect(PointCloud2, f"{NODE}/output/points")
        publish_until_labelled(client, labelled, "")
        assert "rgb" in {field.name for field in labelled[0].fields}
        client.publish(message(street(5000)))
        status = client.status("processing", lambda status: any("_p50_ms" in pair.key for pair in status.values))
        assert {(status.name, pair.key) for pair in status.values} >= set(plotted)


def _quiet(published: Any) -> dict[str, list[str]]:
    """No topics as long as the node is not discovered."""
    try:
        return published()
    except Exception:  # rclpy's NodeNameNonExistentError
        return {}


def test_every_panel_is_in_the_arrangement_once() -> None:
    def leaves(tree: Any) -> list[str]:
        return [tree] if isinstance(tree, str) else leaves(tree["first"]) + leaves(tree["second"])

    assert sorted(leaves(LAYOUT["layout"])) == sorted(PANELS)
