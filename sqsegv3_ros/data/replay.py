# SPDX-License-Identifier: Apache-2.0
"""Replay of bags and SemanticKITTI sequences at their recorded rate, independent of ROS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sqsegv3_ros.data.ros2_messages import FRAME, TOPIC
from sqsegv3_ros.data.rosbag_reader import BagReader, is_bag
from sqsegv3_ros.data.sequences import RATE_HZ, read_sequence, read_structured_points
from sqsegv3_ros.errors import UserError, require

LATE_S = 0.01  # clouds that are published later than this after they are due count as late


@dataclass(frozen=True, eq=False)
class TimedCloud:
    """A cloud to publish, either serialized or as points.

    Attributes:
        time_ns: Time of recording, nanoseconds; the stamp of a cloud of points.
        cdr: The serialized message.
        points: Structured points (see `ros2_messages`).
        frame: Frame of the points.
    """

    time_ns: int
    cdr: bytes | None = None
    points: npt.NDArray[Any] | None = None
    frame: str = FRAME


@dataclass(frozen=True, eq=False)
class Source:
    """A recording that can be replayed repeatedly: a sized iterable of its clouds.

    Attributes:
        topic: Topic of the recording.
        count: Number of clouds.
        read: Reads the clouds from the start.
    """

    topic: str
    count: int
    read: Callable[[], Iterator[TimedCloud]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[TimedCloud]:
        return self.read()


@contextmanager
def open_source(path: Path, topic: str | None, sequence: str | None, ground_truth: bool | None) -> Iterator[Source]:
    """Open a bag or a SemanticKITTI data set for replay.

    Args:
        path: Bag or SemanticKITTI data set.
        topic: Topic of a bag; None for the only one with clouds.
        sequence: Sequence of a data set; None for the only one.
        ground_truth: Whether a data set's clouds have the field ground_truth; None if every scan has labels.

    Yields:
        The source.

    Raises:
        UserError: The path is neither a bag nor a SemanticKITTI data set, an argument does not apply to it, it has no
            such clouds, or labels are missing that `ground_truth` requires.
    """
    if (path / "sequences").is_dir():
        if topic is not None:
            raise UserError(f"--topic selects a topic of a bag, but {path} is a SemanticKITTI data set")
        yield _sequence_source(path, sequence, ground_truth)
        return
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a bag or a SemanticKITTI data set")
    if path.is_dir() and not is_bag(path) and not any(path.iterdir()):
        raise UserError(f"folder {path} is empty; expected a bag, or a data set with sequences/NN/velodyne")
    if sequence is not None or ground_truth is not None:
        raise UserError(f"--sequence and --labels apply to SemanticKITTI data sets, but {path} is not one")
    with BagReader(path) as reader:
        cloud_topic = reader.cloud_topic(topic)

        def read() -> Iterator[TimedCloud]:
            for message in reader.messages(cloud_topic):
                yield TimedCloud(message.time_ns, cdr=reader.cdr(message))

        yield Source(cloud_topic, reader.count(cloud_topic), read)


def _sequence_source(root: Path, name: str | None, ground_truth: bool | None) -> Source:
    sequence = read_sequence(root, name)
    if ground_truth:
        missing = [scan.labels_path for scan in sequence.scans if not scan.labels_path.is_file()]
        if missing:
            raise UserError(
                f"labels {missing[0]} are missing ({len(missing)} of {len(sequence.scans)} scans have none)"
            )
    with_labels = sequence.labelled if ground_truth is None else ground_truth

    def read() -> Iterator[TimedCloud]:
        for scan, stamp_ns in zip(sequence.scans, sequence.stamps_ns, strict=True):
            yield TimedCloud(int(stamp_ns), points=read_structured_points(scan, ground_truth=with_labels))

    return Source(TOPIC, len(sequence.scans), read)


@dataclass
class Report:
    """Result of a replay.

    Attributes:
        total: Clouds to publish.
        published: Clouds published.
        late: Clouds published more than LATE_S after they were due.
        worst_s: Longest delay, seconds.
        started_s: Time of the first cloud, on the player's clock.
        ended_s: Time of the last cloud, on the player's clock.
        interrupted: Whether the replay was stopped.
    """

    total: int
    published: int = 0
    late: int = 0
    worst_s: float = 0.0
    started_s: float = math.nan
    ended_s: float = math.nan
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON types."""
        seconds = self.ended_s - self.started_s
        return {
            "total": self.total,
            "published": self.published,
            "late": self.late,
            "worst_ms": 1e3 * self.worst_s,
            "seconds": seconds if self.published else 0.0,
            "interrupted": self.interrupted,
        }

    def text(self, topic: str) -> str:
        """Format as one line for the terminal."""
        seconds = self.ended_s - self.started_s
        line = f"published {self.published} of {self.total} clouds on {topic}"
        if self.published > 1:
            line += f" in {seconds:.1f} s ({(self.published - 1) / max(seconds, 1e-9):.2f} Hz)"
        if self.late:
            line += f"; {self.late} were more than {1e3 * LATE_S:g} ms late, at most {1e3 * self.worst_s:.0f} ms"
        return line + ("; interrupted" if self.interrupted else "")


