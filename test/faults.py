"""A running node and its client, to do harm to and to see recover, for the tests of faults."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import live
import numpy as np
from clouds import LAYOUTS
from clouds import message as any_message
from conftest import ROOT
from diagnostic_msgs.msg import DiagnosticStatus
from live import RELIABLE, Client, NodeProcess, message, running_node, street, wait_until
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
NAMESPACE = "/faulty"
_stamps = itertools.count(1)


def write_model(path: Path, network: str = "1/16", width: int = 128, seed: int = 0) -> Path:
    """A model file with random weights that labels a scan in some ten milliseconds."""
    from sqsegv3_ros.benchmark.networks import network_config, write_random_model

    write_random_model(path, network_config(network), 64, width, seed)
    return path


@cache
def good_points() -> np.ndarray:
    return street(20_000)


def good_scan(frame: str = "velodyne") -> PointCloud2:
    """A scan that fits the model, with a stamp that no other has."""
    return stamped(message(good_points(), frame=frame))


def stamped(cloud: PointCloud2) -> PointCloud2:
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = 7, next(_stamps)
    return cloud


def in_layout(name: str, points: np.ndarray | None = None, frame: str = "velodyne", rows: int = 1) -> PointCloud2:
    """The points as a cloud of one of the layouts of `clouds`, organised in so many rows."""
    points = good_points() if points is None else points
    filled = np.zeros(len(points), LAYOUTS[name])
    for column, field in enumerate(("x", "y", "z", "intensity")):
        scale = 255 if filled.dtype[field].kind in "ui" else 1
        filled[field] = points[:, column] * scale
    cloud = any_message(
        filled.reshape(rows, -1) if rows > 1 else filled,
        cloud_type=PointCloud2,
        field_type=PointField,
        header=Header(frame_id=frame),
    )
    return stamped(cloud)


class Rig:
    """A node as a process, a client, and what the node has published on ~/output/points."""

    def __init__(self, node: NodeProcess, client: Client, name: str = f"{NAMESPACE}/sqsegv3") -> None:
        self.node = node
        self.client = client
        self.name = name
        self.input = f"{name}/input/points"
        self.qos = RELIABLE
        live.NODE = name
        node.wait_for_log("labelling clouds of")
        self.results = client.collect(PointCloud2, f"{name}/output/points")

    @property
    def pid(self) -> int:
        return self.node.process.pid

    def publish(self, cloud: PointCloud2) -> None:
        self.client.publish(cloud, self.input, self.qos)

    def answer(self, cloud: PointCloud2) -> PointCloud2 | None:
        return next((r for r in list(self.results) if r.header.stamp == cloud.header.stamp), None)

    def labels(
        self, make: Callable[[], PointCloud2] = good_scan, timeout_s: float = 60.0, pause_s: float = 0.5
    ) -> PointCloud2:
        """A scan that comes back labelled: published anew until one does, as a sensor does."""
        end = time.monotonic() + timeout_s
        sent: list[PointCloud2] = []
        while time.monotonic() < end:
            assert self.node.process.poll() is None, self.node.log
            sent.append(make())
            self.publish(sent[-1])
            pause = time.monotonic() + pause_s
            while time.monotonic() < pause:
                for cloud in sent:
                    answer = self.answer(cloud)
                    if answer is not None:
                        self.results.clear()
                        return answer
                time.sleep(0.01)
        raise AssertionError(f"no labelled scan within {timeout_s} s: {self.client.diagnostics}\n{self.node.log}")

    def recovers(self, timeout_s: float = 120.0) -> None:
        """The node labels the next good scans, and its diagnostics go back to OK."""
        end = time.monotonic() + timeout_s
        self.labels()
        self.client.diagnostics.clear()
        while not (len(self.client.diagnostics) >= 3 and all(s.level == OK for s in self.client.diagnostics.values())):
            assert time.monotonic() < end, f"{self.client.diagnostics}\n{self.node.log}"
            self.labels()
        assert "Traceback" not in self.node.log, self.node.log

    def values(self, status: str) -> dict[str, str]:
        return {value.key: value.value for value in self.client.diagnostics[status].values}

    def counts(self) -> dict[str, int]:
        """The counters of input and processing, once all that was sent has come to an end."""
        time.sleep(0.5)
        self.client.diagnostics.clear()
        wait_until(lambda: len(self.client.diagnostics) >= 3, 20, lambda: self.node.log)
        values = {**self.values("input"), **self.values("processing")}
        return {key: int(value) for key, value in values.items() if value.isdigit()}

    def again(self, **parameters: Any) -> bool:
        """Deactivate, clean up, set parameters, configure and activate. Whether the node is active then."""
        client = self.client
        if client.state() == "active":
            assert client.transition("deactivate")
        if client.state() == "inactive":
            assert client.transition("cleanup")
        for accepted, reason in client.set_parameters(**parameters) if parameters else []:
            assert accepted, reason
        return client.transition("configure") and client.transition("activate")


@contextmanager
def rig_of(model: Path, *arguments: str, **parameters: Any) -> Iterator[Rig]:
    """A rig with a node of its own namespace, in which nothing is late."""
    before = live.NODE
    client = Client()
    parameters = {"latency_budget_ms": 60000.0, "stale_after_s": 1.5, "threads": 1, **parameters}
    try:
        with running_node("-r", f"__ns:={NAMESPACE}", *arguments, model=model, **parameters) as node:
            yield Rig(node, client)
    finally:
        live.NODE = before
        client.close()


@contextmanager
def python_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`python -c code arguments` beside the test; it is killed (SIGKILL) at the end."""
    paths = [str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *(str(a) for a in arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def memory_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def threads_and_files(pid: int) -> tuple[int, int]:
    """The number of threads and of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


__all__ = [
    "ERROR",
    "OK",
    "RELIABLE",
    "WARN",
    "Rig",
    "good_points",
    "good_scan",
    "in_layout",
    "memory_mib",
    "python_process",
    "rig_of",
    "stamped",
    "threads_and_files",
    "wait_until",
    "write_model",
]
