# SPDX-License-Identifier: Apache-2.0
"""Declare the package's settings as ROS parameters of a node."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from sqsegv3_ros.inference.settings import SPECS, Settings, Spec, is_builtin


def declare_settings(node: Node) -> Settings:
    """Declare every setting as a described, ranged parameter and return the values.

    Raises:
        UserError: Values that contradict each other or that no range can exclude.
        InvalidParameterTypeException: A value of another type.
        InvalidParameterValueException: A value outside its range.
    """
    for spec in SPECS:
        node.declare_parameter(spec.name, spec.default, _descriptor(spec))
    return Settings({spec.name: node.get_parameter(spec.name).value for spec in SPECS})


def undeclared_overrides(node: Node) -> list[str]:
    """Return the names of parameters that were set at start (`-p`, `--params-file`) but do not exist on the node."""
    # rclpy has no public access to overrides, except by declaring all of them, misspelt or not
    overrides = getattr(node, "_parameter_overrides", {})
    return sorted(name for name in overrides if not node.has_parameter(name) and not is_builtin(name))


def _descriptor(spec: Spec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description, additional_constraints=spec.rule)
    if spec.at_configure:
        descriptor.description += " Read when the node is configured."
    if spec.low is None or spec.high is None:
        return descriptor
    if isinstance(spec.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(spec.low), to_value=float(spec.high))]
    else:
        descriptor.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high), step=1)]
    return descriptor
