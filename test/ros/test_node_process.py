# SPDX-License-Identifier: Apache-2.0
"""The node as a process: signals, jumps of simulated time, several nodes, and a long inference."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from faults import Rig, good_scan, rig_of, stamped, write_model
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from live import Client, message, street
from programs import depends_on_discovery, running, running_node, wait_until
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2

pytestmark = depends_on_discovery


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pt")


# ---- time ----------------------------------------------------------------------------------------------------------


def test_simulated_time_may_jump_and_stop(model: Path) -> None:
    with rig_of(model, use_sim_time=True) as rig:
        clock = rig.client.node.create_publisher(Clock, "/clock", 10)
        stamps: list[float] = []
        rig.client.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda a: stamps.append(a.header.stamp.sec), 10
        )

        def is_stamped_with(seconds: int) -> bool:
            clock.publish(Clock(clock=Time(seconds=seconds).to_msg()))  # again: it may not be connected yet
            return seconds in stamps[-2:]

        for seconds in (4000, 50, 2_000_000_000):
            wait_until(lambda s=seconds: is_stamped_with(s), 20, lambda: stamps)
            rig.labels()
        # /clock has stopped, but diagnostics follow steady time
        stamps.clear()
        begin = time.monotonic()
        wait_until(lambda: len(stamps) >= 3, 20)
        assert time.monotonic() - begin > 1.5 and set(stamps) == {2_000_000_000}
        rig.client.status("input", lambda s: "stale" in s.message)
        rig.recovers()


# ---- signals -------------------------------------------------------------------------------------------------------


def end_at(model: Path, number: signal.Signals, after_s: float) -> None:
    """Send a signal at a time after the start."""
    with running_node("-r", "__ns:=/ending", model=model, threads=1) as node:
        time.sleep(after_s)
        code = node.stop(number, timeout_s=40)
        if code != 0:  # the signal came during the imports before `main`
            assert code in (-number, -signal.SIGTERM, -signal.SIGABRT, 1) and "INFO" not in node.log, (
                code,
                after_s,
                node.log,
            )
        else:
            assert "Traceback" not in node.log, (after_s, node.log)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_the_node_cleanly(model: Path, number: signal.Signals) -> None:
    rng = np.random.default_rng(int(number))
    for after_s in rng.uniform(0, 8, 40):
        end_at(model, number, float(after_s))


# ---- several nodes -------------------------------------------------------------------------------------------------

TWO = """
import sys, rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sqsegv3_ros.ros.segment_node import SegmentNode, spin
rclpy.init()
executor = SingleThreadedExecutor()
for name in ("front", "rear"):
    values = {"model": sys.argv[1], "threads": 1, "latency_budget_ms": 60000.0, "stale_after_s": 60.0}
    node = SegmentNode(namespace=name, parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    executor.add_node(node)
    node.trigger_configure()
    node.trigger_activate()
def broken_timer():
    1 / 0
node.create_timer(0.5, broken_timer)
spin(executor, node)
"""


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client("/front/sqsegv3")
    yield client
    client.close()


def label_all(client: Client, names: list[str], timeout_s: float = 60.0) -> None:
    """Publish different scans to all nodes until each has labelled one."""
    results = {name: client.collect(PointCloud2, f"{name}/output/points", connected=False) for name in names}
    clouds = {name: good_scan(frame=name.strip("/").replace("/", "_")) for name in names}

    def publish() -> bool:
        for name in names:
            if not results[name]:
                client.publish(stamped(clouds[name]), f"{name}/input/points")
        time.sleep(0.2)
        return all(results.values())

    wait_until(publish, timeout_s, lambda: [name for name in names if not results[name]])
    for name in names:
        assert {r.header.frame_id for r in results[name]} == {clouds[name].header.frame_id}


def test_two_nodes_share_a_process_and_a_callback_that_raises_is_named(model: Path, client: Client) -> None:
    seen: set[str] = set()
    client.node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda a: seen.update(w for s in a.status for w in (s.name, s.message)),
        10,
    )
    names = ["/front/sqsegv3", "/rear/sqsegv3"]
    with running("-c", TWO, model) as process:  # and a timer of the second raises again and again
        failure = r"callback broken_timer \(<string>:\d+\) failed: ZeroDivisionError: division by zero"
        wait_until(lambda: any(re.fullmatch(failure, text) for text in seen), 60, lambda: f"{seen}\n{process.log}")
        assert re.search(failure, process.log) and "labelling failed" not in process.log, process.log
        label_all(client, names)
        wait_until(lambda: {"/front/sqsegv3: model", "/rear/sqsegv3: processing"} <= seen, 20, lambda: seen)
        assert client.transition("deactivate") and client.transition("cleanup")
        label_all(client, names[1:])
        assert client.transition("configure") and client.transition("activate")
        label_all(client, names)
        assert process.is_running


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_nodes_share_a_machine(model: Path, client: Client) -> None:
    names = [f"/robot_{i}/sqsegv3" for i in range(10)]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(running_node("-r", f"__ns:=/robot_{i}", model=model, threads=1)) for i in range(10)
        ]
        for node in nodes:
            node.wait_for_log("labelling clouds of", 240)
        label_all(client, names, 120)
        nodes[3].stop(signal.SIGKILL)
        label_all(client, names[:3] + names[4:], 120)
        assert [node.stop() for i, node in enumerate(nodes) if i != 3] == [0] * 9


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "slow.pt", "21", 1024)


class Service:
    """A service of the node with a connected client, like that of a robot's supervisor."""

    def __init__(self, rig: Rig, kind: type, name: str) -> None:
        self.kind = kind
        self.client = rig.client.node.create_client(kind, f"{rig.name}/{name}")
        assert self.client.wait_for_service(20)

    def took_ms(self, **request: object) -> float:
        begin = time.monotonic()
        done = threading.Event()
        self.client.call_async(self.kind.Request(**request)).add_done_callback(lambda _: done.set())
        assert done.wait(20)
        return 1e3 * (time.monotonic() - begin)


def test_services_parameters_and_diagnostics_respond_during_a_long_inference(slow_model: Path) -> None:
    with rig_of(slow_model, stale_after_s=60.0) as rig:
        services = [
            (Service(rig, GetState, "get_state"), {}),
            (Service(rig, GetParameters, "get_parameters"), {"names": ["model", "knn.k"]}),
            (Service(rig, ListParameters, "list_parameters"), {}),
            (Service(rig, SetParameters, "set_parameters"), {"parameters": knn_k(7)}),
        ]
        times: list[float] = []
        rig.client.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda _: times.append(time.monotonic()), 10
        )
        rig.labels(timeout_s=60)
        took: list[float] = []
        scan, begin, attempts = None, -math.inf, 0
        while scan is None or rig.answer(scan) is None:
            if time.monotonic() - begin > 20:  # a busy machine may lose one in transport
                attempts += 1
                assert attempts <= 5, rig.node.log
                scan, begin = stamped(message(street(120_000))), time.monotonic()
                rig.publish(scan)
            took += [service.took_ms(**request) for service, request in services]
            time.sleep(0.02)
        inference_s = time.monotonic() - begin
        print(f"inference {inference_s:.1f} s, {len(took)} answers, p50 {np.median(took):.1f}, max {max(took):.1f} ms")
        assert inference_s > 0.5 and len(took) > 10
        # what waited for the inference would take about as long; the machine may be busy
        assert np.percentile(took, 90) < 500 * inference_s, sorted(took)[-10:]
        assert max(np.diff(times)) < 1.5 + inference_s / 2  # one a second
        # deactivation does not wait for the next one, and the node ends soon after it
        rig.publish(stamped(scan))
        time.sleep(0.3)
        deactivate = Transition(id=Transition.TRANSITION_DEACTIVATE)
        assert Service(rig, ChangeState, "change_state").took_ms(transition=deactivate) < 500 * inference_s
        rig.results.clear()
        begin = time.monotonic()
        assert rig.node.stop(signal.SIGTERM, timeout_s=60) == 0
        assert time.monotonic() - begin < 2 * inference_s + 1.0
        assert not rig.results and "Traceback" not in rig.node.log, rig.node.log


def knn_k(k: int) -> list[object]:
    return [Parameter("knn.k", value=k).to_parameter_msg()]