@dataclass
class Player:
    """Replays a source at its recorded rate.

    Attributes:
        publish: Called with each cloud when it is due.
        wait: Sleeps for a number of seconds; returns True to stop the replay.
        rate: Factor on the recorded rate.
        loop: Restart at the end.
        tick: Called with the recording's time (nanoseconds) at `clock_hz` and before each cloud; None for no clock.
        clock_hz: Ticks per second of wall time.
        ready: Returns False while the next cloud must be held back. The replay continues from there at its rate,
            without catching up.
        now: Monotonic clock, seconds.
    """

    publish: Callable[[TimedCloud], None]
    wait: Callable[[float], bool]
    rate: float = 1.0
    loop: bool = False
    tick: Callable[[int], None] | None = None
    clock_hz: float = 40.0
    ready: Callable[[], bool] | None = None
    now: Callable[[], float] = time.monotonic
    _origin_s: float = field(default=0.0, init=False)  # time on `now` at which the first cloud is due
    _first_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, value in (("--rate", self.rate), ("--clock", self.clock_hz)):
            require(math.isfinite(value) and value > 0, name, "a positive number", value)

    def play(self, source: Source) -> Report:
        """Replay until the end, or until `wait` returns True."""
        report = Report(len(source))
        begin = self.now()
        while True:
            last_ns = self._play_once(iter(source), begin, report)
            if report.interrupted or not self.loop or not report.published:
                return report
            period_s = (last_ns - self._first_ns) / 1e9 / max(len(source) - 1, 1)  # as from cloud to cloud
            begin = self._due_s(last_ns) + (period_s if period_s > 0 else 1 / RATE_HZ) / self.rate
            report.total += len(source)

    def _play_once(self, clouds: Iterator[TimedCloud], begin: float, report: Report) -> int:
        """Replay once, from `begin` (seconds on `now`) or as soon as possible. Returns the time of the last cloud."""
        cloud = next(clouds, None)  # each cloud is read before it is due
        last_ns = 0
        if cloud is not None:
            self._first_ns, self._origin_s = cloud.time_ns, max(begin, self.now())
        while cloud is not None:
            if self._wait_until_due(cloud.time_ns) or self._wait_until_ready():
                report.interrupted = True
                break
            self._send(cloud, report)
            last_ns = cloud.time_ns
            cloud = next(clouds, None)
        return last_ns

    def _due_s(self, time_ns: int) -> float:
        return self._origin_s + (time_ns - self._first_ns) / 1e9 / self.rate

    def _send(self, cloud: TimedCloud, report: Report) -> None:
        begin = self.now()
        if self.tick is not None:
            self.tick(cloud.time_ns)
        self.publish(cloud)
        lateness = begin - self._due_s(cloud.time_ns)
        report.published += 1
        report.late += lateness > LATE_S
        report.worst_s = max(report.worst_s, lateness)
        report.started_s = begin if math.isnan(report.started_s) else report.started_s
        report.ended_s = begin

    def _wait_until_due(self, time_ns: int) -> bool:
        """Wait until a cloud is due while the clock ticks. Returns whether to stop."""
        due = self._due_s(time_ns)
        while (left := due - self.now()) > 0:
            if self.tick is None:
                if self.wait(left):
                    return True
                continue
            if self.wait(min(left, 1 / self.clock_hz)):
                return True
            elapsed_ns = round((self.now() - self._origin_s) * self.rate * 1e9)
            if elapsed_ns >= 0:  # negative between two rounds of a loop
                self.tick(min(self._first_ns + elapsed_ns, time_ns))
        return self.wait(0.0)

    def _wait_until_ready(self) -> bool:
        """Wait until the next cloud may be published. Returns whether to stop."""
        start = self.now()
        while self.ready is not None and not self.ready():
            if self.wait(0.002):
                return True
        self._origin_s += self.now() - start
        return False
