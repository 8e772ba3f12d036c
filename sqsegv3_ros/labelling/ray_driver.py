# SPDX-License-Identifier: Apache-2.0
"""Labelling of many jobs on a Ray cluster: one segmenter per actor, idle actors take the next job."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqsegv3_ros import process
from sqsegv3_ros.errors import OperationError, UserError, missing_package, require
from sqsegv3_ros.labelling.job import INFERENCE_FAILED, label_job, utc_now
from sqsegv3_ros.labelling.manifest import FAILED, QUARANTINED, Record
from sqsegv3_ros.labelling.plan import Job
from sqsegv3_ros.labelling.run_settings import FAIL, RunSettings
from sqsegv3_ros.labelling.workspace import Workspace

LOCAL, AUTO = "local", "auto"
MAX_ATTEMPTS = 3
WORKER_DIED = "worker died"
OBJECT_STORE_BYTES = 100 * 1024**2  # only the model and the records pass through it
PROBE_S = 5.0
_PATIENCE_S = 60.0
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster to use, and how much of it.

    Attributes:
        address: 'local' starts Ray on this machine; otherwise the address of a cluster, 'auto' for this machine's.
        num_actors: Number of actors; None for as many as fit.
        cpus_per_actor: CPU cores that Ray reserves for an actor.
        gpus_per_actor: GPUs that Ray reserves for an actor; fractions share a GPU.
    """

    address: str
    num_actors: int | None
    cpus_per_actor: float
    gpus_per_actor: float

    def __post_init__(self) -> None:
        actors = self.num_actors
        require(actors is None or actors > 0, "--num-actors", "1 or more", actors)
        require(0 < self.cpus_per_actor < 1e4, "--cpus-per-actor", "above 0", self.cpus_per_actor)
        require(0 <= self.gpus_per_actor < 1e3, "--gpus-per-actor", "0 or more", self.gpus_per_actor)


class Worker:
    """The actor that labels jobs. It loads nothing before `prepare`.

    Args:
        settings: Settings of the run.
        model: Content of the model file.
        cache: Folder for copies of remote files.
        limit_bytes: Largest input that is fetched.
    """

    def __init__(self, settings: RunSettings, model: bytes, cache: Path, limit_bytes: int) -> None:
        process.prepare()
        self._settings, self._model = settings, model
        self._workspace = Workspace(cache, limit_bytes)
        self._segmenter: Any = None

    def prepare(self) -> str:
        """Load the model with the settings of the run.

        Returns:
            Why this machine cannot meet the settings; '' if it can.
        """
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            file.write(self._model)
            file.flush()
            try:
                self._segmenter = self._settings.make_segmenter(Path(file.name))
            except (UserError, RuntimeError) as error:  # RuntimeError: of torch, such as a broken GPU
                return f"{os.uname().nodename}: {error}"
        self._model = b""
        return ""

    def label(self, job: Job) -> Record:
        """Label a job. See `label_job`."""
        return label_job(self._segmenter, job, self._settings, self._workspace)


def label_on_ray(
    jobs: Sequence[Job],
    settings: RunSettings,
    cluster: Cluster,
    cache: Path,
    limit_bytes: int,
    say: Callable[[str], None],
) -> Generator[Record]:
    """Label jobs on a Ray cluster, the largest first.

    A job whose worker or node died, or whose inference failed, is retried, by at most `MAX_ATTEMPTS` workers in
    all. A worker that cannot meet the settings gets no job.

    Args:
        jobs: The jobs.
        settings: Settings of the run.
        cluster: Which cluster to use.
        cache: Folder for copies of remote files, on every machine.
        limit_bytes: Largest input that is fetched.
        say: Prints what an operator should know.

    Yields:
        The outcome of each job, in the order in which they end.

    Raises:
        UserError: Ray is not installed or the cluster not found, or an output cannot be written.
        OperationError: No worker is left.
    """
    ray, dashboard = _connect(cluster)
    try:
        model = ray.put(Path(settings.parameters["model"]).read_bytes())
        options = {"num_cpus": cluster.cpus_per_actor, "num_gpus": cluster.gpus_per_actor}
        actor = ray.remote(**options)(Worker)
        count = min(len(jobs), cluster.num_actors or _capacity(ray, cluster))
        say(f"{count} actors on Ray, {settings.runtime()}{dashboard}")
        pool = _Pool(ray, lambda: actor.remote(settings, model, cache, limit_bytes), settings.on_error, say)
        yield from pool.run(jobs, count)
    finally:
        ray.shutdown()


