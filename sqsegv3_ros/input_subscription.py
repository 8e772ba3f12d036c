"""The node's input: a subscription that keeps only the newest cloud and is as reliable as those who publish.

A cloud of megabytes sent best-effort arrives in hundreds of fragments, and is lost whole when one of them is: without
a large shared-memory segment on the publisher's side, nearly all are. A best-effort subscription makes even a reliable
publisher send so; a reliable one does not match best-effort publishers at all. So the publishers decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.errors import UserError

CHOICES = ("auto", "best_effort", "reliable")


class InputSubscription:
    """Subscribes to clouds from construction to `close`. Depth 1: the newest wins.

    callback: gets every cloud. on_lost: gets the number of clouds that the middleware says were lost.
    The parameter qos_overrides.<topic>.subscription.reliability is auto (the default), best_effort or reliable;
    history and depth are overridden in ROS's usual way. Raises UserError for another value.
    """

    def __init__(
        self, node: Node, topic: str, callback: Callable[[PointCloud2], None], on_lost: Callable[[int], None]
    ) -> None:
        self._node = node
        self._topic = topic
        self._callback = callback
        self._on_lost = on_lost
        self.topic_name = node.resolve_topic_name(topic)
        self._choice = self._declare_reliability()
        self.reliability = self._wanted_reliability(ReliabilityPolicy.BEST_EFFORT)
        self._subscription = self._subscribe()

    def adapt(self) -> None:
        """Subscribe anew where the publishers have changed their reliability. Call it now and then."""
        wanted = self._wanted_reliability(self.reliability)
        if wanted != self.reliability:
            self.close()
            self.reliability = wanted
            self._subscription = self._subscribe()

    def close(self) -> None:
        """Subscribe no longer."""
        self._node.destroy_subscription(self._subscription)

    def _declare_reliability(self) -> str:
        name = f"qos_overrides.{self.topic_name}.subscription.reliability"
        if not self._node.has_parameter(name):
            descriptor = ParameterDescriptor(
                description="Reliability of the input; auto: reliable where every publisher is.",
                additional_constraints=", ".join(CHOICES),
                read_only=True,
            )
            self._node.declare_parameter(name, "auto", descriptor)
        choice = str(self._node.get_parameter(name).value)
        if choice not in CHOICES:
            raise UserError(f"{name} must be one of {', '.join(CHOICES)}, found '{choice}'")
        return choice

    def _wanted_reliability(self, otherwise: ReliabilityPolicy) -> ReliabilityPolicy:
        if self._choice != "auto":
            return ReliabilityPolicy[self._choice.upper()]
        offered = {info.qos_profile.reliability for info in self._node.get_publishers_info_by_topic(self.topic_name)}
        if not offered:
            return otherwise
        return ReliabilityPolicy.RELIABLE if offered == {ReliabilityPolicy.RELIABLE} else ReliabilityPolicy.BEST_EFFORT

    def _subscribe(self) -> Any:
        profile = QoSProfile(depth=1, reliability=self.reliability, durability=DurabilityPolicy.VOLATILE)
        overridable = QoSOverridingOptions(policy_kinds=(QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
        arguments = (PointCloud2, self._topic, self._callback, profile)
        lost = SubscriptionEventCallbacks(message_lost=lambda event: self._on_lost(event.total_count_change))
        try:
            return self._node.create_subscription(*arguments, event_callbacks=lost, qos_overriding_options=overridable)
        except UnsupportedEventTypeError:  # a middleware that does not count what it loses
            return self._node.create_subscription(*arguments, qos_overriding_options=overridable)
