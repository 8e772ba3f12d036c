# SPDX-License-Identifier: Apache-2.0
"""A running node with a client, for tests that inject faults and check the recovery."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from clouds import LAYOUTS
from clouds import message as any_message
from diagnostic_msgs.msg import DiagnosticStatus
from live import RELIABLE, Client, message, street
from programs import PythonProcess, running_node, wait_until
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
NAMESPACE = "/faulty"
_stamps = itertools.count(1)


def write_model(path: Path, network: str = "1/16", width: int = 128, seed: int = 0) -> Path:
    """Write a model file with random weights that labels a scan in tens of milliseconds."""
    from sqsegv3_ros.benchmark.networks import network_config, write_random_model

    write_random_model(path, network_config(network), 64, width, seed)
    return path


@cache
def good_points() -> np.ndarray:
    return street(20_000)


def good_scan(frame: str = "velodyne") -> PointCloud2:
    """A scan that fits the model, with a unique stamp."""
    return stamped(message(good_points(), frame=frame))


def stamped(cloud: PointCloud2) -> PointCloud2:
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = 7, next(_stamps)
    return cloud


def in_layout(name: str, points: np.ndarray | None = None, frame: str = "velodyne", rows: int = 1) -> PointCloud2:
    """Points as a cloud in one of `clouds.LAYOUTS`, organised in rows."""
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

    def __init__(self, node: PythonProcess, client: Client) -> None:
        self.node = node
        self.client = client
        self.name = name = client.target
        self.input = f"{name}/input/points"
        self.qos = RELIABLE
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
        """Publish scans, as a sensor does, until one is labelled."""
        end = time.monotonic() + timeout_s
        sent: list[PointCloud2] = []
        while time.monotonic() < end:
            assert self.node.is_running, self.node.log
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
        """Check that the node labels good scans and its diagnostics return to OK."""
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
        """The counters of input and processing, after the clouds in transport have arrived."""
        time.sleep(0.5)
        self.client.diagnostics.clear()
        wait_until(lambda: len(self.client.diagnostics) >= 3, 20, lambda: self.node.log)
        values = {**self.values("input"), **self.values("processing")}
        return {key: int(value) for key, value in values.items() if value.isdigit()}

    def reconfigure(self, **parameters: Any) -> bool:
        """Deactivate, clean up, set parameters, configure and activate. Returns whether the node is active."""
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
    """A rig whose node has a namespace of its own and a latency budget that no cloud exceeds."""
    client = Client(f"{NAMESPACE}/sqsegv3")
    parameters = {"latency_budget_ms": 60000.0, "stale_after_s": 1.5, "threads": 1, **parameters}
    try:
        with running_node("-r", f"__ns:={NAMESPACE}", *arguments, model=model, **parameters) as node:
            yield Rig(node, client)
    finally:
        client.close()


def memory_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def threads_and_files(pid: int) -> tuple[int, int]:
    """The number of threads and of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
