"""A bag or a SemanticKITTI sequence comes in; its clouds go out one by one at the pace of their recording.

No ROS in it: whoever replays hands in what publishes and what waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from sqsegv3_ros.data.rosbag_reader import BagReader, is_bag
from sqsegv3_ros.data.sequences import FRAME, TOPIC, read_sequence, structured_points
from sqsegv3_ros.errors import UserError

LATE_S = 0.01  # a cloud that goes out later than this after its time is counted as late


@dataclass(frozen=True, eq=False)
class TimedCloud:
    """A cloud to publish: when it was recorded (nanoseconds), and either its CDR bytes as they are, or its points.

    points: structured (see sequences.POINT), to be put into a message of stamp `time_ns` in frame `frame`.
    """

    time_ns: int
    cdr: bytes | None = None
    points: npt.NDArray[Any] | None = None
    frame: str = FRAME


class Source(Protocol):
    """What can be replayed, as often as wanted: the topic it was recorded from, its clouds, how many there are."""

    topic: str

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[TimedCloud]: ...
    def __enter__(self) -> Source: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BagSource:
    """The clouds of one topic of a bag. Raises UserError naming the bag where it cannot be read or has none."""

    def __init__(self, path: Path, topic: str | None) -> None:
        self._reader = BagReader(path)
        self._wanted = topic

    def __enter__(self) -> BagSource:
        self._reader.__enter__()
        try:
            self.topic = self._reader.cloud_topic(self._wanted)
        except BaseException:
            self._reader.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    def __len__(self) -> int:
        return self._reader.count(self.topic)

    def __iter__(self) -> Iterator[TimedCloud]:
        for message in self._reader.messages(self.topic):
            yield TimedCloud(message.time_ns, cdr=self._reader.cdr(message))


class SequenceSource:
    """The scans of one SemanticKITTI sequence, with a field ground_truth where there are labels.

    truth: True to insist on labels, False to leave them out, None to take them where every scan has some.
    """

    topic = TOPIC

    def __init__(self, root: Path, sequence: str | None, truth: bool | None) -> None:
        self._sequence = read_sequence(root, sequence)
        self._truth = self._sequence.labelled if truth is None else truth
        if self._truth:
            missing = [scan.labels_path for scan in self._sequence.scans if not scan.labels_path.is_file()]
            if missing:
                raise UserError(f"labels {missing[0]} are missing ({len(missing)} of {len(self)} scans have none)")

    def __enter__(self) -> SequenceSource:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self._sequence.scans)

    def __iter__(self) -> Iterator[TimedCloud]:
        for scan, stamp_ns in zip(self._sequence.scans, self._sequence.stamps_ns, strict=True):
            yield TimedCloud(int(stamp_ns), points=structured_points(scan, truth=self._truth))


def open_source(path: Path, topic: str | None, sequence: str | None, truth: bool | None) -> BagSource | SequenceSource:
    """What a path holds, to be used with `with`. Raises UserError where it is neither a bag nor a SemanticKITTI root,
    or where a choice does not apply to it."""
    if (path / "sequences").is_dir():
        if topic is not None:
            raise UserError(f"--topic chooses a topic of a bag, but {path} is a SemanticKITTI root")
        return SequenceSource(path, sequence, truth)
    if not path.exists():
        raise UserError(f"there is no bag and no folder {path}")
    if path.is_dir() and not is_bag(path) and not any(path.iterdir()):
        raise UserError(f"folder {path} is empty; expected a bag, or a SemanticKITTI root with sequences/NN/velodyne")
    if sequence is not None or truth is not None:
        raise UserError(f"--sequence and --labels are for SemanticKITTI roots, but {path} is a bag")
    return BagSource(path, topic)


@dataclass
class Report:
    """What a replay did: clouds published, those late by more than LATE_S, the worst of them, and from when to when."""

    total: int
    published: int = 0
    late: int = 0
    worst_s: float = 0.0
    started_s: float = math.nan
    ended_s: float = math.nan
    interrupted: bool = False

    def text(self, topic: str) -> str:
        """One line for the terminal."""
        seconds = self.ended_s - self.started_s
        line = f"published {self.published} of {self.total} clouds on {topic}"
        if self.published > 1:
            line += f" in {seconds:.1f} s ({(self.published - 1) / max(seconds, 1e-9):.2f} Hz)"
        if self.late:
            line += f"; {self.late} went out more than {1e3 * LATE_S:g} ms late, at worst {1e3 * self.worst_s:.0f} ms"
        return line + ("; interrupted" if self.interrupted else "")


@dataclass
class Player:
    """Replays a source at its recorded pace, times `rate`.

    publish: called with each cloud when it is due. wait: sleeps so many seconds, returns True to stop the replay.
    tick: called `clock_hz` times a second of wall time, and with each cloud before it, with the recording's time
    (nanoseconds); None for no clock. ready: called after each cloud; returns False while the next must not go out yet
    (the time that it waits so is not caught up with). now: a monotonic clock, seconds.
    """

    publish: Callable[[TimedCloud], None]
    wait: Callable[[float], bool]
    rate: float = 1.0
    loop: bool = False
    tick: Callable[[int], None] | None = None
    clock_hz: float = 40.0
    ready: Callable[[], bool] | None = None
    now: Callable[[], float] = time.monotonic
    _origin_s: float = field(default=0.0, init=False)  # when, on `now`, the recording's first cloud was due
    _first_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, value in (("--rate", self.rate), ("--clock", self.clock_hz)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a positive number, found {value}")

    def play(self, source: Source) -> Report:
        """Replay until the end, or until `wait` says to stop."""
        report = Report(len(source))
        begin = self.now()
        while True:
            last_ns = self._play_once(iter(source), begin, report)
            if report.interrupted or not self.loop or not report.published:
                return report
            period_ns = (last_ns - self._first_ns) / max(len(source) - 1, 1)  # a round follows like a cloud
            begin = self._due_s(last_ns) + period_ns / 1e9 / self.rate
            report.total += len(source)

    def _play_once(self, clouds: Iterator[TimedCloud], begin: float, report: Report) -> int:
        """Replay one round, from `begin` (seconds on `now`) on or as soon as possible. Returns the last one's time."""
        cloud = next(clouds, None)  # the next one is always read before the time comes to publish it
        last_ns = 0
        if cloud is not None:
            self._first_ns, self._origin_s = cloud.time_ns, max(begin, self.now())
        while cloud is not None:
            if self._until(cloud.time_ns) or self._held():
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

    def _until(self, time_ns: int) -> bool:
        """Wait until a cloud is due, the clock ticking meanwhile. Returns whether to stop."""
        due = self._due_s(time_ns)
        while (left := due - self.now()) > 0:
            if self.tick is None:
                if self.wait(left):
                    return True
                continue
            if self.wait(min(left, 1 / self.clock_hz)):
                return True
            elapsed_ns = round((self.now() - self._origin_s) * self.rate * 1e9)
            if elapsed_ns >= 0:  # not between two rounds
                self.tick(min(self._first_ns + elapsed_ns, time_ns))
        return self.wait(0.0)

    def _held(self) -> bool:
        """Wait until the next cloud may go out. Returns whether to stop."""
        begin = self.now()
        while self.ready is not None and not self.ready():
            if self.wait(0.002):
                return True
        waited = self.now() - begin
        self._origin_s += waited
        return False
