# SPDX-License-Identifier: Apache-2.0
"""Faults around a running node: after each one it labels the next good scan, and diagnostics return to OK."""

from __future__ import annotations

import resource
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from clouds import LAYOUTS
from faults import (
    ERROR,
    Rig,
    good_points,
    good_scan,
    in_layout,
    memory_mib,
    rig_of,
    threads_and_files,
    write_model,
)
from live import BEST_EFFORT, RELIABLE
from programs import depends_on_discovery, running, wait_until
from rcl_interfaces.msg import ParameterType
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.inference.settings import SPECS
from sqsegv3_ros.pointcloud2 import read_field

pytestmark = depends_on_discovery


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "one.pt"), write_model(folder / "two.pt", "1/8", 64, seed=1)


@pytest.fixture(scope="module")
def rig(models: tuple[Path, Path]) -> Iterator[Rig]:
    with rig_of(models[0]) as rig:
        yield rig


# ---- input ---------------------------------------------------------------------------------------------------------


def test_stale_input_recovers_without_a_restart(rig: Rig) -> None:
    rig.recovers()
    status = rig.client.status("input", lambda s: s.level == ERROR)
    assert "stale" in status.message
    rig.recovers()


def test_a_publisher_may_restart_with_another_layout_frame_size_and_reliability(rig: Rig) -> None:
    sizes = [20_000, 1, 17, 20_000, 0]
    for i, name in enumerate(LAYOUTS):
        points = good_points()[: sizes[i % len(sizes)]]
        labelled = rig.labels(lambda n=name, p=points, i=i: in_layout(n, p, frame=f"lidar_{i}"))
        assert labelled.header.frame_id == f"lidar_{i}" and labelled.width == len(points)
        assert [f.name for f in labelled.fields] == [*LAYOUTS[name].names, "rgb", "confidence", "label"]
        sent = in_layout(name, points)
        for field in LAYOUTS[name].names:
            np.testing.assert_array_equal(read_field(labelled, field), read_field(sent, field))
        if i % 6 == 5:
            rig.client.close_publisher(rig.input, rig.qos)
            rig.qos = RELIABLE if rig.qos is BEST_EFFORT else BEST_EFFORT
    organised = rig.labels(lambda: in_layout("ouster 48", rows=64, points=good_points()[:19_968]))
    assert (organised.height, organised.width) == (64, 312)
    if rig.qos is BEST_EFFORT:  # the other tests rely on the delivery of their clouds
        rig.client.close_publisher(rig.input, rig.qos)
        rig.qos = RELIABLE
    rig.recovers()


def test_scans_faster_than_the_node_are_dropped_for_newer_ones_and_counted(rig: Rig) -> None:
    dropped = 0
    for _ in range(5):  # a busy machine may lose all of them in transport
        rig.recovers()
        before = rig.counts()
        sent = 300
        for _ in range(sent):
            rig.publish(good_scan())
        last = good_scan()
        rig.publish(last)
        wait_until(lambda last=last: rig.answer(last), 90)  # not behind a queue
        grown = {key: value - before[key] for key, value in rig.counts().items()}
        assert grown["labelled"] + grown["dropped_newer_available"] == grown["received"]
        assert grown["received"] + grown["dropped_in_transport"] == sent + 1
        assert 1 <= grown["labelled"] <= sent
        dropped += grown["dropped_newer_available"]
        if dropped > 1:
            break
    assert dropped > 1
    rig.recovers()


# ---- other processes ------------------------------------------------------------------------------------------

LISTENER = """
import sys, rclpy
from sensor_msgs.msg import PointCloud2
rclpy.init()
node = rclpy.create_node("listener")
node.create_subscription(PointCloud2, sys.argv[1], lambda m: print("heard"), 10)
rclpy.spin(node)
"""


@pytest.mark.long  # a stopped process with shared memory may crash Fast DDS in this one, which is a participant, too
def test_a_subscriber_that_stops_and_is_killed_does_not_affect_the_node(rig: Rig) -> None:
    with running("-c", LISTENER, f"{rig.name}/output/points") as listener:
        wait_until(lambda: rig.labels() and "heard" in listener.log, 100, lambda: listener.log)
        listener.send(signal.SIGSTOP)
        for _ in range(10):
            rig.labels()
        rig.recovers()
        listener.kill()
    rig.recovers()


