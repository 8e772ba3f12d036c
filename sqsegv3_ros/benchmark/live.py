# SPDX-License-Identifier: Apache-2.0
"""Latency of the running node, from the publication of a cloud to the receipt of its labels in another process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.benchmark.load_test import Bench, Case
from sqsegv3_ros.benchmark.scene import POINTS
from sqsegv3_ros.benchmark.tables import table
from sqsegv3_ros.inference.stages import STAGES

SENSOR_HZ = 10.0
_IDLE_S = 10.0


def measure(
    model: Path | None, network: str | None, width: int, parameters: Mapping[str, Any], clouds: int
) -> dict[str, Any]:
    """Measure with the shipped Fast DDS profile and without, at 10 Hz or, if the node is slower, at 0.8 of its pace.

    Args:
        model: Model file; None: random weights.
        network: Name of the random network; None: the 3/16, then the 21.
        width: Columns of the random networks' image.
        parameters: Node parameters that differ from their defaults.
        clouds: Clouds to publish in each case; a quarter of them at less than 10 Hz.

    Raises:
        UserError: ROS is not installed.
        OperationError: The node does not run.
    """
    if model is not None:
        benches = {model.stem: Bench(model, "", width, parameters)}
    else:
        names = [network] if network else ["3/16", "21"]
        benches = {f"random {name}, 64 x {width}": Bench(None, name, width, parameters) for name in names}
    return {"cases": [_measure(name, bench, p, clouds) for name, bench in benches.items() for p in (True, False)]}


def _measure(name: str, bench: Bench, profile: bool, clouds: int) -> dict[str, Any]:
    with bench.running(profile) as running:
        idle_cpu_percent = running.cpu_percent(_IDLE_S)
        hz = min(SENSOR_HZ, 800 / running.processing_ms())
        count = clouds if hz == SENSOR_HZ else max(1, clouds // 4)
        found = running.measure(Case(hz, POINTS, 16, True), count / hz)
    del found["arrivals"]
    return {"name": name, "profile": profile, "idle_cpu_percent": idle_cpu_percent, **found}


def text(result: Mapping[str, Any]) -> str:
    """A table of latencies, and one of the medians by stage."""
    latencies, stages = [], []
    for case in result["cases"]:
        name = [case["name"], f"{case['hz']:.3g} Hz", "yes" if case["profile"] else "no"]
        total, inside = case["latency_ms"], case["in_node_ms"]
        times = [total["median"], total["p95"], total["max"], inside, total["median"] - inside]
        cells = [f"{case['labelled']}/{case['sent']}", *(f"{t:.0f}" for t in times), f"{case['idle_cpu_percent']:.1f}"]
        latencies.append([*name, *cells])
        stages.append([*name, *(f"{case['stages_ms'][stage]:.1f}" for stage in STAGES)])
    what = ["network", "clouds", "profile"]
    header = [*what, "labelled", "p50 ms", "p95 ms", "max ms", "in the node", "outside", "idle CPU %"]
    return "\n\n".join([table(header, latencies), "By stage, median ms:", table([*what, *STAGES], stages)])
