# SPDX-License-Identifier: Apache-2.0
"""Malformed clouds at the running node: each is labelled or rejected with a reason, and the next one is labelled."""

from __future__ import annotations

import array
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from faults import Rig, good_points, memory_mib, rig_of, stamped, write_model
from live import message
from mutations import malformed_clouds, sound_clouds
from programs import depends_on_discovery, wait_until
from rclpy.serialization import serialize_message
from sensor_msgs.msg import PointCloud2, PointField

from sqsegv3_ros.pointcloud2 import REASONS, read_field

pytestmark = depends_on_discovery


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    model = write_model(tmp_path_factory.mktemp("model") / "model.pt", "1/16", 64)
    with rig_of(model, max_points=6_000_000) as rig:
        yield rig


def ros(cloud: Any) -> PointCloud2:
    """The same message as a sensor_msgs class."""
    message = PointCloud2(
        height=cloud.height, width=cloud.width, is_bigendian=cloud.is_bigendian, point_step=cloud.point_step,
        row_step=cloud.row_step, is_dense=cloud.is_dense,
        fields=[PointField(name=f.name, offset=f.offset, datatype=f.datatype, count=f.count) for f in cloud.fields],
    )  # fmt: skip
    message.data = array.array("B", bytes(cloud.data))
    message.header.frame_id = "malformed"
    return stamped(message)


def garbled(seed: int, count: int) -> Iterator[bytes]:
    """Corrupted serialised clouds: truncated, with changed bytes and lengths, or noise."""
    rng = np.random.default_rng(seed)
    whole = [bytes(serialize_message(ros(cloud))) for cloud in sound_clouds(seed)[:40]]
    for i in range(count):
        data = bytearray(whole[int(rng.integers(len(whole)))])
        if i % 4 == 0:
            data = bytearray(rng.bytes(int(rng.integers(0, 300))))
        elif i % 4 == 1:
            data = data[: int(rng.integers(len(data)))]
        elif i % 4 == 2:
            for at in rng.integers(0, min(len(data), 150), 3):
                data[at] = int(rng.integers(256))
        else:
            at = 4 * int(rng.integers(0, 30))
            data[at : at + 4] = [b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x80"][int(rng.integers(4))]
        yield bytes(data)


def feed(rig: Rig, seed: int, enough: int) -> dict[str, int]:
    """Publish malformed clouds and garbled bytes until the node has processed `enough`. Returns its counts."""
    before = rig.counts()
    publisher = rig.client.publisher(rig.input)
    clouds = malformed_clouds(seed, 100 * enough)
    begin = time.monotonic()
    while True:
        for cloud in [next(clouds) for _ in range(200)]:
            publisher.publish(ros(cloud))
            time.sleep(0.004)
        for data in garbled(seed + 1, 50):
            publisher.publish(data)
            time.sleep(0.001)
        assert rig.node.is_running, rig.node.log[-3000:]
        now = rig.counts()
        grown = {key: value - before.get(key, 0) for key, value in now.items()}
        if grown["rejected"] + grown["labelled"] >= enough:
            return grown
        assert time.monotonic() - begin < max(60, enough), grown


def check(rig: Rig, seed: int, enough: int) -> None:
    rig.recovers()
    memory = memory_mib(rig.pid)
    counted = feed(rig, seed, enough)
    reasons = {key.removeprefix("rejected_") for key, value in counted.items() if key.startswith("rejected_")}
    assert len(reasons) >= 8 and reasons <= set(REASONS), counted
    assert counted["failed"] == 0, rig.node.log[-3000:]
    assert counted["labelled"] > 0  # a mutation may leave a cloud valid
    rig.labels()  # diagnostics warn of rejected clouds for 10 s more: see test_diagnostics.py
    assert "Traceback" not in rig.node.log, rig.node.log
    assert memory_mib(rig.pid) - memory < 100
    print(counted, f"{memory:.0f} MiB before, {memory_mib(rig.pid):.0f} MiB after")


def test_hundreds_of_malformed_clouds_leave_a_node_that_labels(rig: Rig) -> None:
    check(rig, 0, 200)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_ten_thousand_malformed_clouds_leave_a_node_that_labels(rig: Rig) -> None:
    check(rig, 1000, 10_000)


def with_xyz(value: Any) -> np.ndarray:
    points = good_points()[:1000].copy()
    points[:, :3] = value
    return points


SPECIAL = {
    "NaN": with_xyz(np.nan),
    "Inf": with_xyz(-np.inf),
    "1e30": with_xyz(1e30),
    "denormal": with_xyz(1e-42),
    "all equal": with_xyz((3.0, 2.0, -1.0)),
    "NaN intensity": np.column_stack([good_points()[:1000, :3], np.full(1000, np.nan, np.float32)]),
    "one point": good_points()[:1],
    "no point": good_points()[:0],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_points_get_valid_labels_and_confidences(rig: Rig, name: str) -> None:
    points = SPECIAL[name]
    labelled = rig.labels(lambda: stamped(message(points)))
    labels, confidences = read_field(labelled, "label"), read_field(labelled, "confidence")
    assert len(labels) == len(points) and labels.max(initial=0) < 20
    assert np.isfinite(confidences).all() and (confidences >= 0).all() and (confidences <= 1).all()
    np.testing.assert_array_equal(read_field(labelled, "x"), points[:, 0])
    if name in ("NaN", "Inf", "1e30", "denormal"):  # a denormal range underflows in float32
        assert not labels.any() and not confidences.any()
    else:
        assert (confidences > 0).all()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_million_points_are_labelled_and_more_than_max_points_are_rejected(rig: Rig) -> None:
    points = np.tile(good_points(), (250, 1))
    labelled = rig.labels(lambda: stamped(message(points)), timeout_s=600, pause_s=30)
    assert labelled.width == 5_000_000
    rig.publish(stamped(message(np.tile(points, (2, 1)))))
    wait_until(lambda: "rejected_too_many_points" in rig.counts(), 300, lambda: rig.client.diagnostics)
    rig.recovers()
