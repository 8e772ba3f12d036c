# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqsegv3_ros.benchmark import live, load_test, scaling
from sqsegv3_ros.benchmark.child import child_environment
from sqsegv3_ros.benchmark.measure import EDGE, off_the_edges
from sqsegv3_ros.benchmark.stages import TABLE_STAGES
from sqsegv3_ros.inference.stages import STAGES
from sqsegv3_ros.process import PROFILE_VARIABLES, use_fastdds_profile


def sweep(power: float) -> list[dict[str, Any]]:
    return [
        {
            "x": x,
            "stages": {stage: {"median_ms": 0.01 * x**power} for stage in (*TABLE_STAGES, "total")},
            "cpu_seconds": 1.0,
        }
        for x in (256, 512, 2048)
    ]


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_growth_of_a_stage_is_the_power_of_x(power: float) -> None:
    assert scaling.exponent(sweep(power), "knn") == pytest.approx(power, abs=1e-6)


def test_scaling_is_printed_and_drawn(tmp_path: Path) -> None:
    about = {"network": "3/16", "backend": "openvino", "precision": "bf16", "other_cores": 0.02, "busy": None}
    result = {**about, "sweeps": {name: sweep(1) for name in scaling.SWEEPS}}
    printed = scaling.text(result)
    assert printed.count("| grows with x to the") == len(scaling.SWEEPS) - 1  # threads are no quantity to grow with
    assert "GMAC of the network" in printed and "1.00" in printed
    scaling.draw(result, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_live_latencies_are_split_into_the_node_and_the_rest() -> None:
    case = {
        "name": "random 3/16",
        "hz": 10.0,
        "profile": True,
        "sent": 62,
        "labelled": 61,
        "latency_ms": {"median": 95.0, "p95": 110.0, "max": 130.0},
        "in_node_ms": 80.0,
        "stages_ms": dict.fromkeys(STAGES, 2.5),
        "idle_cpu_percent": 0.31,
    }
    lines = live.text({"cases": [case, {**case, "profile": False, "hz": 1.2345}]}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| random")]
    assert cells[0] == ["random 3/16", "10 Hz", "yes", "61/62", "95", "110", "130", "80", "15", "0.3"]
    assert cells[1][:4] == ["random 3/16", "1.23 Hz", "no", "61/62"]
    assert cells[2][3:] == ["2.5"] * len(STAGES) and len(cells) == 4


def test_medians_are_read_from_the_nodes_diagnostics() -> None:
    said = {"latency_p50_ms": "12.5", "latency_p95_ms": "20.0", "labelled": "3"}
    assert load_test.p50(said, "latency") == 12.5
    assert np.isnan(load_test.p50(said, "network"))


def test_without_the_profile_no_profile_of_the_caller_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROFILE_VARIABLES:
        monkeypatch.setenv(name, "/some/profile.xml")
    without = child_environment(load_test.ros_environment(profile=False))
    assert not set(PROFILE_VARIABLES) & set(without)
    assert not use_fastdds_profile(without)
    given = child_environment(load_test.ros_environment(profile=True))
    used = [given[name] for name in PROFILE_VARIABLES if name in given]
    assert used and all(Path(path).name == "fastdds.xml" and Path(path).is_file() for path in used)


@pytest.mark.parametrize(("width", "edge"), [(512, EDGE), (2048, EDGE), (8192, 4 * EDGE)])
def test_points_at_a_pixels_edge_are_left_out_of_comparisons(width: int, edge: float) -> None:
    """Points whose column and row are known: the middle of a pixel, just inside the margin, and just outside it."""
    projection = {"fov_up_deg": 3.0, "fov_down_deg": -25.0, "height": 64, "width": width}

    def at(u: float, v: float) -> list[float]:
        azimuth = np.pi * (1 - 2 * u / width)
        elevation = np.radians(28.0) * (1 - v / 64) - np.radians(25.0)
        horizontal = 10 * np.cos(elevation)
        return [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), 10 * np.sin(elevation), 0.5]

    kept = [at(100.5, 20.5), at(100.0 + 4 * edge, 20.5), at(101.0 - 4 * edge, 20.5), at(100.5, 20.0 + 4 * edge)]
    lost = [at(100.0 + edge / 4, 20.5), at(101.0 - edge / 4, 20.5), at(100.5, 21.0 - edge / 4)]
    points = np.array(kept + lost, np.float32)
    np.testing.assert_array_equal(off_the_edges(points, projection), points[: len(kept)])
