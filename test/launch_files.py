# SPDX-License-Identifier: Apache-2.0
"""The launch files, read without `launch`, which is not on PyPI; `make test-launch` runs them."""

from __future__ import annotations

import ast
from pathlib import Path

from conftest import ROOT

LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))


def calls(path: Path, function: str) -> list[ast.Call]:
    """Every call of a function in a file, in order."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == function]
    return sorted(found, key=lambda call: call.lineno)


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def declared_arguments(path: Path) -> dict[str, str | None]:
    """The default of each launch argument; None: required."""
    defaults: dict[str, str | None] = {}
    for call in calls(path, "DeclareLaunchArgument"):
        default = keywords(call).get("default_value")
        defaults[ast.literal_eval(call.args[0])] = None if default is None else ast.literal_eval(default)
    return defaults
