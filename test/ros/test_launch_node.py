# SPDX-License-Identifier: Apache-2.0
"""The shipped configuration with the real node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from live import BEST_EFFORT, Client, message, street
from programs import depends_on_discovery, running_node, wait_until
from sensor_msgs.msg import PointCloud2

pytestmark = depends_on_discovery

CONFIG = ROOT / "config"
# declared by rclpy for every node
OF_EVERY_NODE = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def test_the_shipped_parameter_file_holds_exactly_the_parameters_of_the_node(client: Client) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    from test_launch import parameters_of

    written = parameters_of((CONFIG / "segment.yaml").read_text(encoding="utf-8"))
    with running_node("--params-file", str(CONFIG / "segment.yaml"), "-p", "autostart:=false") as node:
        declared = {name for name in client.describe_parameters() if not name.startswith(OF_EVERY_NODE)}
        assert declared == written.keys(), node.log
        values = dict(zip(written, client.get_parameters(*written), strict=True))
        assert node.stop() == 0, node.log
    expected = {**written, "autostart": False}
    assert {n: yaml.dump(v) for n, v in values.items()} == {n: yaml.dump(v) for n, v in expected.items()}


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


def test_the_node_delivers_large_clouds_to_a_best_effort_subscriber(client: Client, small_model: Path) -> None:
    # without the Fast DDS profile, which the node applies by itself, none of them arrives
    with running_node("-r", "__ns:=/large", model=small_model) as node:
        node.wait_for_log("labelling clouds of")
        labelled = client.collect(PointCloud2, "/large/sqsegv3/output/points", BEST_EFFORT)

        def received() -> bool:
            client.publish(message(street(130_000)), "/large/sqsegv3/input/points")
            time.sleep(0.3)
            return len(labelled) >= 5

        wait_until(received, 30, lambda: len(labelled))
    assert len(labelled[0].data) > 3_000_000


def test_the_fast_dds_profile_delivers_large_best_effort_clouds(client: Client) -> None:
    # without the profile none of them arrives
    received = client.collect(PointCloud2, "/big", BEST_EFFORT, connected=False)
    profile = str(CONFIG / "fastdds.xml")
    environment = {**os.environ, "FASTDDS_DEFAULT_PROFILES_FILE": profile, "FASTRTPS_DEFAULT_PROFILES_FILE": profile}
    subprocess.run([sys.executable, "-c", PUBLISH_BIG_CLOUDS], env=environment, check=True, timeout=60)
    assert len(received) >= 5  # of 10: a busy machine may be too slow for some
    assert len(received[0].data) == 4_160_000
