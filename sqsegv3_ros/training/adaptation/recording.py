# SPDX-License-Identifier: Apache-2.0
"""Scans of a recording: read from bags, trees and files, chosen, and copied into a SemanticKITTI data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sqsegv3_ros.data.point_files import FileCloud, PointFile, file_stem, read_clouds
from sqsegv3_ros.data.rosbag_reader import BagReader
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import progress
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.input_checks import ground_height
from sqsegv3_ros.inference.range_image import ProjectionConfig, project
from sqsegv3_ros.labelling.plan import BagOptions, Job, select_topic
from sqsegv3_ros.pointcloud2 import CloudSettings, decode, to_remission
from sqsegv3_ros.simulation.measured_sensor import Cloud

MAX_SCANS = 200
MIN_SCANS = 8
_CANDIDATES = 2  # clouds looked at for each one that may be kept
_LEAST_POINTS = 500
_SENSOR_SCANS = 20  # clouds that the sensor is measured from

_COARSE = ProjectionConfig(height=32, width=256, fov_up_deg=25.0, fov_down_deg=-30.0)
_CHANGED = 0.08  # relative change of range by which a pixel counts as changed
_SAME_PLACE = 0.06
"""A cloud is left out if no more of its pixels have changed since the last one: the vehicle stood still."""


@dataclass(frozen=True)
class Recording:
    """Where the clouds of a recording are and how they become points.

    Attributes:
        inputs: Paths as the user gave them.
        jobs: Bags and files, as `sqsegv3 label` plans them.
        bags: Which clouds of bags to read.
        bag_clouds: How clouds of bags are decoded.
        file_clouds: How the intensity of files becomes the remission.
        extrinsics: Rotation that levels the points.
    """

    inputs: Sequence[str]
    jobs: Sequence[Job]
    bags: BagOptions
    bag_clouds: CloudSettings
    file_clouds: CloudSettings
    extrinsics: Extrinsics


@dataclass
class CopiedScans:
    """What was copied.

    Attributes:
        scans: Number of scans.
        read: Clouds looked at.
        standing: Clouds left out because the vehicle stood still.
        unusable: Clouds that could not be used.
        clouds: Some clouds in the sensor frame, to measure the sensor from.
        height_m: Height of the sensor above the ground, metres; None if no ground was found.
    """

    scans: int = 0
    read: int = 0
    standing: int = 0
    unusable: int = 0
    clouds: list[Cloud] = field(default_factory=list)
    height_m: float | None = None


def copy_scans(recording: Recording, folder: Path, limit: int = MAX_SCANS) -> CopiedScans:
    """Copy scans of a recording, evenly spread over it, into the folder of a sequence, with all labels 0.

    Args:
        recording: The recording; it is not changed.
        folder: Folder for velodyne/ and labels/.
        limit: Largest number of scans.

    Returns:
        What was copied.

    Raises:
        UserError: An input cannot be read, or fewer than `MIN_SCANS` scans are left.
    """
    copied = CopiedScans()
    heights: list[float | None] = []
    last: npt.NDArray[np.float32] | None = None
    total = sum(_count(job, recording.bags) for job in recording.jobs)
    every = max(1, math.ceil(total / (_CANDIDATES * limit)))
    first_error = ""
    for number, read in enumerate(progress(_clouds(recording), total, "cloud")):
        if number % every:
            continue
        copied.read += 1
        try:
            points, rings = read()
        except UserError as error:
            copied.unusable += 1
            first_error = first_error or str(error)
            continue
        points, rings = _usable(points, rings)
        if len(points) < _LEAST_POINTS:
            copied.unusable += 1
            continue
        level = recording.extrinsics.level(torch.from_numpy(points)).numpy()
        coarse = project(torch.from_numpy(level), _COARSE).range.numpy()
        if last is not None and changed_share(last, coarse) <= _SAME_PLACE:
            copied.standing += 1
            continue
        last = coarse
        if copied.scans == _CANDIDATES * limit:  # a single file has an unknown number of clouds
            copied.scans, every = _thin(folder, copied.scans, limit), every * _CANDIDATES
        write_scan(folder / "velodyne" / f"{copied.scans:06d}.bin", level)
        write_labels(folder / "labels" / f"{copied.scans:06d}.label", np.zeros(len(level), np.uint32))
        copied.scans += 1
        heights.append(ground_height(level[::17, :3].astype(np.float64)))
        if copied.scans <= _SENSOR_SCANS:
            copied.clouds.append((points, rings))
    if copied.scans < MIN_SCANS:
        because = f"; the first unusable one: {first_error}" if first_error else ""
        raise UserError(
            f"{copied.scans} different scans found in {copied.read} clouds ({copied.standing} of a standing vehicle, "
            f"{copied.unusable} unusable); expected at least {MIN_SCANS}: record a drive of some minutes{because}"
        )
    found = [height for height in heights if height is not None]
    copied.height_m = float(np.median(found)) if len(found) > len(heights) / 3 else None
    copied.scans = _thin(folder, copied.scans, limit)
    return copied


def changed_share(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> float:
    """Share of the pixels filled in both (H, W) range images whose range has changed."""
    both = (before > 0) & (now > 0)
    if not both.any():
        return 1.0
    return float(np.mean(np.abs(np.log(now[both] / before[both])) > _CHANGED))


def _usable(points: npt.NDArray[np.float32], rings: Any) -> Cloud:
    """Points with a position, their remission finite, and their rings."""
    keep = np.isfinite(points[:, :3]).all(axis=1) & points[:, :3].any(axis=1)
    points = points[keep].astype(np.float32)
    points[:, 3] = np.nan_to_num(points[:, 3], nan=0.0, posinf=0.0, neginf=0.0)
    return points, None if rings is None else np.asarray(rings)[keep]


def _thin(folder: Path, count: int, limit: int) -> int:
    """Delete scans until `limit` are left, evenly, and number the others anew. Returns their number."""
    kept = [i * count // limit for i in range(limit)] if count > limit else list(range(count))
    for kind, suffix in (("velodyne", "bin"), ("labels", "label")):
        for new, old in enumerate(kept):
            (folder / kind / f"{old:06d}.{suffix}").replace(folder / kind / f"{new:06d}.{suffix}")
        for old in range(len(kept), count):
            (folder / kind / f"{old:06d}.{suffix}").unlink(missing_ok=True)
    return len(kept)


def _count(job: Job, bags: BagOptions) -> int:
    """Clouds of a job; those of a recording in a single file count as one."""
    if not job.is_bag:
        return len(job.files)
    with BagReader(job.source) as reader:
        return reader.count(select_topic(reader, bags))


def _clouds(recording: Recording) -> Iterator[Callable[[], Cloud]]:
    """Functions that read the clouds, in order."""
    settings = recording.file_clouds
    for job in recording.jobs:
        if job.is_bag:
            yield from _clouds_of_bag(job, recording)
            continue
        for name in job.files:
            file = PointFile(Path(job.source) / name, job.format, file_stem(name))
            if file.has_many_clouds:
                for cloud in read_clouds(file, settings.intensity_fields):
                    yield partial(_with_remission, cloud, settings)
            else:
                yield partial(_read_file, file, settings)


def _clouds_of_bag(job: Job, recording: Recording) -> Iterator[Callable[[], Cloud]]:
    with BagReader(job.source) as reader:
        for message in reader.messages(select_topic(reader, recording.bags)):

            def read(message: Any = message) -> Cloud:
                cloud = decode(reader.cloud(message), recording.bag_clouds)
                return cloud.points, cloud.rings

            yield read


def _read_file(file: PointFile, settings: CloudSettings) -> Cloud:
    return _with_remission(next(read_clouds(file, settings.intensity_fields)), settings)


def _with_remission(cloud: FileCloud, settings: CloudSettings) -> Cloud:
    to_remission(cloud.points[:, 3], settings)
    return cloud.points, cloud.rings
