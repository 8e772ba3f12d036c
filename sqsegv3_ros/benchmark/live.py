"""Networks come in; the latency of the running node, from one process through the node to another, goes out."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.child import Child, child_environment, leaving_on_sigterm
from sqsegv3_ros.benchmark.report import table
from sqsegv3_ros.benchmark.scene import made_up_scan
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.fastdds import PROFILE_VARIABLES, use_profile

STAGES = ("decode", "upload", "project", "network", "restore", "knn", "download", "encode", "publish")
SENSOR_HZ = 10.0
WIDTH = 2048
_START_S = 120.0
_CLOUD_S = 120.0
_IDLE_S = 10.0
_DOMAINS = range(215, 232)  # the upper ones of those that ROS 2 calls safe on Linux: robots and tests take low numbers


@dataclass(frozen=True)
class Case:
    """One measurement. hz: clouds a second; None: each is published when the labels of the last one have come."""

    name: str
    model: str
    hz: float | None
    profile: bool


def measure(
    model: Path | None, network: str | None, width: int | None, threads: int | None, clouds: int
) -> dict[str, Any]:
    """Measure with the shipped Fast DDS profile and without: a model or network at 10 Hz; by default two networks.

    clouds: how many are published in each case (a quarter at a network's own pace). Raises UserError where there is no
    ROS, OperationError where the node does not run.
    """
    for package in ("rclpy", "sensor_msgs", "diagnostic_msgs"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"there is no {package}: source a ROS 2 installation, or pip install 'sqsegv3_ros[ros]'")
    with leaving_on_sigterm(), tempfile.TemporaryDirectory(prefix="sqsegv3_benchmark_") as folder:
        scan = Path(folder) / "scan.npy"
        np.save(scan, made_up_scan())
        rates: dict[tuple[str, str], float | None] = {}
        if model is not None:
            rates[model.stem, str(model)] = SENSOR_HZ
        else:
            for name, hz in ((network, SENSOR_HZ),) if network else (("3/16", SENSOR_HZ), ("21", None)):
                path = Path(folder) / f"{str(name).replace('/', '_')}.pt"
                with Child("maker", {}) as maker:
                    maker.ask("run", path=str(path), network=name, height=64, width=width or WIDTH)
                rates[f"random {name}, 64 x {width or WIDTH}", str(path)] = hz
        cases = [Case(*key, hz, profile) for key, hz in rates.items() for profile in (True, False)]
        return {"cases": [_measure(case, str(scan), threads, clouds) for case in cases]}


def _measure(case: Case, scan: str, threads: int | None, clouds: int) -> dict[str, Any]:
    environment = _environment(case.profile)
    with (
        _running_node(case.model, threads, environment) as node,
        Child("peer", {"role": "publisher", "scan": scan}, environment) as publisher,
        Child("peer", {"role": "receiver"}, environment) as receiver,
    ):
        ear = _Ear(receiver)
        _until(lambda: publisher.ask("connected")["connected"] and ear.ask("connected")["connected"], node)
        time.sleep(1.0)  # the node hears of its subscriber a little later
        idle_cpu_percent = _cpu_percent(node.pid, _IDLE_S)
        _one_by_one(publisher, ear, 2)
        count = clouds if case.hz else max(1, clouds // 4)
        arrivals = _at_rate(publisher, ear, count, case.hz) if case.hz else _one_by_one(publisher, ear, count)
        time.sleep(1.5)  # the diagnostics come once a second
        said = ear.ask("stages")["diagnostics"]
    latencies = [arrival["latency_ms"] for arrival in arrivals]
    if not latencies:
        return {**case.__dict__, "published": count, "labelled": 0, "idle_cpu_percent": idle_cpu_percent}
    return {
        **case.__dict__,
        "published": count,
        "labelled": len(arrivals),
        "latency_ms": {
            "p50": float(np.median(latencies)),
            "p95": float(np.percentile(latencies, 95)),
            "max": max(latencies),
        },
        "in_node_ms": _p50(said, "latency"),
        "stages_ms": {stage: _p50(said, stage) for stage in STAGES},
        "idle_cpu_percent": idle_cpu_percent,
    }


def _environment(profile: bool) -> dict[str, str]:
    """What node and peers get: nothing leaves the machine, no other node is heard."""
    environment = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(random.SystemRandom().choice(_DOMAINS)),
        **dict.fromkeys(PROFILE_VARIABLES, ""),
    }
    if profile and not use_profile(environment):
        raise OperationError("the Fast DDS profile config/fastdds.xml is not installed with this package")
    return environment


@contextmanager
def _running_node(model: str, threads: int | None, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-m", "sqsegv3_ros.node", "--ros-args", "--log-level", "warn"]
    command += ["-p", f"model:={model}", "-p", f"threads:={threads or 0}"]
    node = subprocess.Popen(command, env=child_environment(environment), text=True)
    try:
        yield node
    finally:
        try:
            node.send_signal(signal.SIGINT)
            node.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where a second signal ends the waiting
            node.kill()
            node.wait()


class _Ear:
    """The receiving peer: what it says unasked is kept apart from its answers."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.arrivals: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OperationError, ValueError):  # until the child ends
            while True:
                said = self._child.answer()
                (self.arrivals if "latency_ms" in said else self._answers).put(said)

    def ask(self, do: str) -> dict[str, Any]:
        self._child.tell(do)
        return self._answers.get(timeout=30)


def _one_by_one(publisher: Child, ear: _Ear, count: int) -> list[dict[str, Any]]:
    arrivals = []
    for _ in range(count):
        publisher.ask("publish")
        with contextlib.suppress(queue.Empty):
            arrivals.append(ear.arrivals.get(timeout=_CLOUD_S))
    return arrivals


def _at_rate(publisher: Child, ear: _Ear, count: int, hz: float) -> list[dict[str, Any]]:
    begin = time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, begin + i / hz - time.monotonic()))
        publisher.ask("publish")
    arrivals: list[dict[str, Any]] = []
    with contextlib.suppress(queue.Empty):
        while len(arrivals) < count:
            arrivals.append(ear.arrivals.get(timeout=5.0))
    return arrivals


