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
from rclpy.subscription import Subscription
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.errors import UserError

_NO_NUMBER = 2**64 - 1  # a middleware that does not number messages says so by this one
_PUBLISHERS = 16  # whose numbers are remembered
CHOICES = ("auto", "best_effort", "reliable")


class InputSubscription:
    """Subscribes to clouds from construction to `close`. Depth 1: the newest wins.

    callback: gets every cloud. on_lost: gets the number of clouds that were published but never came: lost on the way,
    or replaced by a newer one before this process took them. Known by gaps in the publishers' numbers; where the
    middleware does not say whose numbers they are, only while there is one publisher; else what it says was lost.
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
        self._numbers: dict[bytes | None, int] = {}
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
        self._numbers = {}
        numbered = hasattr(Subscription, "CallbackType")  # not in Humble
        arguments = (PointCloud2, self._topic, self._on_numbered if numbered else self._callback, profile)
        lost = SubscriptionEventCallbacks(message_lost=self._on_message_lost)
        try:
            return self._node.create_subscription(*arguments, event_callbacks=lost, qos_overriding_options=overridable)
        except UnsupportedEventTypeError:  # a middleware that does not count what it loses
            return self._node.create_subscription(*arguments, qos_overriding_options=overridable)

    def _on_numbered(self, cloud: PointCloud2, info: Any) -> None:
        """Gaps in a publisher's numbers are clouds that did not come."""
        number = info.get("publication_sequence_number")
        if number is not None and number < _NO_NUMBER:
            publisher = (info.get("publisher_gid") or {}).get("data")
            before = self._numbers.pop(publisher, None)
            self._numbers[publisher] = number
            if len(self._numbers) > _PUBLISHERS:
                del self._numbers[next(iter(self._numbers))]  # the one that has been silent longest
            if before is not None and number > before + 1 and (publisher is not None or self._alone()):
                self._on_lost(number - before - 1)
        self._callback(cloud)

    def _alone(self) -> bool:
        """Whether numbers that do not say whose they are belong to one publisher."""
        return self._node.count_publishers(self.topic_name) == 1

    def _on_message_lost(self, event: Any) -> None:
        if not self._numbers or (None in self._numbers and not self._alone()):  # else the gap tells it, once
            self._on_lost(event.total_count_change)
