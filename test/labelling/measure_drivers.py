# SPDX-License-Identifier: Apache-2.0
"""Measures what docs/archives.md says of the drivers: `python test/labelling/measure_drivers.py actors|empty|wait`.

actors: wall and CPU time for a bag with K Ray actors and with K plain loops. Both run at the same time, so that other
    work slows both; starts are left out.
empty: time and memory of the driver and the manifest for tasks that do nothing.
wait: time that the driver needs to find the one of many actors that has finished.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, takewhile
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqsegv3_ros import process
from sqsegv3_ros.inference.model_file import find_model
from sqsegv3_ros.inference.settings import DEFAULTS
from sqsegv3_ros.labelling.job import label_in_loop
from sqsegv3_ros.labelling.manifest import Manifest, Record
from sqsegv3_ros.labelling.plan import BagOptions, Job, plan_jobs
from sqsegv3_ros.labelling.ray_driver import LOCAL, Cluster, label_on_ray
from sqsegv3_ros.labelling.run_settings import RunSettings, resolve
from sqsegv3_ros.labelling.workspace import Workspace
from sqsegv3_ros.pointcloud2 import CloudSettings

BAGS, CLOUDS, REPEATS, TASKS = 24, 10, 3, 100_000
RAY_NICENESS = 15  # Ray's default for workers; on a busy machine it halves their share


def settings_of_run() -> RunSettings:
    """The default model with one thread."""
    parameters = {**DEFAULTS, "model": str(find_model("")), "device": "cpu", "threads": 1}
    return resolve(parameters, BagOptions(), CloudSettings(), "quarantine")[0]


@dataclass(frozen=True)
class Moment:
    """When a bag was done, and the CPU time of the processes that label until then, seconds."""

    wall: float
    cpu: float


def moments(records: Iterator[Record], cpu: Callable[[], float], manifest: Manifest | None = None) -> list[Moment]:
    """When each record came; all must be done."""
    found = []
    for record in records:
        assert record.status == "done", record.error
        if manifest is not None:
            manifest.add(record)
        found.append(Moment(time.perf_counter(), cpu()))
    return found


def cpu_of_actors() -> float:
    """CPU time of the processes that Ray names after a task or the class of an actor."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes()
            if title.startswith(b"ray::") and not title.startswith((b"ray::IDLE", b"ray::Dash", b"ray::Runtime")):
                total += sum(int(field) for field in (path / "stat").read_text().rpartition(")")[2].split()[11:13])
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


def loop_moments(jobs: Sequence[Job], settings: RunSettings, end: Path) -> list[Moment]:
    """Label the jobs round and round until the file `end` exists."""
    workspace = Workspace(Path(tempfile.gettempdir()) / "cache", 0)
    segmenter = settings.make_segmenter(Path(settings.parameters["model"]))
    rounds = takewhile(lambda job: not end.exists(), cycle(jobs))
    return moments(label_in_loop(segmenter, rounds, settings, workspace, lambda size: None), time.process_time)


def prepare_loop() -> None:
    """Run as the command does, with the priority and the OpenMP threads that Ray gives an actor of one core."""
    process.prepare()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(RAY_NICENESS)


def compare(jobs: Sequence[Job], beside: Sequence[Job], settings: RunSettings, actors: int) -> tuple[float, float]:
    """Ray's wall time and CPU time for a bag beside those of a loop, as ratios, without the first bag of each actor."""
    cluster = Cluster(LOCAL, actors, 2 / actors if actors > 2 else 1.0, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        end = Path(scratch) / "end"
        with ProcessPoolExecutor(actors, get_context("spawn"), prepare_loop) as pool:
            loops = [pool.submit(loop_moments, beside[i::actors], settings, end) for i in range(actors)]
            found = moments(label_on_ray(jobs, settings, cluster, Path("/nowhere"), 0, print), cpu_of_actors)
            end.touch()
    first, last = found[actors - 1], found[-1]
    rate, cpu, bags = 0.0, 0.0, 0
    for loop in loops:
        within = [moment for moment in loop.result() if first.wall <= moment.wall <= last.wall]
        rate += (len(within) - 1) / (within[-1].wall - within[0].wall)
        cpu, bags = cpu + within[-1].cpu - within[0].cpu, bags + len(within) - 1
    done = len(found) - actors
    return (last.wall - first.wall) / done * rate, (last.cpu - first.cpu) / done / (cpu / bags)


def measure_actors(folder: Path) -> None:
    from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate_sweeps
    from sqsegv3_ros.simulation.simulated_bag import simulated_bag

    sweeps = list(simulate_sweeps(SimulationSettings(CLOUDS, "hdl64e"), range(CLOUDS)))
    for number in range(BAGS):
        with simulated_bag(folder / "in" / f"{number:03d}", 10.0) as write:
            for index, sweep in enumerate(sweeps):
                write(sweep, index)
    settings = settings_of_run()
    jobs, beside = (plan_jobs([str(folder / "in")], str(folder / name), None, BagOptions()) for name in ("ray", "loop"))
    print(settings.runtime(), f"{BAGS} bags of {CLOUDS} clouds with {len(sweeps[0].points)} points")
    for actors in (1, 2, 4):
        ratios = [compare(jobs, beside, settings, actors) for _ in range(REPEATS)]
        wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(f"{actors}: wall and CPU time against the loop {ratios}; median {wall:.3f}, {cpu:.3f}", flush=True)


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
        found = moments(label_on_ray(jobs, settings, cluster, Path("/nowhere"), 0, print), time.process_time, manifest)
    seconds = found[-1].wall - found[0].wall
    print(f"{TASKS} tasks: {seconds:.0f} s, {1e3 * seconds / TASKS:.2f} ms each, driver {memory_mib()} MiB at most")
    begin = time.perf_counter()
    again = Manifest(str(folder / "out"), "", settings.identity(), workspace)
    again.read()
    left = again.remaining(jobs)
    size = Path(again.location).stat().st_size
    print(json.dumps({"manifest_mb": size / 1e6, "read_s": time.perf_counter() - begin, "left": len(left)}))


def measure_wait(_: Path) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    class Actor:
        def pause(self, seconds: float) -> None:
            time.sleep(seconds)

    ray.init(LOCAL, num_cpus=2, object_store_memory=100 * 1024**2, log_to_driver=False)
    busy, quick = Actor.remote(), Actor.remote()  # the first one's calls queue up, as those of many actors would be
    for actors in (1, 100, 1000, 5000):
        running = [busy.pause.remote(60.0) for _ in range(actors - 1)]
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            ready, _ = ray.wait([*running, quick.pause.remote(0.0)], num_returns=1)
            ray.get(ready)
            times.append(1e3 * (time.perf_counter() - begin))
        print(f"{actors} actors: {statistics.median(times):.2f} ms for a result")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        {"actors": measure_actors, "empty": measure_empty, "wait": measure_wait}[sys.argv[1]](Path(scratch))
