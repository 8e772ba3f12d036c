"""Scans, SemanticKITTI roots, bags and folders of bags come in; .label files and labelled bags go out, each whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.data.rosbag_reader import (
    CLOUD_TYPE,
    MCAP,
    ROS1,
    SQLITE3,
    STORAGE_BY_SUFFIX,
    BagReader,
    find_bags,
    is_bag,
    storage_of,
)
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.data.semantic_kitti import find_scans, is_dataset, read_scan, write_labels
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.pointcloud2 import DEFAULT_SETTINGS, CloudSettings, to_remission

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.inference.segmenter import Segmenter


@dataclass(frozen=True)
class Job:
    """One file or bag to label, and where its labels go. scans: how many it holds (1 for a .bin)."""

    source: Path
    target: Path
    storage: str | None = None  # of the target; None for a .label file
    topic: str = ""
    scans: int = 1

    @property
    def is_bag(self) -> bool:
        """Whether this is a bag."""
        return self.storage is not None


@dataclass(frozen=True)
class BagOptions:
    """Which clouds of bags are labelled (None: the only ones), the topic they get (None: their own), the storage of
    what is written (None: as it comes)."""

    topic: str | None = None
    output_topic: str | None = None
    storage: str | None = None


# ---- what is to be done ----------------------------------------------------------------------------------------------


def plan(inputs: Sequence[Path], output: Path, sequences: list[str] | None, options: BagOptions) -> list[Job]:
    """Everything that the inputs hold, in order. Raises UserError for what cannot be labelled, or not all into one
    folder. Bags are looked at by `check`."""
    if output.suffix in STORAGE_BY_SUFFIX or output.is_file():
        raise UserError(f"--output {output} must be a folder: what is written into it is named after the inputs")
    jobs: list[Job] = []
    for item in inputs:
        jobs += _jobs_of(item, output, sequences, options)
    targets: dict[Path, Job] = {}
    for job in jobs:
        other = targets.setdefault(job.target, job).source  # what is given twice is labelled once
        if other != job.source:
            raise UserError(f"{other} and {job.source} would both be written to {job.target}; label them apart")
        if job.target.resolve() == job.source.resolve():
            raise UserError(f"{job.source} would be overwritten by its own labels; choose another --output")
    if sequences and not any(item.is_dir() and is_dataset(item) for item in inputs):
        raise UserError("--sequences chooses among the sequences of a SemanticKITTI root, but no root was given")
    if not any(job.is_bag for job in jobs) and options != BagOptions():
        raise UserError("--topic, --output-topic and --storage are for bags, but no bag was given")
    return list(targets.values())


def _jobs_of(item: Path, output: Path, sequences: list[str] | None, options: BagOptions) -> list[Job]:
    if not item.exists():
        raise UserError(f"there is no file or folder {item}")
    if item.is_file() and item.suffix == ".bin":
        return [Job(item, output / f"{item.stem}.label")]
    if item.is_dir() and is_dataset(item):
        return [Job(scan.path, scan.prediction_path(output)) for scan in find_scans(item, sequences)]
    if is_bag(item):
        return [_bag_job(item, Path(item.resolve().name), output, options)]
    if item.is_file():
        raise UserError(
            f"{item}: expected a .bin scan, a bag (.bag, .mcap, .db3) or a folder, found a '{item.suffix}' file"
        )
    bags = find_bags(item)
    if not bags:
        found = "is empty" if not any(item.iterdir()) else "is a folder without sequences/NN/velodyne and without bags"
        raise UserError(f"{item} {found}; give .bin files, such a root, or bags")
    return [_bag_job(bag, bag.relative_to(item), output, options) for bag in bags]


def _bag_job(source: Path, name: Path, output: Path, options: BagOptions) -> Job:
    """The target has the source's name; a single file stays one, and its suffix follows the storage."""
    own = storage_of(source)
    storage = options.storage or own
    if storage == ROS1 and own != ROS1:
        raise UserError(f"{source} is a ROS 2 bag; it cannot be written with --storage {ROS1}")
    if source.is_dir():
        return Job(source, output / name, storage)
    if own == ROS1 and storage != ROS1:
        return Job(source, output / name.with_suffix(""), storage)
    suffix = {ROS1: ".bag", MCAP: ".mcap", SQLITE3: ".db3"}[storage]
    return Job(source, output / name.with_suffix(suffix), storage)


