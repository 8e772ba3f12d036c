# SPDX-License-Identifier: Apache-2.0
"""Simulated data sets: labelled scans in SemanticKITTI's layout, and bags."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.data.sequences import write_trajectory
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.simulation.drive import pose_matrix
from sqsegv3_ros.simulation.plans import SCENES
from sqsegv3_ros.simulation.sensors import SensorModel, describe, sensor_named
from sqsegv3_ros.simulation.simulator import SCANS_PER_STREET, Simulator, Sweep, scene_drive, street_drive
from sqsegv3_ros.simulation.street import Street

FORMAT = 2  # incremented when the same settings give other scans
DRIVE_CHUNK = 40


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulated data set.

    Attributes:
        scans: Number of scans.
        sensor: Name of a sensor preset, or a sensor.
        seed: The same seed gives the same bytes.
        scene: Kind of street, one of `SCENES`.
        drive: Consecutive sweeps of one drive instead of independent scenes.
        motion: 'compensated' for points in the sensor frame at the middle of the sweep, as KITTI publishes them; 'raw'
            for points as the rotating sensor measures them.
    """

    scans: int
    sensor: str | SensorModel = "hdl64e"
    seed: int = 0
    scene: str = "mixed"
    drive: bool = False
    motion: str = "compensated"

    def __post_init__(self) -> None:
        if self.scans < 1:
            raise UserError(f"scans must be at least 1, found {self.scans}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be in 0..2**63-1, found {self.seed}")
        if self.scene not in SCENES:
            raise UserError(f"no scene '{self.scene}' (scenes: {', '.join(SCENES)})")
        if self.motion not in ("compensated", "raw"):
            raise UserError(f"motion must be compensated or raw, found '{self.motion}'")
        _ = self.sensor_model

    @property
    def sensor_model(self) -> SensorModel:
        """The sensor."""
        return sensor_named(self.sensor) if isinstance(self.sensor, str) else self.sensor

    def chunks(self) -> Iterator[range]:
        """Yield the scan numbers in chunks that share a street."""
        size = DRIVE_CHUNK if self.drive else SCANS_PER_STREET
        for start in range(0, self.scans, size):
            yield range(start, min(start + size, self.scans))


@lru_cache(maxsize=1)
def _simulator(settings: SimulationSettings, index: int) -> Simulator:
    """The simulator of a street: number `index` of the independent scenes, or the one of a drive."""
    sensor, scene = settings.sensor_model, settings.scene
    seed: tuple[int, ...] = (settings.seed, 0) if settings.drive else (settings.seed, 1, index)
    # a drive is slower than 30 m/s; the plan takes a few numbers per metre
    length = (-50.0, 50.0 + 30.0 * settings.scans / sensor.rate_hz)
    street = Street(scene, seed, length) if settings.drive else Street(scene, seed)
    drive = street_drive(street, sensor, seed) if settings.drive else scene_drive(street, sensor, seed, 0)
    return Simulator(street, sensor, drive, seed, settings.motion == "compensated")


def simulate_sweeps(settings: SimulationSettings, numbers: Iterable[int]) -> Iterator[Sweep]:
    """Simulate the sweeps with the given numbers. Ascending numbers are fastest: neighbours share a street."""
    for number in numbers:
        if settings.drive:
            yield _simulator(settings, 0).sweep(number)
            continue
        index, within = divmod(number, SCANS_PER_STREET)
        simulator = _simulator(settings, index)
        simulator.drive = scene_drive(simulator.street, simulator.sensor, simulator.seed, within)
        yield simulator.sweep(within, stamp=0.0, traffic_s=41.0 * within)  # other traffic each time


def simulate(
    settings: SimulationSettings,
    output: Path | None = None,
    bag: Path | None = None,
    *,
    sequence: str = "00",
    force: bool = False,
    jobs: int = 1,
) -> Iterator[int]:
    """Simulate and write a data set, a bag, or both.

    Args:
        settings: What to simulate.
        output: SemanticKITTI data set to write to. Scans of an interrupted run with the same settings are kept.
        bag: ROS 2 bag to write.
        sequence: Sequence to write below `output`, two digits.
        force: Replace existing scans, and an existing bag.
        jobs: Number of processes.

    Yields:
        The number of each finished scan.

    Raises:
        UserError: An output cannot be written, or already exists.
    """
    if output is None and bag is None:
        raise UserError("no output: pass --output or --bag")
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, found {jobs}")
    if not (len(sequence) == 2 and sequence.isdigit()):
        raise UserError(f"sequence must be two digits ('00'), found '{sequence}'")
    folder = None if output is None else output / "sequences" / sequence
    from sqsegv3_ros.simulation.simulated_bag import simulated_bag

    rate_hz = settings.sensor_model.rate_hz
    with nullcontext() if bag is None else simulated_bag(bag, rate_hz, poses=settings.drive, force=force) as write:
        resume = folder is not None and _prepare_folder(folder, settings, force) and write is None
        for chunk, sweeps in _simulate_chunks(settings, folder, resume, write is not None, jobs):
            if write is not None:
                for number, sweep in zip(chunk, sweeps, strict=True):
                    write(sweep, number)
            yield from chunk
    if folder is not None and settings.drive:
        _write_trajectory(folder, settings)


