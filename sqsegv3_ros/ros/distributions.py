# SPDX-License-Identifier: Apache-2.0
"""Differences of rclpy between ROS distributions. Names newer than Humble are used only here."""

from __future__ import annotations

from typing import Any

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

__all__ = ["HAS_MESSAGE_INFO", "SubscriptionEventCallbacks", "UnsupportedEventTypeError", "answer_invalid_transitions"]

# whether a subscription's callback may take the message info with sequence number and publisher; not in Humble
HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")


def answer_invalid_transitions(node: LifecycleNode) -> None:
    """Let `~/change_state` answer a transition that the state does not allow with success = false.

    Kilted does. Up to Jazzy, rclpy raises instead of answering, and the client waits without end.
    """
    service = next(service for service in node.services if service.srv_type is ChangeState)
    change_state = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except rclpy_implementation.RCLError as error:
            node.get_logger().error(f"transition refused: {str(error).strip().splitlines()[0]}")
            response.success = False
            return response

    service.callback = answer