class _Pool:
    """Actors, their running jobs, and the waiting jobs."""

    def __init__(self, ray: Any, make_actor: Callable[[], Any], on_error: str, say: Callable[[str], None]) -> None:
        self._ray, self._make_actor, self._on_error, self._say = ray, make_actor, on_error, say
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, tuple[Any, Job | None]] = {}  # by reference to the result; no job: prepares
        self._idle: list[Any] = []
        self._attempts: dict[str, int] = {}
        self._refusals: dict[str, None] = {}
        self._failed_starts = 0

    def run(self, jobs: Sequence[Job], count: int) -> Iterator[Record]:
        """Run all jobs on `count` actors."""
        self._waiting.extend(sorted(jobs, key=lambda job: -job.size))
        for _ in range(count):
            self._start_actor()
        while self._waiting or any(job is not None for _, job in self._running.values()):
            if not self._running:
                reasons = "; ".join(self._refusals) or "they died while loading the model, see Ray's logs"
                raise OperationError(f"no worker is left: {reasons}")
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_PATIENCE_S)
            if not ready and all(job is None for _, job in self._running.values()):
                self._say("waiting for the cluster to start workers: see `ray status` for its free resources")
            for reference in ready:
                record = self._finish(reference)
                if record is not None:
                    yield record
            self._assign()

    def _start_actor(self) -> None:
        actor = self._make_actor()
        self._running[actor.prepare.remote()] = actor, None

    def _assign(self) -> None:
        while self._waiting and self._idle:
            actor, job = self._idle.pop(), self._waiting.popleft()
            self._running[actor.label.options(name=job.name).remote(job)] = actor, job

    def _finish(self, reference: Any) -> Record | None:
        """Take a result. Returns the record if a job has ended."""
        actor, job = self._running.pop(reference)
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            return self._replace(actor, job, WORKER_DIED, _reason(error))
        if job is None:
            if result:
                self._refuse(actor, result)
                return None
            self._failed_starts = 0
            self._idle.append(actor)
            return None
        assert isinstance(result, Record)
        if result.reason == INFERENCE_FAILED:  # its GPU may be broken: it would spoil one job after another
            return self._replace(actor, job, INFERENCE_FAILED, result.error)
        self._idle.append(actor)
        return replace(result, attempts=self._attempts.pop(job.name, 0) + 1)

    def _refuse(self, actor: Any, reason: str) -> None:
        """Dismiss a worker that cannot meet the settings, without replacement: that would start on the same machine."""
        if reason not in self._refusals:
            self._say(f"worker refused: {reason}")
        self._refusals[reason] = None
        self._ray.kill(actor)

    def _replace(self, actor: Any, job: Job | None, reason: str, error: str) -> Record | None:
        """Replace a worker that failed, and give its job to another one or up."""
        self._ray.kill(actor)  # a dead one may only be out of reach
        self._failed_starts += job is None
        if self._failed_starts < MAX_ATTEMPTS:
            self._start_actor()
        if job is None:
            return None
        attempts = self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
        if attempts < MAX_ATTEMPTS:
            self._say(f"{job.name}: {reason}; retrying")
            self._waiting.appendleft(job)
            return None
        return Record(
            name=job.name,
            input=job.input,
            size=job.size,
            status=FAILED if self._on_error == FAIL else QUARANTINED,
            reason=reason,
            error=f"{job.input}: {attempts} workers failed; the last: {error}",
            attempts=attempts,
            finished=utc_now(),
        )


def _reason(error: Exception) -> str:
    """Ray's reason in one line, without its table of ids."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return " ".join(lines)[:_REASON_LENGTH] or type(error).__name__


def _connect(cluster: Cluster) -> tuple[Any, str]:
    """Start Ray on this machine or join a cluster. Returns ray and a human-readable address of its dashboard."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # its counters by task name are never freed: 11 KB in driver and worker for each job, as each has its own name
    os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112  # as Ray spells it
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray", "--ray", "cluster") from error
    from sqsegv3_ros.inference.backends import usable_cores

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address, source = _resolve(cluster.address)
    try:
        if address == LOCAL:
            context = ray.init(LOCAL, num_cpus=usable_cores(), object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            _probe(address, source)
            context = ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == AUTO and isinstance(error, ConnectionError):
            raise UserError(
                "no Ray cluster on this machine: start one with `ray start --head`, pass --ray HOST:PORT, or --ray "
                "without an address"
            ) from error
        raise UserError(f"Ray cannot be reached at '{address}' (from {source}): {error}") from error
    return ray, f", dashboard http://{context.dashboard_url}" if context.dashboard_url else ""


def _resolve(address: str) -> tuple[str, str]:
    """The address to use and what sets it: for Ray, 'auto' is the address in RAY_ADDRESS if that is set."""
    from_environment = os.environ.get("RAY_ADDRESS") if address == AUTO else None
    return (from_environment, "RAY_ADDRESS") if from_environment else (address, "--ray")


def _probe(address: str, source: str) -> None:
    """Raise UserError if nothing listens at an address, as Ray itself retries for more than a minute."""
    if address == AUTO:
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise UserError(f"{source} must be HOST:PORT, such as head:6379, or auto or local, found '{address}'")
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except UnicodeError as error:  # not a name for DNS, such as one with more than 63 characters between dots
        raise UserError(f"{source} names no valid host: '{host}'") from error
    except OSError as error:
        raise UserError(
            f"no Ray cluster at {address}, from {source} (TCP connection, {PROBE_S:g} s: {error.strerror or error}): "
            f"start it there with `ray start --head`, or set {source} to the address that it printed"
        ) from error


def _capacity(ray: Any, cluster: Cluster) -> int:
    """Number of actors that fit on the nodes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = 0
    for node in nodes:
        by_cpu = node.get("CPU", 0) / cluster.cpus_per_actor
        by_gpu = node.get("GPU", 0) / cluster.gpus_per_actor if cluster.gpus_per_actor else by_cpu
        fits += int(min(by_cpu, by_gpu) + 1e-6)
    if not fits:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"no node has room for an actor with {cluster.cpus_per_actor:g} CPUs and {cluster.gpus_per_actor:g} GPUs "
            f"(nodes: {has})"
        )
    return fits
