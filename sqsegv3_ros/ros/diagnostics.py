"""What the node knows about its own health: counts, rates and latencies go in, diagnostic statuses come out.

No ROS in it. Times are seconds of one monotonic clock; the callers may be different threads.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

WINDOW_S = 10.0
OK, WARN, ERROR = 0, 1, 2  # diagnostic_msgs/DiagnosticStatus


@dataclass
class Status:
    """One diagnostic status: its name, level, a sentence, and named values."""

    name: str
    level: int = OK
    message: str = ""
    values: dict[str, str] = field(default_factory=dict)

    def report(self, level: int, message: str) -> None:
        """Raise the level; the sentences of the worst one are kept."""
        if level > self.level:
            self.level, self.message = level, message
        elif level == self.level:
            self.message = f"{self.message}; {message}" if self.message else message


@dataclass(frozen=True)
class Limits:
    """When diagnostics complain: latency budget (ms), over budget for how long is an error (s), stale input (s)."""

    latency_budget_ms: float = 100.0
    late_error_after_s: float = 5.0
    stale_after_s: float = 1.0


class Monitor:
    """Collects what happens to the clouds from one activation of the node to the next."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._since = now
        self._received: deque[float] = deque()
        self._done: deque[tuple[float, float, Mapping[str, float]]] = deque()
        self._last_received: float | None = None
        self._late_since: float | None = None
        self._in_work_since: float | None = None
        self._last_rejection: tuple[float, str] | None = None
        self._last_failure: tuple[float, str] | None = None
        self._input_warnings: tuple[str, ...] = ()
        self._rejected: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def received(self, now: float) -> None:
        """A cloud has arrived."""
        with self._lock:
            self._counts["received"] += 1
            self._last_received = now
            self._received.append(now)
            _forget(self._received, now)

    def superseded(self, count: int = 1) -> None:
        """A cloud was not looked at, because a newer one came while the last was in work."""
        with self._lock:
            self._counts["superseded"] += count

    def lost(self, count: int) -> None:
        """Clouds were published that never arrived."""
        with self._lock:
            self._counts["lost on the way"] += count

    def started(self, now: float) -> None:
        """Work on a cloud has begun."""
        with self._lock:
            self._in_work_since = now

    def finished(self) -> None:
        """Work on a cloud has ended, however."""
        with self._lock:
            self._in_work_since = None

    def unwanted(self) -> None:
        """A cloud was not labelled, because nobody subscribes to any output."""
        with self._lock:
            self._counts["not labelled without subscribers"] += 1
            self._late_since = None

    def rejected(self, now: float, reason: str, message: str) -> None:
        """A cloud could not be used."""
        with self._lock:
            self._rejected[reason] += 1
            self._last_rejection = (now, message)

    def failed(self, now: float, message: str) -> None:
        """Labelling a cloud failed, though there was nothing wrong with it."""
        with self._lock:
            self._counts["failed"] += 1
            self._last_failure = (now, message)

    def labelled(self, now: float, latency_ms: float, stages_ms: Mapping[str, float]) -> None:
        """A cloud has been labelled and published, so long after its receipt."""
        with self._lock:
            self._counts["labelled"] += 1
            self._last_failure = None
            if self._done and now - self._done[-1][0] > WINDOW_S:  # what was late before a break is history
                self._late_since = None
            self._done.append((now, latency_ms, stages_ms))
            while self._done and self._done[0][0] < now - WINDOW_S:
                self._done.popleft()
            if latency_ms <= self.limits.latency_budget_ms:
                self._late_since = None
            elif self._late_since is None:
                self._late_since = now

    def warning(self, input_warnings: tuple[str, ...]) -> None:
        """What about the clouds does not fit what the model has learned."""
        with self._lock:
            self._input_warnings = input_warnings

    def statuses(self, now: float) -> list[Status]:
        """The state of the input and of the processing at this moment."""
        with self._lock:
            _forget(self._received, now)
            return [self._input_status(now), self._processing_status(now)]

    def _input_status(self, now: float) -> Status:
        status = Status("input")
        silent_s = now - (self._since if self._last_received is None else self._last_received)
        if self._last_received is None:
            if silent_s > self.limits.stale_after_s:
                status.report(WARN, f"no cloud has come for {silent_s:.1f} s since activation")
        elif silent_s > self.limits.stale_after_s:
            status.report(ERROR, f"input is stale: the last cloud came {silent_s:.1f} s ago")
        if self._last_rejection and now - self._last_rejection[0] < WINDOW_S:
            # every cloud rejected: the node is blind; one now and then: it is not
            blind = not self._done or self._done[-1][0] < self._last_rejection[0] - self.limits.stale_after_s
            status.report(ERROR if blind else WARN, f"clouds are rejected: {self._last_rejection[1]}")
        for warning in self._input_warnings:
            status.report(WARN, warning)
        status.message = status.message or "receiving clouds"
        status.values = {
            "rate (Hz)": f"{_rate(self._received, now, self._since):.2f}",
            "received": str(self._counts["received"]),
            "superseded by a newer cloud": str(self._counts["superseded"]),
            "lost on the way": str(self._counts["lost on the way"]),
            "rejected": str(sum(self._rejected.values())),
            **{f"rejected: {reason}": str(count) for reason, count in sorted(self._rejected.items())},
        }
        return status

    def _processing_status(self, now: float) -> Status:
        status = Status("processing")
        budget = self.limits.latency_budget_ms
        done = [entry for entry in self._done if entry[0] >= now - WINDOW_S]
        if self._last_failure and now - self._last_failure[0] < WINDOW_S:
            status.report(ERROR, f"labelling failed: {self._last_failure[1]}")
        if self._late_since is not None and done:
            late_s = now - self._late_since
            level = ERROR if late_s >= self.limits.late_error_after_s else WARN
            status.report(level, f"latency {done[-1][1]:.0f} ms is over the budget of {budget:g} ms for {late_s:.1f} s")
        in_work_s = 0.0 if self._in_work_since is None else now - self._in_work_since
        if in_work_s > self.limits.late_error_after_s + budget / 1e3:  # a device that hangs finishes nothing late
            status.report(ERROR, f"the cloud in work has been so for {in_work_s:.1f} s")
        status.message = status.message or ("labelling clouds" if done else "idle")
        status.values = {
            "rate (Hz)": f"{_rate([entry[0] for entry in done], now, self._since):.2f}",
            "labelled": str(self._counts["labelled"]),
            "failed": str(self._counts["failed"]),
            "not labelled without subscribers": str(self._counts["not labelled without subscribers"]),
            "latency budget (ms)": f"{budget:g}",
        }
        if done:
            status.values.update(_percentiles("latency", [latency for _, latency, _ in done]))
            for stage in done[-1][2]:
                status.values.update(_percentiles(stage, [stages[stage] for _, _, stages in done if stage in stages]))
        return status


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] < now - WINDOW_S:
        times.popleft()


def _rate(times: deque[float] | list[float], now: float, since: float) -> float:
    return len(times) / min(WINDOW_S, max(now - since, 1e-3))


def _percentiles(name: str, values_ms: list[float]) -> dict[str, str]:
    p50, p95 = np.percentile(values_ms, [50, 95])
    return {f"{name} p50/p95/max (ms)": f"{p50:.1f} / {p95:.1f} / {max(values_ms):.1f}"}
