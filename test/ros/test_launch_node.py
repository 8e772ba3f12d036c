# SPDX-License-Identifier: Apache-2.0
"""The shipped configuration with the real node, and the real `ros2 launch` if it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from installing import colcon_build, copy_source, needs_colcon, site_packages

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from live import BEST_EFFORT, NODE, Client, publish_until_labelled
from programs import depends_on_discovery, running_node, wait_until
from rclpy.node import NodeNameNonExistentError
from sensor_msgs.msg import PointCloud2

CONFIG = ROOT / "config"
# declared by rclpy for every node
OF_EVERY_NODE = ("use_sim_time", "start_type_description_service", "qos_overrides.")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def test_the_shipped_parameter_file_holds_exactly_the_parameters_of_the_node(client: Client) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    from test_launch import parameters_of_file

    written = parameters_of_file()
    with running_node("--params-file", str(CONFIG / "segment.yaml"), "-p", "autostart:=false") as node:
        declared = {name for name in client.describe_parameters() if not name.startswith(OF_EVERY_NODE)}
        assert declared == written.keys(), node.log
        values = dict(zip(written, client.get_parameters(*written), strict=True))
        assert node.stop() == 0, node.log
    expected = {**written, "autostart": False}
    assert {n: yaml.dump(v) for n, v in values.items()} == {n: yaml.dump(v) for n, v in expected.items()}


def displays_of_rviz() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    tree = yaml.safe_load((CONFIG / "segment.rviz").read_text(encoding="utf-8"))["Visualization Manager"]
    assert tree["Global Options"]["Fixed Frame"] == "velodyne"
    return [display for display in tree["Displays"] if "Topic" in display]


@depends_on_discovery  # reads the ROS graph
def test_rviz_displays_fit_the_topics_and_types_that_the_node_publishes(client: Client, small_model: Path) -> None:
    shown = {d["Topic"]["Value"]: d["Class"].rpartition("/")[2] for d in displays_of_rviz()}
    with running_node(model=small_model) as node:
        node.wait_for_log("labelling clouds of")
        published: dict[str, list[str]] = {}

        def all_there() -> bool:
            with contextlib.suppress(NodeNameNonExistentError):  # its log may arrive before its name is discovered
                published.update(client.node.get_publisher_names_and_types_by_node("sqsegv3", "/"))
            return shown.keys() <= published.keys()

        wait_until(all_there, 20, lambda: published)
        labelled = client.collect(PointCloud2, f"{NODE}/output/points")
        publish_until_labelled(client, labelled, f"{NODE}/input/points")
    assert {topic: published[topic] for topic in shown} == {
        topic: [f"sensor_msgs/msg/{display}"] for topic, display in shown.items()
    }
    cloud = next(d for d in displays_of_rviz() if d["Topic"]["Value"] == f"{NODE}/output/points")
    assert cloud["Color Transformer"] == "RGB8"
    assert "rgb" in [field.name for field in labelled[0].fields]


PUBLISH_BIG_CLOUDS = """
import array, time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2

rclpy.init()
node = rclpy.create_node("driver")
publisher = node.create_publisher(PointCloud2, "/big", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
end = time.monotonic() + 20
while publisher.get_subscription_count() == 0 and time.monotonic() < end:
    time.sleep(0.05)
cloud = PointCloud2(height=1, width=130_000, point_step=32, row_step=4_160_000)
cloud.data = array.array("B", bytes(4_160_000))
for number in range(10):
    publisher.publish(cloud)
    time.sleep(0.3)
"""


def test_the_fast_dds_profile_delivers_large_best_effort_clouds(client: Client) -> None:
    # without the profile none of them arrives
    received = client.collect(PointCloud2, "/big", BEST_EFFORT, connected=False)
    profile = str(CONFIG / "fastdds.xml")
    environment = {**os.environ, "FASTDDS_DEFAULT_PROFILES_FILE": profile, "FASTRTPS_DEFAULT_PROFILES_FILE": profile}
    subprocess.run([sys.executable, "-c", PUBLISH_BIG_CLOUDS], env=environment, check=True, timeout=60)
    assert len(received) >= 5  # of 10: a busy machine may be too slow for some
    assert len(received[0].data) == 4_160_000


@needs_colcon
@pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
    reason="needs ROS 2's launch_ros and the ros2 command, which do not come from pip",
)
def test_ros2_launch_starts_the_installed_node_with_parameters_and_remapped_topics(
    client: Client, small_model: Path, tmp_path: Path
) -> None:
    prefix = colcon_build(copy_source(tmp_path / "src"), tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("/**: {ros__parameters: {latency_budget_ms: 2500.0, publish: {confidence: false}}}\n")
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": f"{prefix}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}",
        "PYTHONPATH": f"{site_packages(prefix)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    arguments = [f"model:={small_model}", f"params_file:={own}", "device:=cpu"]
    arguments += ["input_topic:=/lidar/top/points", "output_topic:=/lidar/top/labelled"]
    with subprocess.Popen(
        ["ros2", "launch", "sqsegv3_ros", "segment.launch.py", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as launch:
        try:
            labelled = client.collect(PointCloud2, "/lidar/top/labelled", connected=False)
            # starting ros2 and torch takes long on a busy machine
            wait_until(lambda: client.node.count_subscribers("/lidar/top/points"), 120, lambda: "no node")
            publish_until_labelled(client, labelled, "/lidar/top/points")
            names = [field.name for field in labelled[0].fields]
            assert names == ["x", "y", "z", "intensity", "rgb", "label"]
            budget, model, device = client.get_parameters("latency_budget_ms", "model", "device")
            assert (budget, model, device) == (2500.0, str(small_model), "cpu")
            launch.send_signal(signal.SIGINT)
            output, _ = launch.communicate(timeout=30)
        finally:
            if launch.poll() is None:
                os.killpg(launch.pid, signal.SIGKILL)
    assert launch.returncode == 0, output
    assert "process has finished cleanly" in output
