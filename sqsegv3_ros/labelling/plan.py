# SPDX-License-Identifier: Apache-2.0
"""Plan of a labelling run: the jobs, their outputs, and what is checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
from sqsegv3_ros.labelling.remote import is_remote, join, list_files

SCANS_PER_JOB = 100
_EXPECTED = "expected .bin scans, SemanticKITTI roots, bags or folders of bags"
_SUFFIXES = {ROS1: ".bag", MCAP: ".mcap", SQLITE3: ".db3"}


@dataclass(frozen=True)
class Job:
    """One bag, or up to `SCANS_PER_JOB` scans of a folder. Sources and targets are paths or URLs.

    Attributes:
        name: Name of the output, below the output folder; unique in a run.
        source: The bag, or the folder of the scans.
        target: The bag to write, or the folder of the .label files.
        size: Bytes of the source.
        files: Files of the source folder that belong to the job; empty for a bag that is a single file.
        storage: Storage of the target bag; None for scans.
    """

    name: str
    source: str
    target: str
    size: int
    files: tuple[str, ...] = ()
    storage: str | None = None

    @property
    def is_bag(self) -> bool:
        """Whether this is a bag."""
        return self.storage is not None

    @property
    def input(self) -> str:
        """The bag, the scan, or the folder of the scans, for people."""
        return join(self.source, self.files[0]) if not self.is_bag and len(self.files) == 1 else self.source

    def outputs(self) -> list[str]:
        """The bag or the .label files."""
        return [self.target] if self.is_bag else [join(self.target, f"{Path(file).stem}.label") for file in self.files]


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


def plan_jobs(inputs: Sequence[str], output: str, sequences: list[str] | None, options: BagOptions) -> list[Job]:
    """List the jobs of all inputs, in order, without opening bags.

    Args:
        inputs: Paths or URLs of scan files, SemanticKITTI roots, bags and folders of bags.
        output: Folder for all outputs, a path or URL.
        sequences: Sequences of the roots; None for all.
        options: How to label bags.

    Returns:
        The jobs. An input that is given twice is labelled once.

    Raises:
        UserError: An input cannot be labelled, an output would overwrite an input or another output, or an option does
            not apply to the inputs.
    """
    if PurePosixPath(output).suffix in STORAGE_BY_SUFFIX or Path(output).is_file():
        raise UserError(f"--output {output} must be a folder: the outputs in it are named after the inputs")
    jobs: dict[Job, None] = {}
    for path in inputs:
        find = _jobs_of_url if is_remote(path) else _jobs_of_path
        jobs.update(dict.fromkeys(find(path, output, sequences, options)))
    by_output: dict[str, Job] = {}
    for job in jobs:
        for target in job.outputs():
            other = by_output.setdefault(target, job)
            if other != job:
                raise UserError(
                    f"{other.input} and {job.input} would both be written to {target}; label them separately"
                )
        if not is_remote(job.source) and Path(job.target).resolve() == Path(job.source).resolve() and job.is_bag:
            raise UserError(f"{job.source} would be overwritten by its own labels; choose another --output")
    if sequences and all(job.is_bag or not job.name.startswith("sequences/") for job in jobs):
        raise UserError("--sequences selects sequences of a SemanticKITTI root, but no input is one")
    if not any(job.is_bag for job in jobs) and options != BagOptions():
        raise UserError("--topic, --output-topic and --storage apply to bags, but no input is a bag")
    return list(jobs)


def _jobs_of_path(given: str, output: str, sequences: list[str] | None, options: BagOptions) -> Iterator[Job]:
    path = Path(given)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file() and path.suffix == ".bin":
        yield Job(f"{path.stem}.label", str(path.parent), output, path.stat().st_size, (path.name,))
    elif path.is_dir() and is_dataset(path):
        folders: dict[Path, dict[str, int]] = {}
        for scan in find_scans(path, sequences):
            folders.setdefault(scan.path.parent, {})[scan.path.name] = scan.path.stat().st_size
        for folder, sizes in folders.items():
            yield from _pieces(str(folder), folder.parent.name, sizes, output)
    elif is_bag(path):
        yield _bag_job(str(path), path.resolve().name, _local_files(path), storage_of(path), output, options)
    elif path.is_file():
        raise UserError(
            f"{path}: expected a .bin scan, a bag (.bag, .mcap, .db3) or a folder, found a '{path.suffix}' file"
        )
    else:
        bags = find_bags(path)
        if not bags:
            found = "is a folder without sequences/NN/velodyne and without bags" if any(path.iterdir()) else "is empty"
            raise UserError(f"{path} {found}; {_EXPECTED}")
        for bag in bags:
            name = str(bag.relative_to(path))
            yield _bag_job(str(bag), name, _local_files(bag), storage_of(bag), output, options)


def _local_files(bag: Path) -> dict[str, int]:
    """Size by name of the files of a bag; the name is empty if the bag is a single file."""
    if bag.is_file():
        return {"": bag.stat().st_size}
    return {path.name: path.stat().st_size for path in sorted(bag.iterdir()) if path.is_file()}


def _jobs_of_url(given: str, output: str, sequences: list[str] | None, options: BagOptions) -> Iterator[Job]:
    url = given.rstrip("/")
    files = list_files(url)
    if not files:
        raise UserError(f"{url} does not exist or is empty")
    name = PurePosixPath(url).name
    if "" in files and url.endswith(".bin"):
        yield Job(f"{PurePosixPath(url).stem}.label", url.rpartition("/")[0], output, files[""], (name,))
        return
    scans: dict[str, dict[str, int]] = {}
    bags: dict[str, dict[str, int]] = {}
    folders = {str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == "metadata.yaml"}
    for file, size in files.items():
        path = PurePosixPath(file)
        if path.match("sequences/*/velodyne/*.bin") and len(path.parts) == 4:
            scans.setdefault(path.parts[1], {})[path.name] = size
        elif str(path.parent) in folders:
            bags.setdefault(str(path.parent), {})[path.name] = size
        elif PurePosixPath(join(url, file)).suffix in STORAGE_BY_SUFFIX:
            bags[file] = {"": size}
    chosen = set(scans) if sequences is None else {number.zfill(2) for number in sequences}
    if scans:
        missing = chosen - set(scans)
        if missing:
            raise UserError(f"{url} has no sequence '{min(missing)}' (sequences: {', '.join(sorted(scans))})")
        for sequence in sorted(chosen):
            yield from _pieces(f"{url}/sequences/{sequence}/velodyne", sequence, scans[sequence], output)
        return
    if not bags:
        raise UserError(f"{url} has no sequences/NN/velodyne and no bags; {_EXPECTED}")
    for bag in sorted(bags):
        source = url if bag in ("", ".") else f"{url}/{bag}"
        parts = [PurePosixPath(part or source).suffix for part in bags[bag]]
        storage = next((STORAGE_BY_SUFFIX[part] for part in parts if part in STORAGE_BY_SUFFIX), SQLITE3)
        yield _bag_job(source, name if source == url else bag, bags[bag], storage, output, options)


def _pieces(folder: str, sequence: str, sizes: Mapping[str, int], output: str) -> Iterator[Job]:
    names = sorted(sizes)
    target = f"sequences/{sequence}/predictions"
    for start in range(0, len(names), SCANS_PER_JOB):
        piece = tuple(names[start : start + SCANS_PER_JOB])
        span = f"{target}/{Path(piece[0]).stem}-{Path(piece[-1]).stem}"
        yield Job(span, folder, join(output, target), sum(sizes[name] for name in piece), piece)


def _bag_job(
    source: str, name: str, files: Mapping[str, int], source_storage: str, output: str, options: BagOptions
) -> Job:
    """Plan a bag. A single file stays one, with the suffix of its new storage."""
    storage = options.storage or source_storage
    if storage == ROS1 and source_storage != ROS1:
        raise UserError(f"{source} is a ROS 2 bag; it cannot be written with --storage {ROS1}")
    if "" in files:
        is_folder = source_storage == ROS1 and storage != ROS1
        name = str(PurePosixPath(name).with_suffix("" if is_folder else _SUFFIXES[storage]))
    return Job(
        name, source, join(output, name), sum(files.values()), tuple(sorted(files)) if "" not in files else (), storage
    )


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Select shard `index` (1..count) of the jobs. Every job is in exactly one of the `count` shards."""
    if not 1 <= index <= count:
        raise UserError(f"--shard must be I/N with 1 <= I <= N, found {index}/{count}")
    return list(jobs[index - 1 :: count])


def check_bags(jobs: Sequence[Job], options: BagOptions) -> None:
    """Open every local bag, so that a bag that cannot be labelled is found before anything is written.

    Raises:
        UserError: A bag cannot be read, has no or ambiguous clouds, or already has the output topic.
    """
    for job in jobs:
        if job.is_bag and not is_remote(job.source):
            with BagReader(job.source) as reader:
                select_topic(reader, options)


def select_topic(reader: BagReader, options: BagOptions) -> str:
    """Select the topic of a bag to label.

    Raises:
        UserError: The bag has no or ambiguous clouds, or already has the output topic.
    """
    topic = reader.cloud_topic(options.topic)
    if options.output_topic not in (None, topic) and any(c.topic == options.output_topic for c in reader.connections):
        raise UserError(f"bag {reader.path} already has a topic {options.output_topic}; choose another --output-topic")
    return topic
