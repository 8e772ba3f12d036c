"""A node and a topic of clouds come in; a subscription to their bytes, as reliable as it is offered, goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2

DEPTH = 20


def subscribe_as_offered(node: Node, topic: str, callback: Callable[[bytes], None]) -> Any:
    """Subscribe to the serialised clouds of a topic that somebody publishes already.

    Reliably where all its publishers are reliable, as big clouds sent with best effort are easily lost, and with best
    effort where one is not, as its clouds would not come at all. Bytes, not messages: to unpack a cloud takes time, in
    which the next one's receipt would not be noticed.
    """
    offered = [info.qos_profile.reliability for info in node.get_publishers_info_by_topic(topic)]
    reliable = all(reliability == ReliabilityPolicy.RELIABLE for reliability in offered)
    qos = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT)
    return node.create_subscription(PointCloud2, topic, callback, qos, raw=True)
