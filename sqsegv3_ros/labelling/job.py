# SPDX-License-Identifier: Apache-2.0
"""Labelling of one job, a bag or part of a data set, and the loop over many."""

from __future__ import annotations

import glob
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.point_files import FileCloud, PointFile, file_stem, read_clouds
from sqsegv3_ros.data.pose_track import BagPoses
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, BagMessage, BagReader, require_rosbags
from sqsegv3_ros.data.rosbag_writer import BagWriter, Channel
from sqsegv3_ros.data.semantic_kitti import write_labels
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.labelling.manifest import DONE, FAILED, QUARANTINED, Record
from sqsegv3_ros.labelling.plan import Job, select_topic
from sqsegv3_ros.labelling.remote import digest
from sqsegv3_ros.labelling.run_settings import FAIL, SKIP_CLOUD, RunSettings
from sqsegv3_ros.labelling.workspace import Workspace
from sqsegv3_ros.pointcloud2 import to_remission

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter, PoseSource, SweepSource
    from sqsegv3_ros.inference.segmenter import Segmentation

NOT_FETCHED = "input cannot be fetched"
UNREADABLE = "input cannot be read"
BAD_CLOUD = "cloud cannot be labelled"
NOT_CONVERTED = "bag cannot be converted"
INFERENCE_FAILED = "inference failed"

OnCloud = Callable[[float], None]
"""Called after every cloud with the bytes of the input that it stands for."""


class InputError(UserError):
    """The job's input cannot be labelled.

    Args:
        reason: Kind of the failure.
        message: The failure in full.
        transient: The machine or the storage may be to blame, so that another try may succeed.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.reason, self.transient = reason, transient


@dataclass
class _Tally:
    """Counts over the clouds of a job."""

    counts: npt.NDArray[np.int64]
    clouds: int = 0
    confidence: float = 0.0
    usable: int = 0
    skipped: list[str] = field(default_factory=list)
    warning: str = ""

    def add(self, segmentation: Segmentation, input_warnings: tuple[str, ...]) -> None:
        """Count a labelled cloud."""
        self.clouds += 1
        self.counts += np.bincount(segmentation.labels, minlength=len(self.counts))
        self.confidence += float(segmentation.confidences.sum(dtype=np.float64))
        self.usable += int(np.count_nonzero(segmentation.confidences))
        self.warning = self.warning or "; ".join(input_warnings)


@dataclass(frozen=True)
class _Work:
    """A job in progress: its files on this machine, and what labels and counts its clouds."""

    segmenter: CloudSegmenter
    job: Job
    source: Path
    target: Path
    settings: RunSettings
    tally: _Tally
    on_cloud: OnCloud


def label_in_loop(
    segmenter: CloudSegmenter, jobs: Iterable[Job], settings: RunSettings, workspace: Workspace, on_cloud: OnCloud
) -> Generator[Record]:
    """Label jobs one after another in this process.

    Args:
        segmenter: Made by `settings.make_segmenter`.
        jobs: The jobs, in the order in which they are done.
        settings: Settings of the run.
        workspace: Holds copies of remote inputs and outputs.
        on_cloud: Told about progress within a job.

    Yields:
        The outcome of each job.

    Raises:
        UserError: An output cannot be written.
    """
    for job in jobs:
        yield label_job(segmenter, job, settings, workspace, on_cloud)


def label_job(
    segmenter: CloudSegmenter,
    job: Job,
    settings: RunSettings,
    workspace: Workspace,
    on_cloud: OnCloud = lambda size: None,
) -> Record:
    """Label a bag or part of a data set. An existing output is overwritten; an output is complete or absent.

    Args:
        segmenter: Made by `settings.make_segmenter`.
        job: The job.
        settings: Settings of the run.
        workspace: Holds copies of a remote input and output.
        on_cloud: Told about progress within the job.

    Returns:
        What was done, or why the input cannot be labelled.

    Raises:
        UserError: The output cannot be written, which says nothing about the input.
    """
    begin = time.perf_counter()
    labels = segmenter.segmenter.info.labels
    tally, sha256, status, reason, error = _Tally(np.zeros(len(labels), np.int64)), "", DONE, "", ""
    try:
        with _input_errors(NOT_FETCHED):
            source = workspace.source(job)
        with _input_errors(UNREADABLE):
            sha256 = digest([source / file for file in job.files] if job.files or not job.is_bag else [source])
        label = _label_bag if job.is_bag else _label_scans
        label(_Work(segmenter, job, source, workspace.target(job), settings, tally, on_cloud))
        workspace.deliver(job)
    except InputError as failure:
        status = FAILED if failure.transient or settings.on_error == FAIL else QUARANTINED
        reason, error = failure.reason, str(failure)
        tally = _Tally(np.zeros(len(labels), np.int64))
    finally:
        workspace.clear()
    return Record(
        name=job.name,
        input=job.input,
        size=job.size,
        status=status,
        reason=reason,
        error=error or next(iter(tally.skipped), ""),
        sha256=sha256,
        clouds=tally.clouds,
        skipped_clouds=len(tally.skipped),
        points=int(tally.counts.sum()),
        class_counts={name: int(n) for name, n in zip(labels.names, tally.counts, strict=True) if n},
        mean_confidence=round(tally.confidence / tally.usable, 6) if tally.usable else None,
        warning=tally.warning,
        seconds=round(time.perf_counter() - begin, 3),
        host=socket.gethostname(),
        finished=utc_now(),
    )


def utc_now() -> str:
    """Date and time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _label_scans(work: _Work) -> None:
    """Label point-cloud files and write .label files with raw ids."""
    from sqsegv3_ros.inference.input_checks import Expected, check_input

    job, settings, tally = work.job, work.settings, work.tally
    inner = work.segmenter.segmenter
    info = inner.info
    expected = Expected(inner.projection, info.normalization, inner.extrinsics, info.sensor_height_m, settings.scans)
    for name in job.files:
        file = PointFile(work.source / name, job.format, file_stem(name))
        for cloud in _clouds_of_file(file, settings, tally):
            to_remission(cloud.points[:, 3], settings.scans)
            with _input_errors(INFERENCE_FAILED, str(file.path), Exception):
                result = inner.segment(cloud.points, cloud.rings)
            write_labels(work.target / f"{cloud.name}.label", info.labels.to_raw(result.labels))
            tally.add(result, check_input(cloud.points, cloud.rings, expected, result.image.index >= 0))
        work.on_cloud(job.size / len(job.files))
    _require_some(job, tally)


