# SPDX-License-Identifier: Apache-2.0
"""The node as a process, with messages over Fast DDS."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import ROOT
from diagnostic_msgs.msg import DiagnosticStatus
from live import BEST_EFFORT, LATCHED, NODE, Client, message, node_of, street
from programs import depends_on_discovery, running_node, wait_until
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, String

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.inference.stages import STAGES
from sqsegv3_ros.pointcloud2 import read_field

pytestmark = depends_on_discovery

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@pytest.fixture(scope="module")
def live(client: Client, small_model: Path) -> Iterator[Client]:
    """The client of an active node."""
    with running_node(model=small_model, stale_after_s=3.0, latency_budget_ms=60000.0) as node:
        node.wait_for_log("labelling clouds of")
        yield client


_numbers = itertools.count(1)


def label_one(
    client: Client, cloud: PointCloud2, results: list[PointCloud2], topic: str = f"{NODE}/input/points"
) -> PointCloud2:
    """Publish a cloud with a unique stamp until it is labelled: without a discovered subscriber the node skips it."""
    cloud.header.stamp.nanosec = next(_numbers)

    def answers() -> list[PointCloud2]:
        return [result for result in results if result.header.stamp == cloud.header.stamp]

    for _ in range(10):
        client.publish(cloud, topic)
        with contextlib.suppress(AssertionError):
            wait_until(answers, 4)
            return answers()[0]
    raise AssertionError(f"no labelled cloud; {client.diagnostics}")


def test_labelled_clouds_keep_header_order_and_bytes(live: Client, small_model: Path) -> None:
    segmenter = Segmenter(small_model)
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    for seed in range(3):
        points = street(20_000, seed)
        points[::97, :3] = np.nan
        cloud = message(points, stamp_s=100 + seed, frame=f"lidar_{seed}")
        labelled = label_one(live, cloud, results)
        assert labelled.header == cloud.header
        assert (labelled.height, labelled.width) == (1, 20_000)
        assert [f.name for f in labelled.fields] == ["x", "y", "z", "intensity", "rgb", "confidence", "label"]
        for name in ("x", "y", "z", "intensity"):
            np.testing.assert_array_equal(read_field(labelled, name), read_field(cloud, name))
        expected = segmenter.segment(points)
        np.testing.assert_array_equal(read_field(labelled, "label"), expected.labels)
        np.testing.assert_allclose(read_field(labelled, "confidence"), expected.confidences, atol=1e-5)
        packed = read_field(labelled, "rgb").view(np.uint32)
        colors = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1)
        np.testing.assert_array_equal(colors, SEMANTIC_KITTI.colors[expected.labels])
        unusable = np.isnan(points[:, 0])
        assert (expected.labels[unusable] == 0).all() and (expected.confidences[unusable] == 0).all()
        assert len(np.unique(expected.labels[~unusable])) > 1  # random weights do not give a constant


def test_clouds_of_a_best_effort_publisher_are_labelled(live: Client) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    publisher = live.publisher(qos=BEST_EFFORT)
    publisher.publish(message(street(2000), stamp_s=7))
    wait_until(lambda: results, 20)
    assert results[0].header.stamp.sec == 7


def test_the_filtered_cloud_lacks_the_removed_classes(live: Client) -> None:
    labelled = live.collect(PointCloud2, f"{NODE}/output/points")
    filtered = live.collect(PointCloud2, f"{NODE}/output/filtered")
    cloud = message(street(5000))
    labels = read_field(label_one(live, cloud, labelled), "label")
    common = np.bincount(labels).argmax()
    names = [SEMANTIC_KITTI.names[common]]
    assert live.set_parameters(filtered__remove_classes=names) == [(True, "")]
    filtered.clear()
    live.publish(cloud)
    wait_until(lambda: filtered, 20)
    assert [f.name for f in filtered[0].fields] == ["x", "y", "z", "intensity"]
    np.testing.assert_array_equal(read_field(filtered[0], "x"), read_field(cloud, "x")[labels != common])
    refused = live.set_parameters(filtered__remove_classes=["unicorn"])
    assert refused[0][0] is False and "unicorn" in refused[0][1] and "car" in refused[0][1]
    assert live.set_parameters(filtered__remove_classes=[""]) == [(True, "")]


def test_images_hold_the_labels_and_ranges_of_the_segmenter(live: Client, small_model: Path) -> None:
    label_images = live.collect(Image, f"{NODE}/output/label_image")
    range_images = live.collect(Image, f"{NODE}/output/range_image")
    cloud = message(street(8000), stamp_s=55, frame="roof")
    live.publish(cloud)
    wait_until(lambda: label_images and range_images, 20)
    expected = Segmenter(small_model).segment(street(8000))
    image = label_images[0]
    assert (image.encoding, image.height, image.width, image.step) == ("rgb8", 64, 256, 768)
    assert image.header == cloud.header
    pixels = np.frombuffer(image.data, np.uint8).reshape(64, 256, 3)
    np.testing.assert_array_equal(pixels, SEMANTIC_KITTI.colors[expected.label_image.numpy()])
    image = range_images[0]
    assert (image.encoding, image.step) == ("32FC1", 1024)
    np.testing.assert_allclose(
        np.frombuffer(image.data, np.float32).reshape(64, 256), np.maximum(expected.image.range.numpy(), 0)
    )


def test_the_label_set_reaches_late_subscribers(live: Client) -> None:
    messages = live.collect(String, f"{NODE}/output/label_set", LATCHED)
    wait_until(lambda: messages, 20)
    assert LabelSet.from_dict(json.loads(messages[0].data)).names == SEMANTIC_KITTI.names


def test_clouds_without_subscribers_are_skipped_and_counted(client: Client, small_model: Path) -> None:
    with node_of(client, model=small_model) as node:

        def numbers() -> dict[str, str]:
            client.publish(message(street(1000)), topic=f"{node.get_fully_qualified_name()}/input/points")
            time.sleep(0.2)
            status = client.diagnostics.get("processing", DiagnosticStatus())
            return {v.key: v.value for v in status.values}

        wait_until(lambda: int(numbers().get("skipped_no_subscribers", "0")) > 0, 30)
        wait_until(lambda: numbers()["labelled"] == "0", 5)


def bad_clouds() -> dict[str, PointCloud2]:
    good = message(street(100))
    no_intensity = message(street(100))
    no_intensity.fields = [f for f in no_intensity.fields if f.name != "intensity"]
    short = message(street(100))
    short.data = short.data[:-5]
    zero_step = message(street(100))
    zero_step.point_step = 0
    huge = message(street(100))
    huge.width, huge.row_step = 20_000_000, 320_000_000
    assert good.width == 100
    return {
        "missing_field": no_intensity,
        "data_too_short": short,
        "zero_point_step": zero_step,
        "too_many_points": huge,
    }


@pytest.mark.parametrize("name", list(bad_clouds()))
def test_an_unusable_cloud_is_rejected_with_a_reason_and_the_next_one_is_labelled(live: Client, name: str) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    live.publish(bad_clouds()[name])
    status = live.status("input", lambda s: any(v.key == f"rejected_{name}" for v in s.values))
    assert status.level in (WARN, ERROR) and "rejected" in status.message
    label_one(live, message(street(500)), results)


def test_an_empty_cloud_is_published_empty(live: Client) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    labelled = label_one(live, message(np.zeros((0, 4), np.float32)), results)
    assert labelled.width == 0 and [f.name for f in labelled.fields][-1] == "label"


def test_every_parameter_is_described_and_an_invalid_value_is_refused_with_a_reason(live: Client) -> None:
    from sqsegv3_ros.inference.settings import SPECS

    described = live.describe_parameters()
    for spec in SPECS:
        assert described[spec.name].description, spec.name
    assert described["knn.k"].integer_range[0].to_value == 225
    for values, reason in (
        ({"knn__mode": "sometimes"}, "official"),
        ({"knn__search": 4}, "step"),
        ({"knn__k": 1000}, "range"),
        ({"knn__k": 100}, "1..25"),
        ({"projection__width": 1024}, "set it at start, with -p or in a parameter file"),
        ({"autostart": False}, "read-only"),
        ({"projection__rows": ""}, "must be one of 'elevation', 'ring_from_bottom', 'ring_from_top', found ''"),
        ({"base_frame": "base_link"}, "run deactivate and cleanup, then set it"),
        ({"projection__fov_up_deg": -50.0}, "fov_down_deg < fov_up_deg"),
        ({"model": "/other.pt"}, "run deactivate and cleanup, then set it"),
        ({"threads": 2}, "run deactivate and cleanup, then set it"),
        ({"latency_budget_ms": -1.0}, "range"),
    ):
        accepted, why = live.set_parameters(**values)[0]
        assert not accepted and reason in why, (values, why)


def test_contradictory_parameters_change_nothing(live: Client) -> None:
    before = live.get_parameters("knn.k", "knn.search")
    accepted, reason = live.set_parameters(atomically=True, knn__search=3, knn__k=20)[0]
    assert not accepted and "1..9" in reason
    assert live.get_parameters("knn.k", "knn.search") == before


def test_a_parameter_takes_effect_with_the_next_cloud(live: Client, small_model: Path) -> None:
    from sqsegv3_ros.inference.knn import KnnConfig

    results = live.collect(PointCloud2, f"{NODE}/output/points")
    points = street(20_000, 3)
    assert live.set_parameters(knn__mode="off") == [(True, "")]
    try:
        labels = read_field(label_one(live, message(points), results), "label")
    finally:
        assert live.set_parameters(knn__mode="safe") == [(True, "")]
    off = Segmenter(small_model, knn=KnnConfig("off")).segment(points).labels
    safe = Segmenter(small_model).segment(points).labels
    assert (off != safe).any()
    np.testing.assert_array_equal(labels, off)


def test_diagnostics_name_model_rates_and_latency(live: Client, small_model: Path) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    label_one(live, message(street(1000)), results)
    model = {v.key: v.value for v in live.status("model", lambda s: s.level == OK).values}
    assert model["model"] == "small-random" and model["device"] == "cpu" and model["file"] == str(small_model)
    assert len(model["file_sha256"]) == 64
    assert model["licence"] == "unknown"  # the model of the test names none
    keys = {v.key for v in live.status("processing", lambda s: any("network" in v.key for v in s.values)).values}
    assert {f"{stage}_p95_ms" for stage in ("latency", *STAGES)} <= keys


def documented_keys() -> dict[str, bool]:
    """The keys in docs/diagnostics.md, with their status, and whether their values are text."""
    text = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    keys: dict[str, bool] = {}
    for status, cell, meaning in re.findall(r"^\| (model|input|processing) \| (`.*?) \| (.*) \|$", text, re.M):
        for key in re.findall(r"`(.*?)`", cell):
            stages = STAGES if "<stage>" in key else ("",)
            keys |= {f"{status}: {key.replace('<stage>', stage)}": meaning.startswith("text") for stage in stages}
    return keys


def test_every_diagnostic_key_is_documented_and_its_value_is_a_number_unless_documented_as_text(live: Client) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    label_one(live, message(street(1000)), results)
    live.publish(bad_clouds()["zero_point_step"])
    live.status("input", lambda s: any(v.key == "rejected_zero_point_step" for v in s.values))
    live.status("processing", lambda s: any("network" in v.key for v in s.values))
    documented = documented_keys()
    found = {f"{name}: {v.key}": v.value for name, status in live.diagnostics.items() for v in status.values}
    by_key = {re.sub("rejected_.*", "rejected_<reason>", key): value for key, value in found.items()}
    assert by_key.keys() == documented.keys()
    for key, value in by_key.items():
        assert documented[key] or re.fullmatch(r"\d+(\.\d+)?", value), (key, value)


def test_processing_times_are_published_for_each_stage_that_is_subscribed(live: Client) -> None:
    topics = {stage: f"{NODE}/debug/processing_time/{stage}_ms" for stage in STAGES}
    found = dict(live.node.get_topic_names_and_types())
    assert all(found[topic] == ["std_msgs/msg/Float64"] for topic in topics.values())
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    times = {stage: live.collect(Float64, topics[stage]) for stage in ("network", "publish")}
    label_one(live, message(street(1000)), results)
    wait_until(lambda: all(times.values()), 20, lambda: times)
    assert all(0 < received[0].data < 60000 for received in times.values())


def test_input_that_stops_is_reported_and_recovers(live: Client) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")
    label_one(live, message(street(500)), results)
    assert "stale" in live.status("input", lambda s: s.level == ERROR and "stale" in s.message).message
    label_one(live, message(street(500)), results)
    live.status("input", lambda s: "stale" not in s.message)


def test_the_model_can_be_changed_by_lifecycle_transitions(client: Client, small_model: Path, tmp_path: Path) -> None:
    from conftest import make_model

    other = make_model(tmp_path / "other.pt", name="other-random", width=128, seed=1)
    with node_of(client, model=small_model) as node:
        name = node.get_fully_qualified_name()
        with client.targeting(name):
            assert client.state() == "active"
            results = client.collect(PointCloud2, f"{name}/output/points")
            label_one(client, message(street(500), 1), results, f"{name}/input/points")
            assert client.transition("deactivate") and client.transition("cleanup")
            assert client.state() == "unconfigured"
            assert client.set_parameters(model=str(other)) == [(True, "")]
            assert client.transition("configure") and client.transition("activate")
            client.status("model", lambda s: any(v.value == "other-random" for v in s.values))
            label_one(client, message(street(500), 2), results, f"{name}/input/points")
            assert client.set_parameters(model=str(tmp_path / "none.pt"))[0][0] is False
            assert client.transition("deactivate") and client.transition("cleanup")
            assert client.set_parameters(model=str(tmp_path / "none.pt"))[0][0] is True
            assert not client.transition("configure")
            assert client.state() == "unconfigured"
            assert client.set_parameters(model=str(small_model))[0][0] is True
            assert client.transition("configure") and client.transition("activate")
            assert client.state() == "active"


def test_the_node_ends_cleanly_on_ctrl_c(small_model: Path) -> None:
    """SIGTERM: see test_node_process.py."""
    with running_node("-r", "__ns:=/signal", model=small_model) as node:
        node.wait_for_log("labelling clouds of")
        assert node.stop(signal.SIGINT) == 0
        assert "Traceback" not in node.log


def test_a_missing_model_is_reported_and_the_node_stays_unconfigured(client: Client) -> None:
    with running_node("-r", "__ns:=/lost", model="/nowhere/model.pt") as node:
        node.wait_for_log("model file /nowhere/model.pt not found")
        assert "; fix it, then `ros2 lifecycle set /lost/sqsegv3 configure`" in node.log
        client.status("model", lambda s: s.level == ERROR and "/nowhere/model.pt" in s.message)
        with client.targeting("/lost/sqsegv3"):
            assert client.state() == "unconfigured"
        assert node.stop() == 0


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"threads": -1}, "threads"),
        ({"threads": "many"}, "threads"),
        ({"precision": "int8"}, "precision must be one of"),
    ],
)
def test_an_invalid_parameter_at_start_ends_the_node_with_a_message(parameters: dict, text: str) -> None:
    with running_node(**parameters) as node:
        assert node.exit_code(30) == 2
        assert text in node.log and "Traceback" not in node.log, node.log


def test_log_and_diagnostics_say_that_the_network_runs_on_the_mirrored_image_too(
    client: Client, small_model: Path
) -> None:
    with running_node("-r", "__ns:=/mirrored", model=small_model, backend="torch", average_mirrored=True) as node:
        node.wait_for_log("256 pixels averaged with the mirrored image, ready in")
        with client.targeting("/mirrored/sqsegv3"):
            client.diagnostics.clear()
            client.status("model", lambda s: any(v.key == "average_mirrored" and v.value == "true" for v in s.values))
        assert node.stop() == 0


def test_an_override_of_an_unknown_parameter_is_reported_once() -> None:
    depth = f"qos_overrides.{NODE}/input/points.subscription.depth"
    known = {"use_sim_time": False, "start_type_description_service": False, depth: 3}
    with running_node(autostart=False, intensity_scle=0.5, zzz=1, **known) as node:
        node.wait_for_log("unknown parameter 'zzz' (ignored)")
        assert node.stop() == 0
        assert node.log.count("unknown parameter 'intensity_scle'; did you mean 'intensity_scale'?") == 1
        assert node.log.count("unknown parameter") == 2, node.log


def test_diagnostics_warn_while_the_intensity_does_not_fit_the_model(live: Client) -> None:
    results = live.collect(PointCloud2, f"{NODE}/output/points")

    def warned(points: np.ndarray) -> bool:
        label_one(live, message(points), results)  # repeatedly: the input checks run once a second
        return "intensity_scale" in live.diagnostics["input"].message

    points = street(20_000)
    points[:, 3] *= 255
    wait_until(lambda: warned(points), 30, lambda: live.diagnostics)
    wait_until(lambda: not warned(street(20_000)), 30, lambda: live.diagnostics)
