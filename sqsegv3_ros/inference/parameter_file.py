# SPDX-License-Identifier: Apache-2.0
"""Reader of ROS 2 parameter files; no ROS in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import read_yaml
from sqsegv3_ros.inference.settings import NODE_NAME, check_value, is_builtin


def read_parameters(path: Path) -> dict[str, Any]:
    """Read the node's parameters from a ROS 2 parameter file, nested or with dotted names.

    Args:
        path: YAML file. The keys `/**` and those that end in `sqsegv3` hold for the node; other nodes' are ignored.

    Returns:
        The values that the file sets, by parameter name; later ones take precedence.

    Raises:
        UserError: A parameter is unknown, of a wrong type or out of its range (names file and parameter), or the file
            has parameters of other nodes only.
    """
    groups = list(_groups(read_yaml(path, "parameter file")))
    if not groups:
        raise UserError(f"parameter file {path} has no ros__parameters; expected /**: {{ros__parameters: {{...}}}}")
    own = [group for node, group in groups if node == "/**" or node.rpartition("/")[2] == NODE_NAME]
    if not own:
        nodes = ", ".join(node or "no node" for node, _ in groups)
        raise UserError(
            f"parameter file {path} has parameters of {nodes}; expected /**, /{NODE_NAME} or /**/{NODE_NAME}"
        )
    found = {name: value for group in own for name, value in _flat(group)}
    values = {name: value for name, value in found.items() if not is_builtin(name)}
    try:
        return {name: check_value(name, value) for name, value in values.items()}
    except UserError as error:
        raise UserError(f"parameter file {path}: {error}") from error


def _groups(tree: Any, node: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node's full name and the mapping below its ros__parameters, in order. Keys may be nested namespaces."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            if name == "ros__parameters" and isinstance(below, Mapping):
                yield node, below
            else:
                yield from _groups(below, f"{node}/{str(name).strip('/')}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