def _clouds_of_file(file: PointFile, settings: RunSettings, tally: _Tally) -> Iterator[FileCloud]:
    """The clouds of a file up to the first that cannot be read."""
    clouds = read_clouds(file, settings.scans.intensity_fields)
    while True:
        cloud = None
        with _may_skip(settings, tally), _input_errors(BAD_CLOUD):
            found = next(clouds, None)
            # a sweep without returns is one cloud of many; a whole file without points was not written completely
            if found is not None and not len(found.points) and not file.has_many_clouds:
                raise UserError(f"{file.path} has no points; it may be truncated")
            cloud = found
        if cloud is None:
            return
        yield cloud


def _label_bag(work: _Work) -> None:
    """Copy a bag with its clouds labelled, and all other messages byte for byte."""
    job, segmenter = work.job, work.segmenter
    assert job.storage is not None
    info = segmenter.segmenter.info
    notes = {
        "sqsegv3_model": info.name,
        "sqsegv3_model_sha256": segmenter.segmenter.model_sha256,
        "sqsegv3_label_set": info.labels.name,
    }
    require_rosbags("labelling a bag")
    _remove_drafts(work.target)
    with _opened(work.source) as reader:
        with _input_errors(UNREADABLE):
            topic = select_topic(reader, work.settings.bags)
            find_pose = None if segmenter.sweeps is None else _poses(segmenter.sweeps, reader)
        clouds = max(1, reader.count(topic))
        with BagWriter(work.target, job.storage, force=True, notes=notes) as writer:
            copy = _BagCopy(work, reader, writer, topic, find_pose)
            channels = {connection.id: copy.add_channel(connection) for connection in reader.connections}
            for message in _messages(reader):
                channel = channels[message.connection.id]
                if not copy.has_clouds(message.connection):
                    with _conversion_errors():
                        writer.write(channel, message.time_ns, message.raw)
                    continue
                with _may_skip(work.settings, work.tally):
                    copy.write_labelled(message, channel)
                work.on_cloud(job.size / clouds)
            _require_some(job, work.tally)