PUBLISHER = """
import sys, faults, live
client = live.Client(sys.argv[1])
while True:
    client.publish(faults.good_scan("killed"))
    print("sent")
"""


def test_a_publisher_that_is_killed_while_publishing_does_not_affect_the_node(rig: Rig) -> None:
    with running("-c", PUBLISHER, rig.name) as publisher:
        wait_until(lambda: any(r.header.frame_id == "killed" for r in list(rig.results)), 100)
        publisher.kill()
    rig.recovers()


# ---- parameters ----------------------------------------------------------------------------------------------------


def random_value(rng: np.random.Generator, default: object) -> object:
    if isinstance(default, bool):
        return bool(rng.integers(2))
    if isinstance(default, int):
        return int(rng.choice([0, 1, 3, 5, 7, 64, 128, 1000, 16384, -1, 2**31]))
    if isinstance(default, float):
        return float(rng.choice([0.0, 1.0, -1.0, 0.5, 30.0, -30.0, 1e9, 1e30, -1e-30, np.nan, np.inf]))
    if isinstance(default, list):
        return [str(name) for name in rng.choice(["", "car", "road", "unicorn"], int(rng.integers(3)))] or [""]
    words = [
        "",
        "off",
        "safe",
        "official",
        "ring",
        "intensity",
        "x",
        "clamp",
        "drop",
        "elevation",
        "ring_from_top",
        "ä",
    ]
    return str(rng.choice(words))


