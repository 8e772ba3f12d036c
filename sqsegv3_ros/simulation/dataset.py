"""Simulated data sets: settings in; scans, labels and poses in SemanticKITTI's layout, and a bag, out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.data import semantic_kitti as kitti
from sqsegv3_ros.data.sequences import write_trajectory
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.simulation.drive import matrix
from sqsegv3_ros.simulation.plans import SCENES
from sqsegv3_ros.simulation.sensors import describe, sensor_named
from sqsegv3_ros.simulation.simulator import SCANS_PER_STREET, Simulator, Sweep, scene_drive, street_drive
from sqsegv3_ros.simulation.street import Street

FORMAT = 2  # raised when the same settings give other scans
DRIVE_CHUNK = 40


@dataclass(frozen=True)
class Settings:
    """What is to be simulated.

    scans: how many. drive: consecutive sweeps of one drive instead of independent scenes. motion: 'compensated' for
    points as seen from the sweep's middle (as KITTI publishes them), 'raw' for points as the turning sensor measures
    them.
    """

    scans: int
    sensor: str = "hdl64e"
    seed: int = 0
    scene: str = "mixed"
    drive: bool = False
    motion: str = "compensated"

    def __post_init__(self) -> None:
        if self.scans < 1:
            raise UserError(f"scans must be at least 1, found {self.scans}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must lie in 0..2**63-1, found {self.seed}")
        if self.scene not in SCENES:
            raise UserError(f"no scene '{self.scene}' (scenes: {', '.join(SCENES)})")
        if self.motion not in ("compensated", "raw"):
            raise UserError(f"motion must be compensated or raw, found '{self.motion}'")
        sensor_named(self.sensor)

    def chunks(self) -> Iterator[range]:
        """The scans in portions that share a street."""
        size = DRIVE_CHUNK if self.drive else SCANS_PER_STREET
        for start in range(0, self.scans, size):
            yield range(start, min(start + size, self.scans))


@lru_cache(maxsize=1)
def _driven(settings: Settings) -> Simulator:
    """The one street of a drive, kept from chunk to chunk."""
    sensor = sensor_named(settings.sensor)
    seed = (settings.seed, 0)
    # a drive does not get farther than 30 m/s; the plan costs a few numbers a metre
    street = Street(settings.scene, seed, (-50.0, 50.0 + 30.0 * settings.scans / sensor.rate_hz))
    return Simulator(street, sensor, street_drive(street, sensor, seed), seed, settings.motion == "compensated")


def sweeps(settings: Settings, numbers: Iterable[int]) -> Iterator[Sweep]:
    """The sweeps of the given numbers, one after the other. Neighbours share a street, so ask for them in order."""
    if settings.drive:
        driven = _driven(settings)
        for number in numbers:
            yield driven.sweep(number)
        return
    sensor = sensor_named(settings.sensor)
    current = -1
    simulator: Simulator | None = None
    for number in numbers:
        index, within = divmod(number, SCANS_PER_STREET)
        seed = (settings.seed, 1, index)
        if simulator is None or index != current:
            street = Street(settings.scene, seed)
            drive = scene_drive(street, sensor, seed, 0)
            simulator, current = Simulator(street, sensor, drive, seed, settings.motion == "compensated"), index
        simulator.drive = scene_drive(simulator.street, sensor, seed, within)
        yield simulator.sweep(within, stamp=0.0, traffic_s=41.0 * within)  # other traffic each time


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / "velodyne" / f"{number:06d}.bin", folder / "labels" / f"{number:06d}.label"


def _worked(settings: Settings, numbers: list[int], folder: Path | None, keep: bool) -> list[Sweep]:
    """Simulate a portion and write it (in a worker); the sweeps come back only where somebody wants them."""
    kept = []
    for number, sweep in zip(numbers, sweeps(settings, numbers), strict=True):
        if folder is not None:
            scan, labels = _files(folder, number)
            kitti.write_labels(labels, sweep.labels)
            kitti.write_scan(scan, sweep.points)  # last: a scan that is there is whole
        if keep:
            kept.append(sweep)
    return kept


def _produced(
    settings: Settings, folder: Path | None, skip: bool, keep: bool, jobs: int
) -> Iterator[tuple[int, list[Sweep]]]:
    """(scans done, sweeps) portion by portion, in order. No more portions are under way than there are workers."""

    def wanted(chunk: range) -> list[int]:
        if not skip or keep or folder is None:
            return list(chunk)
        return [n for n in chunk if not all(file.is_file() for file in _files(folder, n))]

    if jobs == 1:
        for chunk in settings.chunks():
            yield len(chunk), _worked(settings, wanted(chunk), folder, keep)
        return
    # spawned, not forked: whoever calls this may have threads
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        chunks = settings.chunks()
        under_way: list[tuple[int, Future[list[Sweep]]]] = []
        try:
            while True:
                for chunk in islice(chunks, jobs + 1 - len(under_way)):
                    under_way.append((len(chunk), pool.submit(_worked, settings, wanted(chunk), folder, keep)))
                if not under_way:
                    break
                count, future = under_way.pop(0)
                yield count, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _described(settings: Settings) -> dict[str, Any]:
    told = {key: value for key, value in asdict(settings).items() if key != "scans"}
    return {"format": FORMAT, **told, "sensor_model": describe(sensor_named(settings.sensor))}


def _prepared(folder: Path, settings: Settings, force: bool) -> bool:
    """Make the sequence's folder fit to write into; whether scans that are there already belong to the same settings.

    Raises UserError where it holds something else and force is not set.
    """
    note = folder / "simulation.json"
    present = sorted(folder.glob("velodyne/*.bin")) + sorted(folder.glob("labels/*.label"))
    same = False
    if note.is_file():
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == _described(settings)
        except (OSError, ValueError):
            same = False
    if present and not same:
        if not force:
            raise UserError(
                f"{folder} already holds {len(present)} files, made with other settings or otherwise; "
                "choose another --output or --sequence, or overwrite them with --force"
            )
        for file in present:
            file.unlink()
    kitti.write_atomically(note, (json.dumps(_described(settings), indent=2) + "\n").encode())
    return same and not force


def _write_trajectory(folder: Path, settings: Settings) -> None:
    simulator = _driven(settings)
    seconds = np.arange(settings.scans) / simulator.sensor.rate_hz
    poses = np.stack([matrix(pose) for pose in simulator.drive.pose(seconds)])
    write_trajectory(folder, np.round(seconds * 1e9).astype(np.int64), poses)


def simulate(
    settings: Settings,
    output: Path | None = None,
    bag: Path | None = None,
    *,
    sequence: str = "00",
    force: bool = False,
    jobs: int = 1,
) -> Iterator[int]:
    """Simulate and write. Yields the number of scans done with every portion.

    output: a SemanticKITTI root; scans that are there from an interrupted run with the same settings are kept. bag: a
    ROS 2 bag. Raises UserError for paths that cannot be used.
    """
    if output is None and bag is None:
        raise UserError("nowhere to write to: give --output or --bag")
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, found {jobs}")
    if not (len(sequence) == 2 and sequence.isdigit()):
        raise UserError(f"sequence must be two digits ('00'), found '{sequence}'")
    folder = None if output is None else output / "sequences" / sequence
    if bag is None:
        skip = folder is not None and _prepared(folder, settings, force)
        for count, _ in _produced(settings, folder, skip, False, jobs):
            yield count
    else:
        from sqsegv3_ros.simulation.simulated_bag import SimulatedBag

        rate_hz = sensor_named(settings.sensor).rate_hz
        with SimulatedBag(bag, rate_hz, poses=settings.drive, force=force) as writer:
            if folder is not None:
                _prepared(folder, settings, force)
            done = 0
            for count, portion in _produced(settings, folder, False, True, jobs):
                for number, sweep in enumerate(portion, start=done):
                    writer.write(sweep, number)
                done += count
                yield count
    if folder is not None and settings.drive:
        _write_trajectory(folder, settings)