def _until(condition: Callable[[], bool], node: subprocess.Popen[str]) -> None:
    end = time.monotonic() + _START_S
    while not condition():
        if node.poll() is not None:
            raise OperationError(f"the node ended with code {node.returncode}")
        if time.monotonic() > end:
            raise OperationError(f"node, publisher and receiver have not found each other within {_START_S:.0f} s")
        time.sleep(0.1)


def _cpu_percent(pid: int, seconds: float) -> float:
    """CPU time of a process, of one core, while nothing happens."""
    before = _cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (_cpu_seconds(pid) - before) / seconds


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _p50(said: Mapping[str, str], name: str) -> float:
    return float(said.get(f"{name} p50/p95/max (ms)", "nan").partition("/")[0])


def text(result: Mapping[str, Any]) -> str:
    """A table of the cases, latencies from publication to receipt, and one of the medians by stage."""
    cases = result["cases"]
    latencies, stages = [], []
    for case in cases:
        name = [case["name"], f"{case['hz']:g} Hz" if case["hz"] else "own", "yes" if case["profile"] else "no"]
        counts = [f"{case['labelled']}/{case['published']}"]
        idle = f"{case['idle_cpu_percent']:.1f}"
        if not case["labelled"]:
            latencies.append([*name, *counts, "", "", "", "", "", idle])
            continue
        latency = [case["latency_ms"][key] for key in ("p50", "p95", "max")]
        inside = case["in_node_ms"]
        latencies.append([*name, *counts, *(f"{t:.0f}" for t in (*latency, inside, latency[0] - inside)), idle])
        stages.append([*name, *(f"{case['stages_ms'][stage]:.1f}" for stage in STAGES)])
    what = ["network", "clouds", "profile"]
    header = [*what, "labelled", "p50 ms", "p95 ms", "max ms", "in the node", "on the way", "idle CPU %"]
    return "\n\n".join(
        [
            "From the publication of a cloud to the receipt of the labelled one in another process:",
            table(header, latencies),
            "Medians in the node, by stage, ms:",
            table([*what, *STAGES], stages),
        ]
    )