def set_at_random(rig: Rig, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    specs = [s for s in SPECS if not (s.at_configure or s.read_only)]
    names = [s.name for s in specs]
    own = dict(zip(names, rig.client.get_parameters(*names), strict=True))
    accepted = 0
    for i in range(count):
        chosen = rng.choice(len(specs), int(rng.integers(1, 4)), replace=False)
        values = {names[k]: random_value(rng, own[names[k]]) for k in chosen}
        answers = rig.client.set_parameters(atomically=bool(i % 2), **values)
        accepted += sum(ok for ok, _ in answers)
        assert all(ok or reason for ok, reason in answers), (values, answers)
        rig.publish(in_layout("velodyne xyzirt 22", frame="load") if i % 3 else good_scan("load"))
        if i % 25 == 24:
            rig.client.set_parameters(atomically=True, **own)
    assert accepted > count / 10
    answers = rig.client.set_parameters(atomically=True, **own)  # one by one they would pass through contradictions
    assert all(ok for ok, _ in answers), answers
    rig.recovers()


def test_random_parameters_under_load_leave_a_node_that_labels(rig: Rig) -> None:
    set_at_random(rig, 0, 30)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_random_parameters_under_load_leave_a_node_that_labels(rig: Rig) -> None:
    for seed in range(1, 11):
        set_at_random(rig, seed, 300)


def test_a_parameter_of_another_type_or_without_a_value_is_refused(rig: Rig) -> None:
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    for kind in (ParameterType.PARAMETER_NOT_SET, ParameterType.PARAMETER_STRING_ARRAY):
        for spec in SPECS:
            if spec.kind is list:
                continue
            parameter = Parameter(name=spec.name, value=ParameterValue(type=kind))
            result = rig.client.call(SetParameters, f"{rig.name}/set_parameters", parameters=[parameter]).results[0]
            assert not result.successful and result.reason, spec.name
    rig.recovers()


# ---- the model file ------------------------------------------------------------------------------------------------


def test_a_model_file_may_be_deleted_damaged_and_replaced_while_the_node_runs(
    rig: Rig, models: tuple[Path, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model.pt"
    whole = models[0].read_bytes()
    model.write_bytes(whole)
    with zipfile.ZipFile(model) as archive:
        largest = max((e for e in archive.infolist() if "/data/" in e.filename), key=lambda entry: entry.file_size)
    weights = largest.header_offset + 1000
    assert rig.reconfigure(model=str(model))
    rig.recovers()
    for fault, text in (
        (lambda: model.write_bytes(whole[: len(whole) // 2]), "truncated"),
        (lambda: model.write_bytes(whole[:weights] + bytes(50_000) + whole[weights + 50_000 :]), "model.pt"),
        (lambda: model.unlink(), "model.pt not found"),
    ):
        fault()
        rig.labels()  # the running model is in memory
        assert not rig.reconfigure()
        assert rig.client.state() == "unconfigured"
        rig.client.status("model", lambda s, t=text: s.level == ERROR and t in s.message)
        model.write_bytes(whole)
        assert rig.reconfigure()
    model.write_bytes(models[1].read_bytes())
    rig.labels()
    assert rig.reconfigure()
    rig.recovers()
    assert rig.values("model")["image_width"] == "64"
    assert rig.reconfigure(model=str(models[0]))
    rig.recovers()


def test_a_transition_without_memory_fails_with_a_reason_and_succeeds_once_there_is_memory(
    rig: Rig, tmp_path: Path
) -> None:
    if rig.client.state() != "active":  # after a failed try
        assert rig.reconfigure()
    rig.recovers()
    usual = rig.client.get_parameters("model")[0]
    # memory kept by the allocator may suffice for a small image, but not for this one
    large = write_model(tmp_path / "large.pt", width=16384)
    assert rig.client.transition("deactivate") and rig.client.transition("cleanup")
    pages = int(Path(f"/proc/{rig.pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 20)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(rig.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        assert rig.client.set_parameters(model=str(large)) == [(True, "")]
        assert not rig.client.transition("configure")
        assert rig.client.state() == "unconfigured"
        message = rig.client.status("model", lambda s: s.level == ERROR).message
        assert "memory" in message.lower() or "thread" in message.lower(), message
    finally:
        resource.prlimit(rig.pid, resource.RLIMIT_AS, unlimited)
        assert rig.client.set_parameters(model=usual) == [(True, "")]
    assert rig.client.transition("configure") and rig.client.transition("activate")
    rig.recovers()


# ---- transitions ---------------------------------------------------------------------------------------------------

NEXT = {
    ("unconfigured", "configure"): "inactive",
    ("inactive", "activate"): "active",
    ("inactive", "cleanup"): "unconfigured",
    ("active", "deactivate"): "inactive",
}


def walk(rig: Rig, models: tuple[Path, Path], seed: int, steps: int) -> None:
    """Random transitions during input, with the model changed while unconfigured."""
    rng = np.random.default_rng(seed)
    state = rig.client.state()
    for _ in range(steps):
        name = str(rng.choice(["configure", "activate", "deactivate", "cleanup"]))
        if state == "unconfigured":
            rig.client.set_parameters(model=str(models[rng.integers(2)]))
        expected = NEXT.get((state, name))
        assert rig.client.transition(name) == (expected is not None), (state, name)
        state = expected or state
        assert rig.client.state() == state
        if state == "active":
            for _ in range(int(rng.integers(3))):
                rig.publish(good_scan())
    while state != "active":
        name = "configure" if state == "unconfigured" else "activate"
        assert rig.client.transition(name)
        state = rig.client.state()
    rig.labels()


def test_transitions_in_any_order_leave_a_node_that_labels(rig: Rig, models: tuple[Path, Path]) -> None:
    for seed in range(5):
        walk(rig, models, seed, 6)
    rig.recovers()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_five_hundred_sequences_of_transitions_leak_no_memory_thread_or_file(
    rig: Rig, models: tuple[Path, Path]
) -> None:
    for seed in range(100, 150):  # until allocators and caches are filled
        walk(rig, models, seed, 6)
    rig.recovers()
    memory, before = memory_mib(rig.pid), threads_and_files(rig.pid)
    for seed in range(150, 600):
        walk(rig, models, seed, 6)
    rig.recovers()
    print(f"{memory:.0f} MiB before, {memory_mib(rig.pid):.0f} MiB after; {before}, {threads_and_files(rig.pid)}")
    assert memory_mib(rig.pid) - memory < 60
    threads, files = threads_and_files(rig.pid)
    assert threads <= before[0] + 2 and files <= before[1] + 4


def test_nothing_is_published_after_deactivation_has_been_answered(rig: Rig) -> None:
    rig.recovers()
    for _ in range(10):
        rig.publish(good_scan())
    assert rig.client.transition("deactivate")
    time.sleep(0.2)
    published = len(rig.results)
    time.sleep(0.5)
    assert len(rig.results) == published
    assert rig.client.transition("activate")
    rig.recovers()
    assert isinstance(rig.labels(), PointCloud2)
