# SPDX-License-Identifier: Apache-2.0
"""The package's settings as ROS parameters of a node."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from sqsegv3_ros.inference.settings import SPEC_OF, SPECS, Settings, Spec


def overrides(node: Node) -> dict[str, Any]:
    """Return the values that were set at start (`-p`, `--params-file`), declared or not, by name."""
    # rclpy has no public access to overrides, except by declaring all of them, misspelt or not
    return {name: parameter.value for name, parameter in getattr(node, "_parameter_overrides", {}).items()}


def declare(node: Node, settings: Settings, *, of_model: bool) -> None:
    """Declare parameters with descriptions, ranges and their values in the settings.

    Args:
        node: The node.
        settings: The values; they include what was set at start.
        of_model: Declare those that default to the model's own value; otherwise all others.
    """
    for spec in SPECS:
        if spec.of_model == of_model and spec.name in settings.values:
            node.declare_parameter(spec.name, settings[spec.name], _descriptor(spec), ignore_override=True)


def undeclare_of_model(node: Node) -> None:
    """Undeclare the parameters that default to the model's own value."""
    for spec in SPECS:
        if spec.of_model and node.has_parameter(spec.name):
            node.undeclare_parameter(spec.name)


def explain_fixed(name: str) -> str:
    """Say why a parameter that is read at configure cannot be set now, and how to set it."""
    if SPEC_OF[name].of_model:
        return f"{name}: read when the node is configured; set it at start, with -p or in a parameter file"
    return f"{name}: read when the node is configured; run deactivate and cleanup, then set it"


def set_range(descriptor: ParameterDescriptor, kind: type, low: float, high: float, step: int = 0) -> None:
    """Set the range of a number; `step` is for integers, 0: any."""
    if kind is float:
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    else:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=step)]


def _descriptor(spec: Spec) -> ParameterDescriptor:
    constraints = "; ".join(part for part in (", ".join(spec.choices), spec.rule) if part)
    descriptor = ParameterDescriptor(
        description=spec.description, additional_constraints=constraints, read_only=spec.read_only
    )
    if spec.at_configure:
        descriptor.description += " Read when the node is configured."
    if spec.low is not None and spec.high is not None:
        set_range(descriptor, spec.kind, spec.low, spec.high, spec.step)
    return descriptor
