# SPDX-License-Identifier: Apache-2.0
"""The Rerun node beside the real segmentation node: its recording, read back through Rerun's own reader."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from live import Client, message, node_of, outputs_of, street
from programs import depends_on_discovery, module, parameters, running, wait_until
from recordings import read_recording
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.pointcloud2 import read_field
from sqsegv3_ros.ros import qos, rerun_node

pytestmark = depends_on_discovery

RERUN_NODE = module("ros.rerun_node")
OUTPUTS = {"points": PointCloud2, "range_image": Image, "label_image": Image}
SCANS = 3


def publish_diagnostics(client: Client, name: str, **values: str) -> None:
    publisher = client.node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    wait_until(lambda: publisher.get_subscription_count() >= 2, 30, lambda: "no subscriber of /diagnostics")
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    publisher.publish(DiagnosticArray(status=[DiagnosticStatus(name=name, values=pairs)]))


@pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="needs rerun-sdk: pip install 'sqsegv3_ros[view]'"
)
def test_outputs_of_the_node_are_recorded_by_scan(client: Client, small_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "live.rrd"
    with (
        node_of(client, model=small_model) as node,
        running(*RERUN_NODE, *parameters(recording=file), "-r", f"__ns:={node.get_namespace()}") as recorder,
    ):
        node_name = node.get_fully_qualified_name()
        recorder.wait_for_log(f"showing {node_name} in {file}")
        for name in OUTPUTS:
            topic = f"{node_name}/output/{name}"
            wait_until(lambda topic=topic: client.node.count_subscribers(topic) == 1, 30, lambda: recorder.log)
        clouds = [message(street(4000 + scan, seed=scan), stamp_s=100 + scan) for scan in range(SCANS + 1)]
        outputs_of(client, node, clouds[0], **OUTPUTS)  # by now the node is connected to all
        published = [outputs_of(client, node, cloud, **OUTPUTS) for cloud in clouds[1:]]
        client.status("processing", lambda status: "latency_p50_ms" in {pair.key for pair in status.values})
        publish_diagnostics(
            client, f"{node_name}: processing", latency_p50_ms="1.5", network_p50_ms="0.25", rate_hz="9"
        )
        publish_diagnostics(client, "/other/sqsegv3: processing", latency_p50_ms="777")
        time.sleep(0.5)
        assert recorder.stop() == 0, recorder.log

    found = read_recording(file)
    infos = [entry["class_description"]["info"] for entry in found["/"][-1]["AnnotationContext:context"]]
    assert [info["label"] for info in infos] == list(SEMANTIC_KITTI.names)
    for scan, messages in enumerate(published, 1):
        points, stamp_ns = street(4000 + scan, seed=scan), (100 + scan) * 10**9
        paths = {"/lidar/points", "/lidar/confidence", "/range_image", "/label_image"}
        rows = {path: next(row for row in found[path] if row["time"] == stamp_ns) for path in paths}
        assert len({row["scan"] for row in rows.values()}) == 1
        np.testing.assert_array_equal(rows["/lidar/points"]["Points3D:positions"].reshape(-1, 3), points[:, :3])
        labels = read_field(messages["points"], "label")
        np.testing.assert_array_equal(rows["/lidar/points"]["Points3D:class_ids"], labels)
        assert len(rows["/lidar/confidence"]["Points3D:colors"]) == len(points)
        for image, column in (("range_image", "DepthImage:buffer"), ("label_image", "Image:buffer")):
            assert rows[f"/{image}"][column].tobytes() == messages[image].data.tobytes()
    numbers = {e: {row["Scalars:scalars"][0] for row in rows} for e, rows in found.items() if "/latency/" in e}
    assert 1.5 in numbers["/latency/total"] and 777 not in numbers["/latency/total"]
    assert 0.25 in numbers["/latency/network"] and len(numbers["/latency/network"]) > 1  # and the node's own
    assert "/latency/rate_hz" not in numbers


@pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="needs rerun-sdk: pip install 'sqsegv3_ros[view]'"
)
def test_messages_that_cannot_be_shown_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rerun_node, "THROTTLE_S", 0.0)
    rclpy.init(args=[*parameters(recording=tmp_path / "a.rrd"), "-r", "__ns:=/garbled"])
    node = rerun_node.RerunNode()
    try:
        node._scan = 0  # diagnostics are shown after the first scan
        name = "/garbled/sqsegv3"
        image = Image(height=4, width=4, data=bytes(7))
        status = DiagnosticStatus(name=f"{name}: processing", values=[KeyValue(key="latency_p50_ms", value="fast")])
        for topic, message, profile in (
            (f"{name}/output/label_set", String(data="{"), qos.LATCHED),
            (f"{name}/output/range_image", image, qos.OUTPUT),
            (f"{name}/output/label_image", image, qos.OUTPUT),
            (f"{name}/output/points", PointCloud2(width=9), qos.OUTPUT),
            ("/diagnostics", DiagnosticArray(status=[status]), 10),
        ):
            publisher = node.create_publisher(type(message), topic, profile)
            said = ""
            for _ in range(100):
                publisher.publish(message)
                rclpy.spin_once(node, timeout_sec=0.1)
                said += capfd.readouterr().err
                if f"{topic} not shown: " in said:
                    break
            assert f"{topic} not shown: " in said, said
    finally:
        node.recording.close()
        node.destroy_node()
        rclpy.shutdown()


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the node says when it ends with 2, in this process, which starts faster."""
    assert rerun_node.main(["rerun_node", *arguments]) == 2
    said = capfd.readouterr().err
    assert "rerun_node: " in said and "Traceback" not in said, said
    return said


def test_a_recording_that_cannot_be_written_ends_the_node_with_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "live.rrd" in refused(capfd, *parameters(recording=tmp_path / "file" / "live.rrd"))


def test_an_existing_recording_is_refused_and_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "live.rrd"
    file.write_text("the previous drive")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"recording {file} already exists" in refused(capfd, *parameters(recording="~/live.rrd"))
    assert file.read_text() == "the previous drive"


def test_without_rerun_the_node_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert "[view]" in refused(capfd)