def _scan_files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / "velodyne" / f"{number:06d}.bin", folder / "labels" / f"{number:06d}.label"


def _simulate_chunk(settings: SimulationSettings, numbers: list[int], folder: Path | None, keep: bool) -> list[Sweep]:
    """Simulate and write some scans, in a worker process. Returns the sweeps if `keep`."""
    kept = []
    for number, sweep in zip(numbers, simulate_sweeps(settings, numbers), strict=True):
        if folder is not None:
            scan, labels = _scan_files(folder, number)
            write_labels(labels, sweep.labels)
            write_scan(scan, sweep.points)  # last: a scan that exists is complete
        if keep:
            kept.append(sweep)
    return kept


def _simulate_chunks(
    settings: SimulationSettings, folder: Path | None, resume: bool, keep: bool, jobs: int
) -> Iterator[tuple[range, list[Sweep]]]:
    """Yield (scan numbers, sweeps) of every chunk in order. At most `jobs` + 1 chunks are in memory."""

    def missing(chunk: range) -> list[int]:
        if not resume or folder is None:
            return list(chunk)
        return [n for n in chunk if not all(file.is_file() for file in _scan_files(folder, n))]

    if jobs == 1:
        for chunk in settings.chunks():
            yield chunk, _simulate_chunk(settings, missing(chunk), folder, keep)
        return
    # spawned, not forked: the caller may have threads
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        chunks = settings.chunks()
        pending: list[tuple[range, Future[list[Sweep]]]] = []
        try:
            while True:
                for chunk in islice(chunks, jobs + 1 - len(pending)):
                    pending.append((chunk, pool.submit(_simulate_chunk, settings, missing(chunk), folder, keep)))
                if not pending:
                    break
                chunk, future = pending.pop(0)
                yield chunk, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _description(settings: SimulationSettings) -> dict[str, Any]:
    sensor = settings.sensor_model
    values = {key: value for key, value in asdict(settings).items() if key != "scans"}
    description = describe(sensor)
    if not isinstance(settings.sensor, str):
        description["elevations_deg"] = list(sensor.elevations_deg)
    return {"format": FORMAT, **values, "sensor": sensor.name, "sensor_model": description}


def _prepare_folder(folder: Path, settings: SimulationSettings, force: bool) -> bool:
    """Prepare the folder of a sequence. Returns whether its existing scans are of the same settings.

    Raises UserError if it has other files or more scans and `force` is not set.
    """
    path = folder / "simulation.json"
    scans = sorted(folder.glob("velodyne/*.bin"))
    present = scans + sorted(folder.glob("labels/*.label"))
    try:
        same = bool(json.loads(path.read_text(encoding="utf-8")) == _description(settings))
    except (OSError, ValueError):
        same = False
    instead = "choose another --output or --sequence, or overwrite them with --force"
    if present and not same and not force:
        raise UserError(f"{folder} already has {len(present)} files of other settings or another origin; {instead}")
    if scans and scans[-1].stem >= f"{settings.scans:06d}" and not force:
        raise UserError(
            f"{folder} already has {len(scans)} scans, up to {scans[-1].name}; expected at most {settings.scans}: "
            f"pass more --scans, {instead}"
        )
    if force:
        for file in present:
            file.unlink()
    write_atomically(path, (json.dumps(_description(settings), indent=2) + "\n").encode())
    return same and not force


def _write_trajectory(folder: Path, settings: SimulationSettings) -> None:
    simulator = _simulator(settings, 0)
    seconds = np.arange(settings.scans) / simulator.sensor.rate_hz
    poses = np.stack([pose_matrix(pose) for pose in simulator.drive.pose(seconds)])
    write_trajectory(folder, np.rint(seconds * 1e9).astype(np.int64), poses)