@dataclass(frozen=True)
class _BagCopy:
    """The labelled copy of a bag."""

    work: _Work
    reader: BagReader
    writer: BagWriter
    topic: str
    find_pose: PoseSource | None

    def has_clouds(self, connection: Any) -> bool:
        """Whether the messages of a connection are the clouds to label."""
        return bool(connection.topic == self.topic and connection.msgtype == CLOUD_TYPE)

    def add_channel(self, connection: Any) -> Channel:
        """Create the channel for a connection, also if it has no messages."""
        topic = self.work.settings.bags.output_topic if self.has_clouds(connection) else None
        with _conversion_errors():
            return self.writer.add_like(self.reader, connection, topic)

    def write_labelled(self, message: BagMessage, channel: Channel) -> None:
        """Label a cloud, write and count it."""
        tally = self.work.tally
        number = tally.clouds + len(tally.skipped) + 1
        name = f"bag {self.work.job.source}, cloud {number} of {self.topic}"
        with _input_errors(INFERENCE_FAILED, name, Exception), _input_errors(BAD_CLOUD, name, UserError):
            result = self.work.segmenter.process(self.reader.cloud(message), {"points"}, find_pose=self.find_pose)
        with _conversion_errors():
            self.writer.write(channel, message.time_ns, self.reader.serialize(result.clouds["points"]))
        tally.add(result.segmentation, result.input_warnings)


def _poses(source: SweepSource, reader: BagReader) -> PoseSource:
    """The sensor's poses in a bag. Raises UserError if it has none."""
    return BagPoses(reader, source.fixed_frame, source.odometry_topic).find


@contextmanager
def _opened(source: Path) -> Iterator[BagReader]:
    """Open a bag; only errors of opening it are attributed to the input."""
    with ExitStack() as stack:
        with _input_errors(UNREADABLE):
            reader = stack.enter_context(BagReader(source))
        yield reader


def _messages(reader: BagReader) -> Iterator[BagMessage]:
    with _input_errors(UNREADABLE):
        yield from reader.messages()


def _require_some(job: Job, tally: _Tally) -> None:
    if tally.skipped and not tally.clouds:
        raise InputError(BAD_CLOUD, f"{job.input}: no cloud can be labelled; the first: {tally.skipped[0]}")


@contextmanager
def _input_errors(reason: str, name: str = "", kinds: type[Exception] = UserError) -> Iterator[None]:
    """Attribute errors to the input. Inference may raise anything: one odd bag must not end a run of days."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        if isinstance(error.__cause__, ImportError):  # a package is missing, and no input to blame
            raise
        transient = reason in (NOT_FETCHED, INFERENCE_FAILED) or isinstance(error.__cause__, OSError)
        raise InputError(reason, f"{name}: {error}" if name else str(error), transient=transient) from error


@contextmanager
def _conversion_errors() -> Iterator[None]:
    """Attribute errors of writing a bag to the input, unless the file system is their cause."""
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, (OSError, sqlite3.Error)):
            raise
        raise InputError(NOT_CONVERTED, str(error)) from error


@contextmanager
def _may_skip(settings: RunSettings, tally: _Tally) -> Iterator[None]:
    """Leave out a cloud that cannot be labelled, if the settings say so."""
    try:
        yield
    except InputError as error:
        if settings.on_error != SKIP_CLOUD or error.reason != BAD_CLOUD or error.transient:
            raise
        tally.skipped.append(str(error))


def _remove_drafts(target: Path) -> None:
    """Remove the partial output of a killed worker: a job has one worker at a time."""
    name = re.compile(re.escape(f".{target.name}.") + "[a-z0-9_]{8}")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if name.fullmatch(path.name) and _is_draft(path, target):
            shutil.rmtree(path, ignore_errors=True)


def _is_draft(folder: Path, target: Path) -> bool:
    """Whether `files.atomic_output` made a folder, and nothing but the bag's new content is in it."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    inside = {str(path.relative_to(folder)) for pattern in ("*", "new/*") for path in folder.glob(pattern)}
    return inside <= {"new", f"new/{target.name}", f"new/{target.stem}"}  # a single file is made from a folder


def failure(record: Record) -> UserError | OperationError:
    """The error that ends a run with `--on-error fail`."""
    kind = OperationError if record.reason == INFERENCE_FAILED else UserError
    return kind(record.error)
