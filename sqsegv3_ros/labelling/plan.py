# SPDX-License-Identifier: Apache-2.0
"""Plan of a labelling run: the inputs, their outputs, and what is checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqsegv3_ros.data.rosbag_reader import (
    MCAP,
    ROS1,
    SQLITE3,
    STORAGE_BY_SUFFIX,
    BagReader,
    find_bags,
    is_bag,
    storage_of,
)
from sqsegv3_ros.data.semantic_kitti import find_scans, is_dataset
from sqsegv3_ros.errors import UserError


@dataclass(frozen=True)
class Job:
    """One scan file or bag to label.

    Attributes:
        source: The scan file or bag.
        target: The .label file or bag to write.
        storage: Storage of the target bag; None for a .label file.
        topic: Topic of the clouds to label; known after `resolve_bags`.
        scans: Number of scans or clouds; known after `resolve_bags`.
    """

    source: Path
    target: Path
    storage: str | None = None
    topic: str = ""
    scans: int = 1

    @property
    def is_bag(self) -> bool:
        """Whether this is a bag."""
        return self.storage is not None


@dataclass(frozen=True)
class BagOptions:
    """Which clouds of bags to label and how to write them.

    Attributes:
        topic: Topic of the clouds; None for the only one with clouds.
        output_topic: Topic of the labelled clouds; None for the same topic.
        storage: Storage of the labelled bags; None for the same storage.
    """

    topic: str | None = None
    output_topic: str | None = None
    storage: str | None = None


def plan_jobs(inputs: Sequence[Path], output: Path, sequences: list[str] | None, options: BagOptions) -> list[Job]:
    """List the jobs of all inputs, in order, without opening bags.

    Args:
        inputs: Scan files, SemanticKITTI roots, bags and folders of bags.
        output: Folder for all outputs.
        sequences: Sequences of the roots; None for all.
        options: How to label bags.

    Returns:
        The jobs. An input that is given twice is labelled once.

    Raises:
        UserError: An input cannot be labelled, an output would overwrite an input or another output, or an option does
            not apply to the inputs.
    """
    if output.suffix in STORAGE_BY_SUFFIX or output.is_file():
        raise UserError(f"--output {output} must be a folder: the outputs in it are named after the inputs")
    jobs: list[Job] = []
    for path in inputs:
        jobs += _jobs_of(path, output, sequences, options)
    by_target: dict[Path, Job] = {}
    for job in jobs:
        other = by_target.setdefault(job.target, job).source
        if other != job.source:
            raise UserError(f"{other} and {job.source} would both be written to {job.target}; label them separately")
        if job.target.resolve() == job.source.resolve():
            raise UserError(f"{job.source} would be overwritten by its own labels; choose another --output")
    if sequences and not any(path.is_dir() and is_dataset(path) for path in inputs):
        raise UserError("--sequences selects sequences of a SemanticKITTI root, but no input is one")
    if not any(job.is_bag for job in jobs) and options != BagOptions():
        raise UserError("--topic, --output-topic and --storage apply to bags, but no input is a bag")
    return list(by_target.values())


def _jobs_of(path: Path, output: Path, sequences: list[str] | None, options: BagOptions) -> list[Job]:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file() and path.suffix == ".bin":
        return [Job(path, output / f"{path.stem}.label")]
    if path.is_dir() and is_dataset(path):
        return [Job(scan.path, scan.prediction_path(output)) for scan in find_scans(path, sequences)]
    if is_bag(path):
        return [_bag_job(path, Path(path.resolve().name), output, options)]
    if path.is_file():
        raise UserError(
            f"{path}: expected a .bin scan, a bag (.bag, .mcap, .db3) or a folder, found a '{path.suffix}' file"
        )
    bags = find_bags(path)
    if not bags:
        found = "is a folder without sequences/NN/velodyne and without bags" if any(path.iterdir()) else "is empty"
        raise UserError(f"{path} {found}; expected .bin scans, SemanticKITTI roots, bags or folders of bags")
    return [_bag_job(bag, bag.relative_to(path), output, options) for bag in bags]


def _bag_job(source: Path, name: Path, output: Path, options: BagOptions) -> Job:
    """Plan a bag. A single file stays one, with the suffix of its new storage."""
    source_storage = storage_of(source)
    storage = options.storage or source_storage
    if storage == ROS1 and source_storage != ROS1:
        raise UserError(f"{source} is a ROS 2 bag; it cannot be written with --storage {ROS1}")
    if source.is_dir():
        return Job(source, output / name, storage)
    if source_storage == ROS1 and storage != ROS1:
        return Job(source, output / name.with_suffix(""), storage)
    suffix = {ROS1: ".bag", MCAP: ".mcap", SQLITE3: ".db3"}[storage]
    return Job(source, output / name.with_suffix(suffix), storage)


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Select shard `index` (1..count) of the jobs. Every job is in exactly one of the `count` shards."""
    if not 1 <= index <= count:
        raise UserError(f"--shard must be I/N with 1 <= I <= N, found {index}/{count}")
    return list(jobs[index - 1 :: count])


def resolve_bags(jobs: Sequence[Job], options: BagOptions) -> list[Job]:
    """Open every bag and return the jobs with their topics and numbers of clouds.

    Raises:
        UserError: A bag cannot be read, has no or ambiguous clouds, or already has the output topic.
    """
    return [_resolve_bag(job, options) if job.is_bag else job for job in jobs]


def _resolve_bag(job: Job, options: BagOptions) -> Job:
    with BagReader(job.source) as reader:
        topic = reader.cloud_topic(options.topic)
        output_topic = options.output_topic
        if output_topic not in (None, topic) and any(c.topic == output_topic for c in reader.connections):
            raise UserError(f"bag {job.source} already has a topic {output_topic}; choose another --output-topic")
        return replace(job, topic=topic, scans=reader.count(topic))
