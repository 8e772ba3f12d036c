# SPDX-License-Identifier: Apache-2.0
"""The node's diagnostics: counts, rates and latencies of the clouds, and the statuses derived from them.

Times are seconds of one monotonic clock. The methods may be called from different threads.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

WINDOW_S = 10.0
OK, WARN, ERROR = 0, 1, 2  # diagnostic_msgs/DiagnosticStatus


@dataclass
class Status:
    """One diagnostic status.

    Attributes:
        name: Name below the node's name.
        level: OK, WARN or ERROR.
        message: One or more sentences, joined by semicolons.
        values: One number or name a key; keys are in snake_case and end in their unit. docs/diagnostics.md lists them.
    """

    name: str
    level: int = OK
    message: str = ""
    values: dict[str, str] = field(default_factory=dict)

    def add(self, level: int, message: str) -> None:
        """Raise the level if needed; only the messages of the highest level are kept."""
        if level > self.level:
            self.level, self.message = level, message
        elif level == self.level:
            self.message = f"{self.message}; {message}" if self.message else message


@dataclass(frozen=True)
class Limits:
    """Limits above which diagnostics warn.

    Attributes:
        latency_budget_ms: Latency from receipt to publication.
        late_error_after_s: Time over the latency budget after which the warning becomes an error.
        stale_after_s: Time without a cloud after which the input is stale.
    """

    latency_budget_ms: float = 100.0
    late_error_after_s: float = 5.0
    stale_after_s: float = 1.0


class NodeDiagnostics:
    """Record what happens to the clouds during one activation of the node.

    Args:
        limits: Limits of the statuses; may be replaced at any time.
        now: Time of the activation.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._activated = now
        self._received: deque[float] = deque()
        self._labelled: deque[tuple[float, float, Mapping[str, float]]] = deque()  # time, latency, stages
        self._last_received: float | None = None
        self._late_since: float | None = None
        self._processing_since: float | None = None
        self._last_rejection: tuple[float, str] | None = None
        self._last_failure: tuple[float, str] | None = None
        self._input_warnings: tuple[str, ...] = ()
        self._missing_publisher = ""
        self._rejected: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def received(self, now: float) -> None:
        """Record the receipt of a cloud."""
        with self._lock:
            self._counts["received"] += 1
            self._last_received = now
            self._received.append(now)
            _remove_old(self._received, now)

    def dropped_newer_available(self) -> None:
        """Count a waiting cloud that a newer one has replaced."""
        with self._lock:
            self._counts["dropped_newer_available"] += 1

    def dropped_in_transport(self, count: int) -> None:
        """Count clouds that were published but not received."""
        with self._lock:
            self._counts["dropped_in_transport"] += count

    def skipped_no_subscribers(self) -> None:
        """Count a cloud that was not labelled because no output has a subscriber."""
        with self._lock:
            self._counts["skipped_no_subscribers"] += 1
            self._late_since = None

    def started(self, now: float) -> None:
        """Record the start of the processing of a cloud."""
        with self._lock:
            self._processing_since = now

    def finished(self) -> None:
        """Record the end of the processing of a cloud, whatever the result."""
        with self._lock:
            self._processing_since = None

    def rejected(self, now: float, reason: str, message: str) -> None:
        """Count an unusable cloud by its reason."""
        with self._lock:
            self._rejected[reason] += 1
            self._last_rejection = (now, message)

    def failed(self, now: float, message: str) -> None:
        """Count a usable cloud whose labelling failed."""
        with self._lock:
            self._counts["failed"] += 1
            self._last_failure = (now, message)

    def callback_failed(self, now: float, message: str) -> None:
        """Record a failure that concerns no cloud."""
        with self._lock:
            self._last_failure = (now, message)

    def labelled(self, now: float, latency_ms: float, stages_ms: Mapping[str, float]) -> None:
        """Record a published result with its latency since receipt and the time of each stage."""
        with self._lock:
            self._counts["labelled"] += 1
            self._last_failure = None
            if self._labelled and now - self._labelled[-1][0] > WINDOW_S:  # lateness ends with a break of the input
                self._late_since = None
            self._labelled.append((now, latency_ms, stages_ms))
            while self._labelled[0][0] < now - WINDOW_S:
                self._labelled.popleft()
            if latency_ms <= self.limits.latency_budget_ms:
                self._late_since = None
            elif self._late_since is None:
                self._late_since = now

    def set_input_warnings(self, input_warnings: tuple[str, ...]) -> None:
        """Replace the warnings of the input checks."""
        with self._lock:
            self._input_warnings = input_warnings

    def set_missing_publisher(self, message: str) -> None:
        """Replace the message about an input topic that nobody publishes; empty: it has a publisher."""
        with self._lock:
            self._missing_publisher = message

    def statuses(self, now: float) -> list[Status]:
        """Return the current statuses of input and processing."""
        with self._lock:
            _remove_old(self._received, now)
            return [self._input_status(now), self._processing_status(now)]

    def pace(self, now: float) -> tuple[float, float] | None:
        """Return the median time to label a cloud and the mean time between clouds, milliseconds.

        Returns:
            The two times over the last `WINDOW_S`; None before clouds have arrived for half of that.
        """
        with self._lock:
            _remove_old(self._received, now)
            times_ms = [sum(stages.values()) for time, _, stages in self._labelled if time >= now - WINDOW_S]
            if len(times_ms) < 3 or len(self._received) < 3 or self._received[-1] - self._received[0] < WINDOW_S / 2:
                return None
            period_s = (self._received[-1] - self._received[0]) / (len(self._received) - 1)
            return float(np.median(times_ms)), 1e3 * period_s

    def _input_status(self, now: float) -> Status:
        status = Status("input")
        silent_s = now - (self._activated if self._last_received is None else self._last_received)
        if silent_s > self.limits.stale_after_s:
            if self._last_received is None:
                status.add(WARN, f"no cloud received in the {silent_s:.1f} s since activation")
            else:
                status.add(ERROR, f"input is stale: last cloud received {silent_s:.1f} s ago")
            if self._missing_publisher:
                status.add(status.level, self._missing_publisher)
        if self._last_rejection and now - self._last_rejection[0] < WINDOW_S:
            # an error only if every recent cloud was rejected
            last_labelled = self._labelled[-1][0] if self._labelled else -np.inf
            all_rejected = last_labelled < self._last_rejection[0] - self.limits.stale_after_s
            status.add(ERROR if all_rejected else WARN, f"clouds are rejected: {self._last_rejection[1]}")
        for warning in self._input_warnings:
            status.add(WARN, warning)
        status.message = status.message or "receiving clouds"
        status.values = {
            "rate_hz": f"{_rate(len(self._received), now - self._activated):.2f}",
            **{key: str(self._counts[key]) for key in ("received", "dropped_newer_available", "dropped_in_transport")},
            "rejected": str(sum(self._rejected.values())),
            **{f"rejected_{reason}": str(count) for reason, count in sorted(self._rejected.items())},
        }
        return status

    def _processing_status(self, now: float) -> Status:
        status = Status("processing")
        budget_ms = self.limits.latency_budget_ms
        recent = [entry for entry in self._labelled if entry[0] >= now - WINDOW_S]
        if self._last_failure and now - self._last_failure[0] < WINDOW_S:
            status.add(ERROR, self._last_failure[1])
        if self._late_since is not None and recent:
            late_s = now - self._late_since
            level = ERROR if late_s >= self.limits.late_error_after_s else WARN
            status.add(
                level, f"latency {recent[-1][1]:.0f} ms exceeds the budget of {budget_ms:g} ms for {late_s:.1f} s"
            )
        processing_s = 0.0 if self._processing_since is None else now - self._processing_since
        if processing_s > self.limits.late_error_after_s + budget_ms / 1e3:  # a hanging device never reports lateness
            status.add(ERROR, f"processing stuck for {processing_s:.1f} s")
        status.message = status.message or ("labelling clouds" if recent else "idle")
        status.values = {
            "rate_hz": f"{_rate(len(recent), now - self._activated):.2f}",
            **{key: str(self._counts[key]) for key in ("labelled", "failed", "skipped_no_subscribers")},
            "latency_budget_ms": f"{budget_ms:g}",
        }
        if recent:
            status.values.update(_percentiles("latency", [latency for _, latency, _ in recent]))
            for stage in recent[-1][2]:
                status.values.update(_percentiles(stage, [times[stage] for _, _, times in recent if stage in times]))
        return status


def to_message(statuses: Iterable[Status], node_name: str, hardware_id: str, stamp: Any) -> DiagnosticArray:
    """Convert statuses to a diagnostic_msgs/DiagnosticArray.

    Args:
        statuses: The statuses.
        node_name: Fully qualified, so that the statuses of nodes in several namespaces differ.
        hardware_id: Name of the model, or empty.
        stamp: builtin_interfaces/Time of the message.
    """
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    array = DiagnosticArray()
    array.header.stamp = stamp
    array.status = [
        DiagnosticStatus(
            level=bytes([status.level]),
            name=f"{node_name}: {status.name}",
            message=status.message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
        )
        for status in statuses
    ]
    return array


def _remove_old(times: deque[float], now: float) -> None:
    while times and times[0] < now - WINDOW_S:
        times.popleft()


def _rate(count: int, active_s: float) -> float:
    return count / min(WINDOW_S, max(active_s, 1e-3))


def _percentiles(name: str, values_ms: list[float]) -> dict[str, str]:
    p50, p95 = np.percentile(values_ms, [50, 95])
    numbers = {"p50": p50, "p95": p95, "max": max(values_ms)}
    return {f"{name}_{which}_ms": f"{value:.1f}" for which, value in numbers.items()}
