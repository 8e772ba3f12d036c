# SPDX-License-Identifier: Apache-2.0
"""Measures what docs/archives.md says of the drivers: `python test/labelling/measure_drivers.py actors|empty`.

actors: bags per second with K Ray actors against K loops of `--shard I/K` at the same time, starts left out.
empty: time and memory of the driver and the manifest for tasks that do nothing.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqsegv3_ros.inference.model_file import find_model
from sqsegv3_ros.inference.settings import SPECS
from sqsegv3_ros.labelling.job import label_in_loop
from sqsegv3_ros.labelling.manifest import Manifest, Record
from sqsegv3_ros.labelling.plan import BagOptions, Job, plan_jobs
from sqsegv3_ros.labelling.ray_driver import LOCAL, Cluster, label_on_ray
from sqsegv3_ros.labelling.run_settings import RunSettings, resolve
from sqsegv3_ros.labelling.workspace import Workspace
from sqsegv3_ros.pointcloud2 import CloudSettings

BAGS, CLOUDS, REPEATS, TASKS = 32, 10, 3, 100_000


def settings_of_run() -> RunSettings:
    """The default model with one thread."""
    parameters: dict[str, Any] = {spec.name: spec.default for spec in SPECS}
    parameters.update(model=str(find_model("")), device="cpu", threads=1)
    return resolve(parameters, BagOptions(), CloudSettings(), "quarantine")[0]


def finished_at(records: Iterator[Record], manifest: Manifest | None = None) -> list[float]:
    """When each record came, in seconds; all must be done."""
    times = []
    for record in records:
        assert record.status == "done", record.error
        if manifest is not None:
            manifest.add(record)
        times.append(time.perf_counter())
    return times


def loop_rate(jobs: Sequence[Job], settings: RunSettings) -> float:
    """Bags per second of one loop, after its first bag."""
    workspace = Workspace(Path(tempfile.gettempdir()) / "cache", 0)
    segmenter = settings.make_segmenter(Path(settings.parameters["model"]))
    times = finished_at(label_in_loop(segmenter, jobs, settings, workspace, lambda size: None))
    return (len(times) - 1) / (times[-1] - times[0])


def ray_rate(jobs: Sequence[Job], settings: RunSettings, actors: int) -> float:
    """Bags per second of Ray, after the first bag of each actor."""
    cluster = Cluster(LOCAL, actors, 2 / actors if actors > 2 else 1.0, 0.0)
    times = finished_at(label_on_ray(jobs, settings, cluster, Path("/nowhere"), 0, print))
    return (len(times) - actors) / (times[-1] - times[actors - 1])


def measure_actors(folder: Path) -> None:
    from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate_sweeps
    from sqsegv3_ros.simulation.simulated_bag import simulated_bag

    sweeps = list(simulate_sweeps(SimulationSettings(CLOUDS, "hdl64e"), range(CLOUDS)))
    for number in range(BAGS):
        with simulated_bag(folder / "in" / f"{number:03d}", 10.0) as write:
            for index, sweep in enumerate(sweeps):
                write(sweep, index)
    settings = settings_of_run()
    jobs = plan_jobs([str(folder / "in")], str(folder / "out"), None, BagOptions())
    print(settings.runtime(), f"{BAGS} bags of {CLOUDS} clouds with {len(sweeps[0].points)} points")
    for actors in (1, 2, 4):
        loops, rays = [], []
        for _ in range(REPEATS):
            with ProcessPoolExecutor(actors, mp_context=get_context("spawn")) as pool:
                shards = [jobs[i::actors] for i in range(actors)]
                loops.append(sum(pool.map(loop_rate, shards, [settings] * actors)))
            rays.append(ray_rate(jobs, settings, actors))
        loop, ray = statistics.median(loops), statistics.median(rays)
        overhead_ms = 1e3 * actors * (1 / ray - 1 / loop)
        print(
            f"{actors}: loops {loops}, ray {rays} bags/s; overhead {overhead_ms:.1f} ms per bag, {loop / ray - 1:.1%}"
        )


def measure_empty(folder: Path) -> None:
    jobs = [Job(f"day/{number:06d}", "/archive", "/labelled", 0) for number in range(TASKS)]
    settings = settings_of_run()
    workspace = Workspace(folder / "cache", 0)

    def memory_mib() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    print(f"{memory_mib()} MiB before")
    manifest = Manifest(str(folder / "out"), "", settings.identity(), workspace)
    with manifest:
        cluster = Cluster(LOCAL, 2, 1.0, 0.0)
        times = finished_at(label_on_ray(jobs, settings, cluster, Path("/nowhere"), 0, print), manifest)
    seconds = times[-1] - times[0]
    print(f"{TASKS} tasks: {seconds:.0f} s, {1e3 * seconds / TASKS:.2f} ms each, driver {memory_mib()} MiB at most")
    begin = time.perf_counter()
    again = Manifest(str(folder / "out"), "", settings.identity(), workspace)
    again.read()
    left = again.remaining(jobs)
    size = Path(again.location).stat().st_size
    print(json.dumps({"manifest_mb": size / 1e6, "read_s": time.perf_counter() - begin, "left": len(left)}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        {"actors": measure_actors, "empty": measure_empty}[sys.argv[1]](Path(scratch))
