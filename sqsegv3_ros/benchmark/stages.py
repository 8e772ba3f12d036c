# SPDX-License-Identifier: Apache-2.0
"""The stages of a scan, statistics of their times, memory, and the CPU use of other processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TABLE_STAGES = ("decode", "project", "network", "restore", "knn", "encode", "input_checks")
"""The stages in tables and figures, which count upload to project and download to restore."""
COMPARED = TABLE_STAGES[1:5]
"""The stages that the reference implementation has, too."""

IDLE_CORES = 0.05
"""Share of the threads' cores that other processes may use before the times count as upper bounds."""


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` returns, and its `wall_ms` and `cpu_s`, all threads counted."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    wall_ms = 1e3 * (time.perf_counter() - wall)
    return result, {"wall_ms": wall_ms, "cpu_s": time.process_time() - cpu}


def distribution(values: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """Minimum, median, 95th and 99th percentile, and maximum; NaN for no values."""
    names = ("min", "median", "p95", "p99", "max")
    if not np.size(values):
        return dict.fromkeys(names, math.nan)
    return dict(zip(names, np.percentile(values, (0, 50, 95, 99, 100)).tolist(), strict=True))


def median(values: Sequence[float]) -> float:
    """The median; NaN for no values."""
    return distribution(values)["median"]


def stage_statistics(
    samples: Sequence[Mapping[str, Any]], stages: Sequence[str] = TABLE_STAGES
) -> dict[str, dict[str, float]]:
    """min_ms, median_ms and p95_ms of each stage and of the whole scan, `total`."""
    columns = {stage: [sample["stages"][stage] for sample in samples] for stage in stages}
    columns["total"] = [sample["wall_ms"] for sample in samples]
    statistics = {name: distribution(values) for name, values in columns.items()}
    return {name: {f"{key}_ms": s[key] for key in ("min", "median", "p95")} for name, s in statistics.items()}


def peak_rss_mb() -> float:
    """Peak resident memory of this process, in 10**6 bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1.024e-3 * float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):  # no Linux
        import resource

        return 1.024e-3 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class OtherWork:
    """Measures the cores that other processes used while it was open.

    cores: their CPU seconds a second, time stolen by the hypervisor included; NaN if the system does not count it.
        Child processes must have ended, or they count as others.
    """

    cores = math.nan

    def __enter__(self) -> OtherWork:
        self._began, self._before = time.monotonic(), _others_cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores = max(0.0, (_others_cpu_s() - self._before) / (time.monotonic() - self._began))

    def busy(self, threads: int, device: str) -> str | None:
        """A warning if other processes left fewer free cores than the measurement has threads; else None."""
        cores = os.cpu_count() or threads
        wanted = min(threads, cores)
        if device != "cpu" or not cores - self.cores < (1 - IDLE_CORES) * wanted:
            return None
        return (
            f"the machine was busy: other processes used {self.cores:.2f} of {cores} cores; times are upper bounds, "
            "CPU seconds hold"
        )


def _others_cpu_s() -> float:
    """CPU seconds since the system started, without those of this process and of its children that have ended."""
    try:
        counts = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return math.nan
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(count) for count in counts)
    own = os.times()
    everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return everyone - (own.user + own.system + own.children_user + own.children_system)
