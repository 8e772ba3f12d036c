# SPDX-License-Identifier: Apache-2.0
"""Subscriptions to PointCloud2 topics whose reliability follows the publishers.

A best-effort cloud of several megabytes is sent in hundreds of fragments, and one lost fragment loses the cloud: unless
the publisher has a large shared-memory segment, almost none arrive. A best-effort subscription has the same effect with
a reliable publisher, and a reliable subscription does not match a best-effort publisher at all. So the subscription
takes the reliability that the publishers offer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.ros.distributions import HAS_MESSAGE_INFO, SubscriptionEventCallbacks, UnsupportedEventTypeError

MATCH_PERIOD_S = 0.5
MISSING_AFTER_S = 2.0
_UNKNOWN_SEQUENCE_NUMBER = 2**64 - 1  # RMW_MESSAGE_INFO_SEQUENCE_NUMBER_UNSUPPORTED
_MAX_PUBLISHERS = 16  # whose last sequence numbers are kept
_RAW_DEPTH = 20


def offered_reliability(node: Node, topic: str, default: ReliabilityPolicy) -> ReliabilityPolicy:
    """Return the strictest reliability that matches every publisher of a topic; `default` if there is no publisher."""
    offered = {info.qos_profile.reliability for info in node.get_publishers_info_by_topic(topic)}
    if not offered:
        return default
    return ReliabilityPolicy.RELIABLE if offered == {ReliabilityPolicy.RELIABLE} else ReliabilityPolicy.BEST_EFFORT


def subscribe_serialized(node: Node, topic: str, callback: Callable[[bytes], None]) -> Subscription:
    """Subscribe to the serialized clouds of a published topic, with the reliability that is offered.

    The callback gets bytes because deserializing a cloud would delay the receipt time of the next one.
    """
    qos = QoSProfile(depth=_RAW_DEPTH, reliability=offered_reliability(node, topic, ReliabilityPolicy.RELIABLE))
    return node.create_subscription(PointCloud2, topic, callback, qos, raw=True)


def published_clouds(node: Node) -> list[str]:
    """Return the published PointCloud2 topics, except those of nodes with this node's name."""
    clouds = sorted(name for name, types in node.get_topic_names_and_types() if "sensor_msgs/msg/PointCloud2" in types)
    own = node.get_name()
    return [name for name in clouds if any(p.node_name != own for p in node.get_publishers_info_by_topic(name))]


class CloudSubscription:
    """Subscribe to the newest cloud (depth 1) of a topic, from construction to `close`.

    History and depth have ROS's usual QoS overrides. A timer adapts the reliability to the publishers.

    Args:
        node: Node that owns the subscription.
        topic: Topic name, which may be relative or private.
        on_cloud: Called with every cloud.
        on_dropped: Called with the number of clouds that were published but not received: lost in transport, or
            replaced by a newer one in the middleware. They show as gaps in the publishers' sequence numbers. If the
            middleware does not name the publisher of a message, gaps count only while there is one publisher. Without
            sequence numbers, the middleware's message-lost events count instead.
        choice: 'auto', 'reliable' or 'best_effort'.

    Attributes:
        choice: May be changed; takes effect with the next tick of the timer.
        topic_name: Full name of the topic.
        reliability: Of the present subscription.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        on_cloud: Callable[[PointCloud2], None],
        on_dropped: Callable[[int], None],
        choice: str = "auto",
    ) -> None:
        self._node = node
        self._topic = topic
        self._on_cloud = on_cloud
        self._on_dropped = on_dropped
        self._sequence_numbers: dict[bytes | None, int] = {}  # last one per publisher; survives a new subscription
        self.topic_name = node.resolve_topic_name(topic)
        self.choice = choice
        self.reliability = self._select_reliability(ReliabilityPolicy.BEST_EFFORT)
        self._subscription = self._subscribe(self.reliability)
        self._published_s = time.monotonic()
        # steady time: publishers come and go while the simulated clock is paused
        self._timer = node.create_timer(
            MATCH_PERIOD_S, self.match_publishers, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def match_publishers(self) -> None:
        """Subscribe again if the publishers now offer another reliability, or another one is chosen.

        If that fails, the error is raised, the present subscription stays, and the timer tries again.
        """
        reliability = self._select_reliability(self.reliability)
        if reliability != self.reliability:
            previous, self._subscription = self._subscription, self._subscribe(reliability)
            self.reliability = reliability
            self._node.destroy_subscription(previous)

    def missing_publisher(self) -> str:
        """Describe an input that has had no publisher for 2 s: which clouds there are, and how to choose one.

        Returns:
            The message, or an empty string. To be called periodically.
        """
        now = time.monotonic()
        if self._node.count_publishers(self.topic_name):
            self._published_s = now
        if now - self._published_s < MISSING_AFTER_S:
            return ""
        clouds = published_clouds(self._node)
        if not clouds:
            help_ = "no PointCloud2 topic is published: check that the driver runs and has the same ROS_DOMAIN_ID"
        else:
            found = f"PointCloud2 topics: {', '.join(clouds)}"
            help_ = f"{found}; launch with input_topic:={clouds[0]} or run with -r ~/input/points:={clouds[0]}"
        return f"no publisher on {self.topic_name}; {help_}"

    def close(self) -> None:
        """Destroy the timer and the subscription."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)

    def _select_reliability(self, default: ReliabilityPolicy) -> ReliabilityPolicy:
        if self.choice != "auto":
            return ReliabilityPolicy[self.choice.upper()]
        return offered_reliability(self._node, self.topic_name, default)

    def _subscribe(self, reliability: ReliabilityPolicy) -> Subscription:
        profile = QoSProfile(depth=1, reliability=reliability, durability=DurabilityPolicy.VOLATILE)
        overridable = QoSOverridingOptions(policy_kinds=(QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
        callback = self._on_numbered_cloud if HAS_MESSAGE_INFO else self._on_cloud
        arguments: Any = (PointCloud2, self._topic, callback, profile)
        events = SubscriptionEventCallbacks(message_lost=self._on_message_lost)
        try:
            return self._node.create_subscription(
                *arguments, event_callbacks=events, qos_overriding_options=overridable
            )
        except UnsupportedEventTypeError:  # the middleware reports no lost messages
            return self._node.create_subscription(*arguments, qos_overriding_options=overridable)

    def _on_numbered_cloud(self, cloud: PointCloud2, info: Any) -> None:
        number = info.get("publication_sequence_number")
        if number is not None and number < _UNKNOWN_SEQUENCE_NUMBER:
            publisher = (info.get("publisher_gid") or {}).get("data")
            previous = self._sequence_numbers.pop(publisher, None)
            self._sequence_numbers[publisher] = number
            if len(self._sequence_numbers) > _MAX_PUBLISHERS:
                del self._sequence_numbers[next(iter(self._sequence_numbers))]  # silent for the longest time
            if previous is not None and number > previous + 1 and (publisher is not None or self._has_one_publisher()):
                self._on_dropped(number - previous - 1)
        self._on_cloud(cloud)

    def _has_one_publisher(self) -> bool:
        return self._node.count_publishers(self.topic_name) == 1

    def _on_message_lost(self, event: Any) -> None:
        # with sequence numbers, the gap has counted these already
        if not self._sequence_numbers or (None in self._sequence_numbers and not self._has_one_publisher()):
            self._on_dropped(event.total_count_change)
