# SPDX-License-Identifier: Apache-2.0
"""Plan of a labelling run: the jobs, their outputs, and what is checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqsegv3_ros.data.point_files import RECORDINGS, SUFFIXES, PointFile, file_stem, find_point_files, is_point_file
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
_EXPECTED = "expected .bin scans, SemanticKITTI data sets, bags or folders of bags"  # of URLs
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
        format: Format of the scans (`data/point_files.py`).
    """

    name: str
    source: str
    target: str
    size: int
    files: tuple[str, ...] = ()
    storage: str | None = None
    format: str = "kitti"

    @property
    def is_bag(self) -> bool:
        """Whether this is a bag."""
        return self.storage is not None

    @property
    def input(self) -> str:
        """The bag, the scan, or the folder of the scans, human-readable."""
        return join(self.source, self.files[0]) if not self.is_bag and len(self.files) == 1 else self.source

    def outputs(self) -> list[str]:
        """The bag, the .label files, or the folders of the .label files of recordings."""
        suffix = "" if self.format in RECORDINGS else ".label"
        return [self.target] if self.is_bag else [join(self.target, f"{file_stem(f)}{suffix}") for f in self.files]


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


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    sequences: list[str] | None,
    options: BagOptions,
    file_format: str | None = None,
) -> list[Job]:
    """List the jobs of all inputs, in order, without opening bags.

    Args:
        inputs: Paths or URLs of .bin scans, SemanticKITTI data sets, bags and folders of bags; paths of point-cloud
            files and folders of them.
        output: Folder for all outputs, a path or URL.
        sequences: Sequences of the data sets; None for all.
        options: How to label bags.
        file_format: Format of point-cloud files; None to tell by the suffix.

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
        if is_remote(path):
            found = _jobs_of_url(path, output, sequences, options)
        else:
            found = _jobs_of_path(path, output, sequences, options, file_format)
        jobs.update(dict.fromkeys(found))
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
        raise UserError("--sequences selects sequences of a SemanticKITTI data set, but no input is one")
    given = [f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value is not None]
    if given and not any(job.is_bag for job in jobs):
        raise UserError(f"no input is a bag; omit {' and '.join(given)}")
    return list(jobs)


def _jobs_of_path(
    given: str, output: str, sequences: list[str] | None, options: BagOptions, file_format: str | None
) -> Iterator[Job]:
    path = Path(given)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; expected a bag, a SemanticKITTI data set, a point-cloud file ({SUFFIXES}) or a "
            "folder of them"
        )
    if path.is_dir() and is_dataset(path) and file_format is None:
        folders: dict[Path, dict[str, int]] = {}
        for scan in find_scans(path, sequences):
            folders.setdefault(scan.path.parent, {})[scan.path.name] = scan.path.stat().st_size
        for folder, sizes in folders.items():
            yield from _pieces(str(folder), _predictions(folder.parent.name), sizes, output)
    elif is_bag(path):
        yield _bag_job(str(path), path.resolve().name, _local_files(path), storage_of(path), output, options)
    elif path.is_file() and file_format is None and not is_point_file(path):
        raise UserError(
            f"{path}: expected a point-cloud file ({SUFFIXES}), a bag (.bag, .mcap, .db3) or a folder, found a "
            f"'{path.suffix}' file; --format says what it is"
        )
    elif path.is_file():
        (file,) = find_point_files(path, file_format)
        name = file.name if file.has_many_clouds else f"{file.name}.label"
        yield Job(name, str(path.parent), output, path.stat().st_size, (path.name,), format=file.format)
    else:
        bags = find_bags(path) if file_format is None else []
        has_files = file_format is not None or any(is_point_file(child) for child in path.rglob("*"))
        if not bags and not has_files:
            found = "has no bags and no point-cloud files" if any(path.iterdir()) else "is empty"
            raise UserError(
                f"{path} {found}; expected bags, point-cloud files ({SUFFIXES}) or a SemanticKITTI data set"
            )
        if has_files:
            yield from _jobs_of_files(path, output, file_format)
        for bag in bags:
            name = str(bag.relative_to(path))
            yield _bag_job(str(bag), name, _local_files(bag), storage_of(bag), output, options)


def _jobs_of_files(folder: Path, output: str, file_format: str | None) -> Iterator[Job]:
    """Plan the point-cloud files below a folder: those of a folder and format together, recordings one by one."""
    groups: dict[tuple[Path, str], list[PointFile]] = {}
    for file in find_point_files(folder, file_format):
        groups.setdefault((file.path.parent, file.format), []).append(file)
    for (parent, kind), files in groups.items():
        sizes = {file.path.name: file.path.stat().st_size for file in files}
        target = str(parent.relative_to(folder))
        yield from _pieces(str(parent), target, sizes, output, kind)


def _local_files(bag: Path) -> dict[str, int]:
    """Size by name of the files of a bag; the name is empty if the bag is a single file."""
    if bag.is_file():
        return {"": bag.stat().st_size}
    return {path.name: path.stat().st_size for path in sorted(bag.iterdir()) if path.is_file()}


def _jobs_of_url(given: str, output: str, sequences: list[str] | None, options: BagOptions) -> Iterator[Job]:
    url = given.rstrip("/")
    files = list_files(url)
    if not files:
        raise UserError(f"{url} does not exist or is empty; expected a folder of clouds or bags")
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
            yield from _pieces(f"{url}/sequences/{sequence}/velodyne", _predictions(sequence), scans[sequence], output)
        return
    if not bags:
        raise UserError(f"{url} has no sequences/NN/velodyne and no bags; {_EXPECTED}")
    for bag in sorted(bags):
        source = url if bag in ("", ".") else f"{url}/{bag}"
        parts = [PurePosixPath(part or source).suffix for part in bags[bag]]
        storage = next((STORAGE_BY_SUFFIX[part] for part in parts if part in STORAGE_BY_SUFFIX), SQLITE3)
        yield _bag_job(source, name if source == url else bag, bags[bag], storage, output, options)


def _predictions(sequence: str) -> str:
    return f"sequences/{sequence}/predictions"


def _pieces(
    folder: str, target: str, sizes: Mapping[str, int], output: str, file_format: str = "kitti"
) -> Iterator[Job]:
    """Plan the scans of a folder in pieces; the target is relative to the output."""
    names, count = sorted(sizes), 1 if file_format in RECORDINGS else SCANS_PER_JOB
    place, prefix = (output, "") if target == "." else (join(output, target), f"{target}/")
    for start in range(0, len(names), count):
        piece = tuple(names[start : start + count])
        first, last = file_stem(piece[0]), file_stem(piece[-1])
        name = f"{prefix}{first}" if count == 1 else f"{prefix}{first}-{last}"
        yield Job(name, folder, place, sum(sizes[name] for name in piece), piece, format=file_format)


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