def share(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """The part-th (1..parts) of so many equal shares, each job in just one: for processes or machines side by side."""
    if not 1 <= part <= parts:
        raise UserError(f"--shard must be I/N with 1 <= I <= N, found {part}/{parts}")
    return list(jobs[part - 1 :: parts])


def check(jobs: Sequence[Job], options: BagOptions) -> list[Job]:
    """Look into every bag: the jobs with their topic and number of clouds. Raises UserError for the first that cannot
    be labelled."""
    return [_checked_bag(job, options) if job.is_bag else job for job in jobs]


def _checked_bag(job: Job, options: BagOptions) -> Job:
    with BagReader(job.source) as reader:
        topic = reader.cloud_topic(options.topic)
        wanted = options.output_topic
        if wanted not in (None, topic) and any(c.topic == wanted for c in reader.connections):
            raise UserError(f"bag {job.source} has a topic {wanted} already; choose another --output-topic")
        return replace(job, topic=topic, scans=reader.count(topic))


# ---- doing it --------------------------------------------------------------------------------------------------------


def label_scan(segmenter: Segmenter, job: Job, settings: CloudSettings = DEFAULT_SETTINGS) -> str:
    """A .bin file -> a .label file of raw ids. Returns the input warnings on the scan ('' for none).

    settings: how the file's fourth column becomes the remission; by default it holds it.
    """
    from sqsegv3_ros.inference.input_checks import Expected, check_input

    points = read_scan(job.source)
    to_remission(points[:, 3], settings)
    try:
        result = segmenter.segment(points)
    except RuntimeError as error:
        raise OperationError(f"{job.source}: {error}") from error
    info = segmenter.info
    write_labels(job.target, info.labels.to_raw(result.labels))
    expected = Expected(segmenter.projection, info.normalization, segmenter.extrinsics, info.sensor_height_m)
    return "; ".join(check_input(points, None, expected, result.image.index >= 0))


def label_bag(
    cloud_segmenter: CloudSegmenter, job: Job, output_topic: str | None, *, force: bool = False
) -> Iterator[str]:
    """A bag -> the same bag, its clouds with their labels. Yields with every cloud, the input warnings on it ('' for none).

    Every other topic is copied byte by byte. Raises UserError naming bag and cloud where one cannot be labelled; there
    is no bag then.
    """
    assert job.storage is not None
    info = cloud_segmenter.segmenter.info
    notes = {
        "sqsegv3_model": info.name,
        "sqsegv3_model_sha256": cloud_segmenter.segmenter.model.sha256,
        "sqsegv3_label_set": info.labels.name,
    }
    with BagReader(job.source) as reader, BagWriter(job.target, job.storage, force=force, notes=notes) as writer:
        channels = {}
        for connection in reader.connections:  # all of them, also those without a message
            meant = connection.topic == job.topic and connection.msgtype == CLOUD_TYPE
            channels[connection.id] = meant, writer.add_like(reader, connection, output_topic if meant else None)
        number = 0
        for message in reader.messages():
            meant, channel = channels[message.connection.id]
            if not meant:
                writer.write(channel, message.time_ns, message.raw)
                continue
            number += 1
            where = f"bag {job.source}, cloud {number} of {job.topic}"
            labelled, input_warnings = _labelled(cloud_segmenter, reader.cloud(message), where)
            writer.write(channel, message.time_ns, reader.serialized(labelled))
            yield "; ".join(input_warnings)


def _labelled(cloud_segmenter: CloudSegmenter, cloud: Any, where: str) -> tuple[Any, tuple[str, ...]]:
    try:
        result = cloud_segmenter.process(cloud, {"points"})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except RuntimeError as error:  # torch: out of memory, ...
        raise OperationError(f"{where}: {error}") from error
    return result.clouds["points"], result.input_warnings
