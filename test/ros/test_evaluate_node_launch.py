# SPDX-License-Identifier: Apache-2.0
"""evaluate.launch.py: the processes it starts, and the real `ros2 launch` if it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from installing import colcon_build, copy_source, needs_colcon, site_packages
from launch_files import load_launch_file

VALUES = {"bag": "/data/drive", "topic": "", "sequence": "", "rate": "1.0", "follow": "false", "use_sim_time": "false"}


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return load_launch_file("evaluate", monkeypatch)


def test_the_player_accepts_its_arguments(launch_file: Any) -> None:
    import argparse

    from sqsegv3_ros.commands import replay

    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)

    def parsed(**changes: str) -> argparse.Namespace:
        command = launch_file.player_command({**VALUES, **changes}, "/lidar", "/sqsegv3/output/points")
        assert command[0] == "replay"
        return parser.parse_args(command[1:])

    plain = parsed()
    assert (str(plain.source), plain.output_topic, plain.rate) == ("/data/drive", "/lidar", 1.0)
    assert (plain.wait_for_subscribers, plain.follow, plain.clock, plain.topic) == (2, None, None, None)
    rich = parsed(topic="/rear", sequence="03", rate="0.5", follow="True", use_sim_time="true")
    assert (rich.topic, rich.sequence, rich.rate) == ("/rear", "03", 0.5)
    assert rich.follow == "/sqsegv3/output/points" and rich.clock > 0


def test_topics_resolve_as_the_node_resolves_them(launch_file: Any) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    for topic, namespace, full in (
        ("~/output/points", "", "/sqsegv3/output/points"),
        ("~/output/points", "front", "/front/sqsegv3/output/points"),
        ("labels", "/front/left", "/front/left/labels"),
        ("/labels", "front", "/labels"),
    ):
        assert launch_file.resolve(topic, namespace) == full


def test_documentation_names_every_launch_argument_with_its_default(launch_file: Any) -> None:
    text = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text[text.index("## The launch file") :], re.M)
    documented = {name: default.strip("`") for name, default in rows}
    defaults = {name: default for name, default, *_ in launch_file.ARGUMENTS}
    assert documented == {name: "required" if d is None else d or "empty" for name, d in defaults.items()}


@needs_colcon
@pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
    reason="needs ROS 2's launch_ros and the ros2 command, which do not come from pip",
)
def test_exit_code_of_ros2_launch_says_whether_every_scan_was_evaluated(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    from recording import record, scans

    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(3, 5000)})
    prefix = colcon_build(copy_source(tmp_path / "src"), tmp_path)
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": f"{prefix}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}",
        "PYTHONPATH": f"{site_packages(prefix)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }

    def launched(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["ros2", "launch", "sqsegv3_ros", "evaluate.launch.py", f"model:={small_model}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = launched(f"bag:={bag}", "follow:=true", "namespace:=front", f"output:={tmp_path / 'e.json'}")
    assert code == 0, text
    assert json.loads((tmp_path / "e.json").read_text())["scans_evaluated"] == 3
    code, text = launched(f"bag:={bag}", "rate:=1000", "quiet_s:=2")
    assert code == 1 and "not every scan was evaluated" in text, text
    code, text = launched("bag:=/nowhere")
    assert code == 1 and "does not exist" in text, text
