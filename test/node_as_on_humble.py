# SPDX-License-Identifier: Apache-2.0
"""Runs the segmentation node without the names that rclpy has received since Humble."""

from __future__ import annotations

import importlib
import sys
import types

from rclpy.node import Node

# from the sources of rclpy: what Jazzy has and Humble has not
LATER_THAN_HUMBLE = {
    "add_post_set_parameters_callback",
    "add_pre_set_parameters_callback",
    "remove_post_set_parameters_callback",
    "remove_pre_set_parameters_callback",
    "count_clients",
    "count_services",
    "get_fully_qualified_node_names",
    "get_publisher_count",
    "list_parameters",
    "wait_for_node",
    "CallbackType",
    "event_handler",
    "parameter_dict_from_yaml_file",
    "get_logger_level",
}


def become_humble() -> None:
    """Remove those names from what the package sees; rclpy itself keeps what it uses."""
    importlib.import_module("rclpy.lifecycle")  # imports rclpy.event_handler itself
    current = importlib.import_module("rclpy.event_handler")
    former = types.ModuleType("rclpy.qos_event")
    former.__dict__.update({name: getattr(current, name) for name in dir(current) if not name.startswith("_")})
    sys.modules["rclpy.qos_event"] = former
    sys.modules["rclpy.event_handler"] = None  # type: ignore[assignment]  # an import raises ImportError
    for name in LATER_THAN_HUMBLE & vars(Node).keys():
        delattr(Node, name)
    subscriptions = importlib.import_module("rclpy.subscription")
    original = subscriptions.Subscription
    subscriptions.Subscription = type("Subscription", (), {})  # without CallbackType, which rclpy itself reads
    importlib.import_module("sqsegv3_ros.ros.distributions")
    subscriptions.Subscription = original


if __name__ == "__main__":
    become_humble()
    from sqsegv3_ros.ros.distributions import HAS_MESSAGE_INFO
    from sqsegv3_ros.ros.segment_node import main

    print(f"message info: {HAS_MESSAGE_INFO}", flush=True)
    sys.exit(main())
