"""Ground truth and labelled clouds come in as they arrive; a evaluated, matched and timed evaluation goes out.

No ROS in it. Clouds are matched by their stamp; times are seconds of one monotonic clock.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.evaluator import BorderConfig, Evaluator
from sqsegv3_ros.pointcloud2 import CloudSettings, PointCloudLike, decode, read_field

_XYZ = CloudSettings(intensity_field="", ring_field="")


@dataclass(frozen=True)
class Pair:
    """A ground truth and the output with the same stamp, as they came in, and the time between their receipts."""

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
    """Pairs ground truths with outputs by stamp; remembers at most `capacity` of either that have no partner yet.

    Outputs of scans from before the first ground truth are not counted: whoever evaluates came too late for them.
    Threads may share it.
    """

    def __init__(self, capacity: int = 32) -> None:
        if capacity < 1:
            raise UserError(f"the number of remembered clouds must be at least 1, found {capacity}")
        self.capacity = capacity
        self.scans_in = 0
        self.scans_out = 0
        self._lock = threading.Lock()
        self._inputs: OrderedDict[int, _Waiting] = OrderedDict()
        self._outputs: OrderedDict[int, _Waiting] = OrderedDict()
        self._first_ns: int | None = None
        self._last_s: float | None = None
        self._output_times: tuple[float, float] | None = None

    def input(self, stamp_ns: int, cloud: Any, received_s: float) -> Pair | None:
        """A ground truth came in. Returns the pair if its output is here already."""
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
            return Pair(stamp_ns, cloud, output.cloud, 0.0)  # the output overtook it on the way here

    def output(self, stamp_ns: int, cloud: Any, received_s: float) -> Pair | None:
        """An output came in. Returns the pair if its ground truth is here."""
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
        waiting.pop(stamp_ns, None)  # a recording that begins again: the older one of that stamp is lost
        waiting[stamp_ns] = entry
        if len(waiting) > self.capacity:
            waiting.popitem(last=False)

    def _count_output(self, received_s: float) -> None:
        self.scans_out += 1
        first = received_s if self._output_times is None else self._output_times[0]
        self._output_times = first, received_s

    @property
    def pending(self) -> int:
        """How many ground truths still wait for their output."""
        with self._lock:
            return len(self._inputs)

    @property
    def quiet_since_s(self) -> float | None:
        """When the last cloud that counts came, ground truth or output; None before the first."""
        return self._last_s

    @property
    def rate_hz(self) -> float | None:
        """Outputs a second between the first and the last; None before the second."""
        if self._output_times is None or self.scans_out < 2:
            return None
        first, last = self._output_times
        return (self.scans_out - 1) / max(last - first, 1e-9)


class LiveEvaluation:
    """Evaluates pairs of clouds and sums up: what `sqsegv3 evaluate` says, and what was lost and how long it took.

    expected: how many scans there should be, where that is known. Raises UserError for clouds that cannot be evaluated.
    """

    def __init__(
        self,
        labels: LabelSet,
        matcher: Matcher,
        border: BorderConfig | None = None,
        expected: int | None = None,
        ground_truth_field: str = "ground_truth",
        label_field: str = "label",
    ) -> None:
        self.matcher = matcher
        self.evaluator = Evaluator(labels, border)
        self._fields = ground_truth_field, label_field
        self._expected = expected
        self._latencies_ms: list[float] = []

    def add(self, pair: Pair, ground_truth: PointCloudLike, output: PointCloudLike) -> None:
        """Evaluate the clouds of a pair (decoded meanwhile, if the pair holds them as bytes)."""
        name = f"{pair.stamp_ns // 10**9}.{pair.stamp_ns % 10**9:09d}"
        evaluate_clouds(self.evaluator, name, ground_truth, output, *self._fields)
        self._latencies_ms.append(pair.latency_ms)

    @property
    def evaluated(self) -> int:
        """How many scans were evaluated."""
        return len(self._latencies_ms)

    @property
    def lost(self) -> int:
        """How many scans came in, or should have, and were not evaluated."""
        return max(self.matcher.scans_in, self._expected or 0) - self.evaluated

    @property
    def complete(self) -> bool:
        """Whether there were scans, and each was evaluated, and no output came of a scan that was not seen."""
        return self.evaluated > 0 and self.lost == 0 and self.matcher.scans_out == self.evaluated

    def numbers(self) -> dict[str, Any]:
        """The live numbers: counts, latency percentiles (milliseconds), output rate. None where there is none yet."""
        matcher = self.matcher
        percentiles: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99"))
        if self._latencies_ms:
            values = np.percentile(self._latencies_ms, [50, 95, 99])
            percentiles = {name: float(value) for name, value in zip(percentiles, values, strict=True)}
        return {
            "scans_in": matcher.scans_in,
            "scans_out": matcher.scans_out,
            "scans_evaluated": self.evaluated,
            "scans_expected": self._expected,
            "lost": self.lost,
            "complete": self.complete,
            **{f"latency_{name}_ms": value for name, value in percentiles.items()},
            "rate_hz": matcher.rate_hz,
        }

    def brief(self) -> dict[str, Any]:
        """What is worth publishing while it runs: the live numbers and the scores so far."""
        matrix = self.evaluator.matrix
        scores = matrix.scores()
        names = {
            self.evaluator.labels.names[label]: float(scores.iou[label]) for label in self.evaluator.labels.evaluated
        }
        quality = {"miou": scores.miou, "miou_present": scores.miou_present, "accuracy": scores.accuracy}
        return {**self.numbers(), **quality, "iou": names}

    def summary(self) -> dict[str, Any]:
        """The whole evaluation: the keys of `Evaluator.summary`, the live numbers, `latency_ms` of every evaluated scan, and
        `live`, the numbers with titles, as `sqsegv3 report` shows them."""
        numbers = self.numbers()
        return {
            **self.evaluator.summary(),
            **numbers,
            "latency_ms": [round(value, 3) for value in self._latencies_ms],
            "live": dict(titled(numbers)),
        }


def titled(numbers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The live numbers that are known, with titles for people."""
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


def evaluate_clouds(
    evaluator: Evaluator,
    name: str,
    ground_truth: PointCloudLike,
    output: PointCloudLike,
    ground_truth_field: str,
    label_field: str,
) -> None:
    """Evaluate an output cloud by a ground-truth cloud with the same points in the same order.

    name: what messages and summary call the scan. Raises UserError where a field is missing, or the numbers of points
    or the labels do not fit.
    """
    try:
        truth = read_field(ground_truth, ground_truth_field)
        labels = read_field(output, label_field)
        points = decode(ground_truth, _XYZ).points
        for field, values in ((ground_truth_field, truth), (label_field, labels)):
            if values.ndim != 1 or values.dtype.kind not in "ui":
                raise UserError(f"field '{field}' holds {values.dtype}; expected one integer a point")
        if len(truth) != len(labels):
            raise UserError(f"{len(labels)} labels, but the ground truth has {len(truth)} points")
        evaluator.add(name, points, labels, truth)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(f"scan {name}") else f"scan {name}: {text}") from error


def stamp_of(cdr: bytes) -> int:
    """The stamp (nanoseconds) of a serialised message that begins with a header."""
    order = "<" if cdr[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", cdr, 4)
    return int(seconds) * 10**9 + int(nanoseconds)
