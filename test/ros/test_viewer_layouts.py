# SPDX-License-Identifier: Apache-2.0
"""The layouts of Foxglove and RViz: topics, their types and plotted diagnostics are those of the running node."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import ROOT
from live import NODE, Client, message, publish_until_labelled, street
from programs import depends_on_discovery, running_node, wait_until
from rclpy.node import NodeNameNonExistentError
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
def labelled(client: Client, small_model: Path) -> Iterator[PointCloud2]:
    """A cloud that a running node has labelled."""
    with running_node(model=small_model):
        clouds = client.collect(PointCloud2, f"{NODE}/output/points")
        publish_until_labelled(client, clouds, f"{NODE}/input/points")
        yield clouds[0]


def published(client: Client, topics: Iterable[str]) -> dict[str, list[str]]:
    """The types of these topics of the node, once all are discovered."""
    found: dict[str, list[str]] = {}

    def are_discovered() -> bool:
        with contextlib.suppress(NodeNameNonExistentError):
            found.update(client.node.get_publisher_names_and_types_by_node("sqsegv3", "/"))
        return set(topics) <= found.keys()

    wait_until(are_discovered, 20, lambda: found)
    return {topic: found[topic] for topic in topics}


def test_foxglove_shows_topics_and_diagnostics_of_the_node(client: Client, labelled: PointCloud2) -> None:
    shown = {topic: kind for panel, config in PANELS.items() for topic, kind in topics_of(panel, config).items()}
    assert {f"{NODE}/output/points", f"{NODE}/output/range_image", "/diagnostics"} <= set(shown)
    assert published(client, shown) == {topic: [kind] for topic, kind in shown.items()}
    plotted = re.findall(r'name==\\?"(.*?)\\?".*?key==\\?"(.*?)\\?"', json.dumps(PANELS["Plot!latency"]))
    assert len(plotted) == len(PANELS["Plot!latency"]["paths"])
    client.publish(message(street(5000)))
    status = client.status("processing", lambda status: any("_p50_ms" in pair.key for pair in status.values))
    assert {(status.name, pair.key) for pair in status.values} >= set(plotted)


def test_rviz_shows_topics_and_colours_of_the_node(client: Client, labelled: PointCloud2) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    tree = yaml.safe_load((ROOT / "config/segment.rviz").read_text(encoding="utf-8"))["Visualization Manager"]
    assert tree["Global Options"]["Fixed Frame"] == "velodyne"
    displays = {d["Topic"]["Value"]: d for d in tree["Displays"] if "Topic" in d}
    assert published(client, displays) == {
        topic: [f"sensor_msgs/msg/{display['Class'].rpartition('/')[2]}"] for topic, display in displays.items()
    }
    assert displays[f"{NODE}/output/points"]["Color Transformer"] == "RGB8"
    assert "rgb" in [field.name for field in labelled.fields]


def test_every_panel_is_in_the_arrangement_once() -> None:
    def leaves(tree: Any) -> list[str]:
        return [tree] if isinstance(tree, str) else leaves(tree["first"]) + leaves(tree["second"])

    assert sorted(leaves(LAYOUT["layout"])) == sorted(PANELS)
