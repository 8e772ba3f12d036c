# SPDX-License-Identifier: Apache-2.0
"""The launch files as modules, for tests of their functions."""

from __future__ import annotations

import importlib.util
import sys
import types
from unittest.mock import MagicMock

import pytest
from conftest import ROOT

PARTS = ("", ".actions", ".event_handlers", ".events", ".launch_description_sources", ".substitutions")


def load_launch_file(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """launch/<name>.launch.py, with mocks of launch and launch_ros if ROS is not installed."""
    if importlib.util.find_spec("launch_ros") is None:
        for package in ("launch", "launch_ros"):
            for part in PARTS:
                monkeypatch.setitem(sys.modules, f"{package}{part}", MagicMock())
    spec = importlib.util.spec_from_file_location(f"{name}_launch", ROOT / "launch" / f"{name}.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
