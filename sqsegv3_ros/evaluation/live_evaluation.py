# SPDX-License-Identifier: Apache-2.0
"""Live evaluation of labelled clouds as they arrive: matching by stamp, scores, losses and latency.

Independent of ROS. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqsegv3_ros.data.label_map import FoldedLabels
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import require
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.pointcloud2 import PointCloudLike, format_stamp


@dataclass(frozen=True)
class Pair:
    """A cloud with ground truth and the output with the same stamp.

    Attributes:
        stamp_ns: Their stamp.
        ground_truth: Cloud with ground truth, as received.
        output: Labelled cloud, as received.
        latency_ms: Time between their receipts.
    """

    stamp_ns: int
    ground_truth: Any
    output: Any
    latency_ms: float


@dataclass(frozen=True)
class _Waiting:
    cloud: Any
    received_s: float
    counted: bool = True


class Matcher:
    """Pairs clouds with ground truth and outputs by stamp. Thread-safe.

    Outputs older than the first ground truth are not counted: their scans were published before the evaluation began.

    Args:
        capacity: Largest number of clouds of either kind that wait for their partner; the oldest is dropped first.

    Raises:
        UserError: The capacity is less than 1.
    """

    def __init__(self, capacity: int = 32) -> None:
        require(capacity >= 1, "capacity for unmatched clouds", "at least 1", capacity)
        self.capacity = capacity
        self.scans_in = 0
        self.scans_out = 0
        self._lock = threading.Lock()
        self._inputs: OrderedDict[int, _Waiting] = OrderedDict()
        self._outputs: OrderedDict[int, _Waiting] = OrderedDict()
        self._first_ns: int | None = None
        self._last_s: float | None = None
        self._output_times: tuple[float, float] | None = None

    def add_ground_truth(self, stamp_ns: int, cloud: Any, received_s: float) -> Pair | None:
        """Receive a cloud with ground truth. Returns the pair if its output is already here."""
        with self._lock:
            self.scans_in += 1
            self._last_s = received_s
            self._first_ns = stamp_ns if self._first_ns is None else min(stamp_ns, self._first_ns)
            output = self._outputs.pop(stamp_ns, None)
            if output is None:
                self._remember(self._inputs, stamp_ns, _Waiting(cloud, received_s))
                return None
            if not output.counted:
                self._count_output(output.received_s)
            return Pair(stamp_ns, cloud, output.cloud, 0.0)  # the output overtook it in transport

    def add_output(self, stamp_ns: int, cloud: Any, received_s: float) -> Pair | None:
        """Receive an output. Returns the pair if its ground truth is here."""
        with self._lock:
            truth = self._inputs.pop(stamp_ns, None)
            counts = self._first_ns is not None and stamp_ns >= self._first_ns
            if counts:
                self._last_s = received_s
                self._count_output(received_s)
            if truth is None:
                self._remember(self._outputs, stamp_ns, _Waiting(cloud, received_s, counts))
                return None
            return Pair(stamp_ns, truth.cloud, cloud, 1e3 * (received_s - truth.received_s))

    def _remember(self, waiting: OrderedDict[int, _Waiting], stamp_ns: int, entry: _Waiting) -> None:
        waiting.pop(stamp_ns, None)  # a restarted recording: the older cloud of that stamp is lost
        waiting[stamp_ns] = entry
        if len(waiting) > self.capacity:
            waiting.popitem(last=False)

    def _count_output(self, received_s: float) -> None:
        self.scans_out += 1
        first = received_s if self._output_times is None else self._output_times[0]
        self._output_times = first, received_s

    @property
    def pending(self) -> int:
        """Number of clouds with ground truth that wait for their output."""
        with self._lock:
            return len(self._inputs)

    @property
    def last_cloud_s(self) -> float | None:
        """Time of the last counted cloud, ground truth or output; None before the first."""
        return self._last_s

    @property
    def rate_hz(self) -> float | None:
        """Outputs per second between the first and the last; None before the second."""
        if self._output_times is None or self.scans_out < 2:
            return None
        first, last = self._output_times
        return (self.scans_out - 1) / max(last - first, 1e-9)


class LiveEvaluation:
    """Scores, losses and latency of matched clouds.

    Args:
        labels: Label set of the labels and, without a label map, of the ground truth.
        matcher: Source of the pairs; its counters tell what was lost.
        border: Also evaluate the points near borders between classes.
        expected: Number of scans that should arrive, if known.
        ground_truth_field: Field of the true classes.
        label_field: Field of the labels.
        label_map: Folds the ground truth into the classes of the labels.
    """

    def __init__(
        self,
        labels: LabelSet,
        matcher: Matcher,
        border: BorderConfig | None = None,
        expected: int | None = None,
        ground_truth_field: str = "ground_truth",
        label_field: str = "label",
        label_map: FoldedLabels | None = None,
    ) -> None:
        self.matcher = matcher
        self.evaluator = Evaluator(labels, border)
        self._fields = ground_truth_field, label_field
        self._label_map = label_map
        self._expected = expected
        self._latencies_ms: list[float] = []

    def add(self, pair: Pair, ground_truth: PointCloudLike, output: PointCloudLike) -> None:
        """Evaluate the deserialized clouds of a pair.

        Raises:
            UserError: The clouds do not fit each other or the label set; the message names the scan.
        """
        name = format_stamp(pair.stamp_ns)
        self.evaluator.add_clouds(name, ground_truth, output, *self._fields, self._label_map, output_is_folded=True)
        self._latencies_ms.append(pair.latency_ms)

    @property
    def evaluated(self) -> int:
        """Number of evaluated scans."""
        return len(self._latencies_ms)

    @property
    def lost(self) -> int:
        """Number of scans that arrived, or should have, and were not evaluated."""
        return max(self.matcher.scans_in, self._expected or 0) - self.evaluated

    @property
    def complete(self) -> bool:
        """Whether there were scans, each was evaluated, and every output belongs to one of them."""
        return self.evaluated > 0 and self.lost == 0 and self.matcher.scans_out == self.evaluated

    def numbers(self) -> dict[str, Any]:
        """Get counts, latency percentiles (milliseconds) and output rate; None for what is not known yet."""
        matcher = self.matcher
        latencies = np.percentile(self._latencies_ms, [50, 95, 99]).tolist() if self._latencies_ms else [None] * 3
        return {
            "scans_in": matcher.scans_in,
            "scans_out": matcher.scans_out,
            "scans_evaluated": self.evaluated,
            "scans_expected": self._expected,
            "lost": self.lost,
            "complete": self.complete,
            **dict(zip(("latency_p50_ms", "latency_p95_ms", "latency_p99_ms"), latencies, strict=True)),
            "rate_hz": matcher.rate_hz,
        }

    def progress(self) -> dict[str, Any]:
        """Get the live numbers and the scores so far, to publish while the evaluation runs."""
        matrix = self.evaluator.matrix
        return {**self.numbers(), **matrix.scores().to_dict(matrix.labels)}

    def summary(self) -> dict[str, Any]:
        """Summarize the evaluation.

        Returns:
            The keys of `Evaluator.summary`, the live numbers, `latency_ms` of every evaluated scan, and `live`, the
            numbers with titles for `sqsegv3 report`.
        """
        numbers = self.numbers()
        return {
            **self.evaluator.summary(),
            **numbers,
            "latency_ms": [round(value, 3) for value in self._latencies_ms],
            "live": dict(titled_numbers(numbers)),
        }


def titled_numbers(numbers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the live numbers that are known, with titles."""
    titles = {
        "scans_in": "scans in",
        "scans_out": "scans out",
        "lost": "scans lost",
        "latency_p50_ms": "latency p50 (ms)",
        "latency_p95_ms": "latency p95 (ms)",
        "latency_p99_ms": "latency p99 (ms)",
        "rate_hz": "rate (Hz)",
    }
    for key, title in titles.items():
        value = numbers[key]
        if value is not None:
            yield title, round(value, 3) if isinstance(value, float) else value
