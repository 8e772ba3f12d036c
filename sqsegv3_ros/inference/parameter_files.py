"""ROS 2 parameter files come in; the values of this package's parameters go out, without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError, missing_package
from sqsegv3_ros.inference.settings import NAMES, SPECS

_OF_EVERY_NODE = ("use_sim_time", "start_type_description_service", "qos_overrides")
_SPECS = {spec.name: spec for spec in SPECS}


def read_parameters(path: Path) -> dict[str, Any]:
    """The parameters that a file sets (`/**: {ros__parameters: {...}}`, nested or joined by dots), by name.

    Raises UserError naming the file and the parameter where one is unknown, of a wrong type or out of its range.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_package("PyYAML", "reading a parameter file", "tools") from error
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read parameter file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"parameter file {path} is no YAML: {error}") from error
    groups = list(_groups(tree))
    if not groups:
        raise UserError(f"parameter file {path} holds no ros__parameters")
    found = {name: value for group in groups for name, value in _flat(group)}
    values = {name: value for name, value in found.items() if not name.startswith(_OF_EVERY_NODE)}
    try:
        return {name: checked(name, value) for name, value in values.items()}
    except UserError as error:
        raise UserError(f"parameter file {path}: {error}") from error


def checked(name: str, value: Any) -> Any:
    """A parameter's value in its own type. Raises UserError where the name is unknown or the value does not fit."""
    if name not in NAMES:
        raise UserError(f"there is no parameter '{name}'")
    spec = _SPECS[name]
    kind = type(spec.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"parameter {name} must be {kind.__name__}, found {value!r}")
    number: Any = value
    if spec.low is not None and spec.high is not None and not spec.low <= number <= spec.high:
        raise UserError(f"parameter {name} must lie in {spec.low:g}..{spec.high:g}, found {value}")
    return value


def _groups(tree: Any) -> Iterator[Mapping[str, Any]]:
    """What stands below every ros__parameters, in order."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            if name == "ros__parameters" and isinstance(below, Mapping):
                yield below
            else:
                yield from _groups(below)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
