# SPDX-License-Identifier: Apache-2.0
"""The input's subscription follows the reliability of its publishers, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import rclpy
from live import BEST_EFFORT, RELIABLE
from programs import depends_on_discovery, wait_until
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.ros.cloud_subscription import CloudSubscription

pytestmark = depends_on_discovery

TOPIC = "/follow/points"


@pytest.fixture
def node() -> Iterator[Node]:
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("follow", context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def publish_until_received(node: Node, qos: QoSProfile, clouds: list[PointCloud2]) -> None:
    publisher = node.create_publisher(PointCloud2, TOPIC, qos)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def received() -> bool:
        publisher.publish(PointCloud2())
        executor.spin_once(timeout_sec=0.1)
        return bool(clouds)

    wait_until(received, 20)
    executor.shutdown()


def test_a_failed_new_subscription_keeps_the_old_one_and_is_repeated(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds: list[PointCloud2] = []
    subscription = CloudSubscription(node, TOPIC, clouds.append, lambda count: None)
    assert subscription.reliability == ReliabilityPolicy.BEST_EFFORT
    publisher = node.create_publisher(PointCloud2, TOPIC, RELIABLE)
    wait_until(lambda: node.count_publishers(TOPIC) == 1, 20)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(node, "create_subscription", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            subscription.match_publishers()
    assert subscription.reliability == ReliabilityPolicy.BEST_EFFORT
    publish_until_received(node, BEST_EFFORT, clouds)  # the first subscription still receives

    subscription.match_publishers()  # one of the publishers is best-effort now
    assert subscription.reliability == ReliabilityPolicy.BEST_EFFORT
    for other in list(node.publishers):
        if other.topic_name == TOPIC and other is not publisher:
            node.destroy_publisher(other)
    wait_until(lambda: node.count_publishers(TOPIC) == 1, 20)
    subscription.match_publishers()
    assert subscription.reliability == ReliabilityPolicy.RELIABLE
    assert [s.topic_name for s in node.subscriptions].count(TOPIC) == 1  # the old one is destroyed
    clouds.clear()
    publish_until_received(node, RELIABLE, clouds)
