# SPDX-License-Identifier: Apache-2.0
"""Ray clusters of several nodes on this machine, and the processes in them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 100 * 1024**2


@contextmanager
def cluster(nodes: int, cpus_per_node: int) -> Iterator[Any]:
    """A cluster whose first node is the head."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # other tests at the same time would starve the workers
    from ray.cluster_utils import Cluster

    node = {"num_cpus": cpus_per_node, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(nodes - 1):
            started.add_node(**node)
        yield started
    finally:
        started.shutdown()


def workers_on(job: str) -> list[int]:
    """Processes whose title says that they are working on a job: Ray names a process after its task."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[0].rstrip() == f"ray::{job}".encode():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@contextmanager
def meanwhile(action: Callable[[], bool], period_s: float = 0.02) -> Iterator[None]:
    """Call an action in another thread until it returns True or the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set() and not action():
            time.sleep(period_s)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def killer(job: str, times: int) -> Callable[[], bool]:
    """An action that kills every worker that takes a job, up to a number of times."""
    killed: set[int] = set()

    def kill() -> bool:
        for process in workers_on(job):
            if process not in killed and len(killed) < times:
                os.kill(process, signal.SIGKILL)
                killed.add(process)
        return len(killed) >= times

    return kill
