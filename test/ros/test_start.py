# SPDX-License-Identifier: Apache-2.0
"""Wrong ROS arguments end a node of the package with exit code 2 and the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from programs import module

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.ros.start import start_ros


@pytest.mark.parametrize("node", ["segment_node", "evaluate_node", "rerun_node"])
def test_a_missing_parameter_file_ends_the_node(node: str, tmp_path: Path) -> None:
    arguments = ["--ros-args", "--params-file", str(tmp_path / "nosuch.yaml")]
    ended = subprocess.run(
        [sys.executable, *module(f"ros.{node}"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert f"{node}: cannot start with these ROS arguments: Couldn't parse params file" in ended.stderr
    assert "nosuch.yaml" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-p", "average_mirrored"], "-p average_mirrored"),
        (["--log-level", "foo"], "Argument does not use a valid severity level"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_the_wrong_argument_is_named(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match="cannot start with these ROS arguments") as raised:
        start_ros(["--ros-args", *arguments])
    assert reason in str(raised.value) and ".c:" not in str(raised.value)
