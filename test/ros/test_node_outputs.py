# SPDX-License-Identifier: Apache-2.0
"""Label maps, filtered clouds, obstacles and entropy of the real node, point by point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from clouds import points_of
from live import LATCHED, Client, message, node_of, outputs_of, street
from programs import depends_on_discovery, wait_until
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String

from sqsegv3_ros.data.label_map import load_label_map
from sqsegv3_ros.inference.segmenter import Segmentation, Segmenter

pytestmark = depends_on_discovery

XYZ = ("x", "y", "z")
SENSOR_HEIGHT_M = 1.73  # of the model's sensor, which holds if extrinsics.height_m is not set


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    points = street(8000)
    points[10, 0], points[20, :3] = np.nan, 0.0
    return points


@pytest.fixture(scope="module")
def segmenter(small_model: Path) -> Segmenter:
    return Segmenter(small_model, backend="torch")


@pytest.fixture(scope="module")
def expected(segmenter: Segmenter, points: np.ndarray) -> Segmentation:
    return segmenter.segment(points, entropy=True)


def coordinates(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(row) for row in points[:, :4].tolist()]


def of_cloud(cloud: PointCloud2) -> list[tuple[float, ...]]:
    values = points_of(cloud).reshape(-1)
    return [tuple(float(point[name]) for name in (*XYZ, "intensity")) for point in values]


def names_by_frequency(expected: Segmentation, segmenter: Segmenter) -> list[str]:
    counts = np.bincount(expected.labels, minlength=len(segmenter.info.labels))
    return [segmenter.info.labels.names[label] for label in np.argsort(-counts) if counts[label]]


def test_a_label_map_holds_for_labels_colours_label_set_and_filters(
    client: Client, small_model: Path, points: np.ndarray
) -> None:
    folded = Segmenter(small_model, label_map=load_label_map("traversability"), backend="torch")
    expected = folded.segment(points)
    removed = folded.info.labels.names[np.bincount(expected.labels).argmax()]
    with node_of(
        client, model=small_model, label_map="traversability", filtered__remove_classes=f"[{removed}]"
    ) as node:
        cloud = message(points, 11)
        found = outputs_of(client, node, cloud, points=PointCloud2, filtered=PointCloud2, label_image=Image)
        values = points_of(found["points"]).reshape(-1)
        np.testing.assert_array_equal(values["label"], expected.labels)
        np.testing.assert_allclose(values["confidence"], expected.confidences, atol=1e-5)
        packed = values["rgb"].view(np.uint32)
        colors = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1)
        np.testing.assert_array_equal(colors, folded.info.labels.colors[expected.labels])
        image = np.frombuffer(found["label_image"].data, np.uint8).reshape(64, 256, 3)
        np.testing.assert_array_equal(image, folded.info.labels.colors[expected.label_image.numpy()])

        keep = (
            (expected.labels != folded.info.labels.index(removed)) & np.isfinite(points).all(1) & points[:, :3].any(1)
        )
        assert of_cloud(found["filtered"]) == coordinates(points[keep]) and 0 < keep.sum() < len(points) - 2

        label_sets = client.collect(String, f"{node.get_fully_qualified_name()}/output/label_set", LATCHED)
        wait_until(lambda: label_sets, 20)
        classes = json.loads(label_sets[0].data)["classes"]
        assert [c["name"] for c in classes] == ["unknown", "drivable", "obstacle", "dynamic"]
        assert node.get_parameter("obstacles.remove_classes").value == ["drivable"]


def test_a_label_map_that_does_not_fit_fails_to_configure_with_the_reason(client: Client, small_model: Path) -> None:
    with node_of(client, model=small_model, label_map="semantic_kitti_moving", configures=False):
        client.status("model", lambda s: "unknown class 'moving-car'" in s.message)


def test_obstacles_are_what_is_not_ground_and_in_the_height_band(
    client: Client, small_model: Path, points: np.ndarray, expected: Segmentation, segmenter: Segmenter
) -> None:
    ground = {"road", "parking", "sidewalk", "other-ground", "terrain"}
    box, band = (-3.0, -2.0, -1.73, 3.0, 2.0, 0.5), (0.1, 2.5)
    settings: dict[str, Any] = {
        "obstacles__ego_box": list(box),
        "obstacles__min_height_m": band[0],
        "obstacles__max_height_m": band[1],
    }
    with node_of(client, model=small_model, **settings) as node:
        assert set(node.get_parameter("obstacles.remove_classes").value) == ground
        found = outputs_of(client, node, message(points, 21), obstacles=PointCloud2)["obstacles"]

    def is_obstacle(point: np.ndarray, label: int) -> bool:
        x, y, z = map(float, point[:3])
        if not np.isfinite([x, y, z]).all() or (x, y, z) == (0, 0, 0) or segmenter.info.labels.names[label] in ground:
            return False
        in_box = box[0] <= x <= box[3] and box[1] <= y <= box[4] and box[2] <= z <= box[5]
        return not in_box and band[0] <= z + SENSOR_HEIGHT_M <= band[1]

    wanted = [is_obstacle(*values) for values in zip(points, expected.labels, strict=True)]
    assert of_cloud(found) == coordinates(points[wanted]) and 100 < sum(wanted) < len(points) / 2
    # what Nav2's layers read: an unorganised cloud with x, y, z as float32, in the sensor's frame, without NaN
    assert [(f.name, f.datatype) for f in found.fields[:3]] == [(name, 7) for name in XYZ]
    assert (found.height, found.header.frame_id, found.row_step) == (1, "velodyne", found.width * found.point_step)


def test_filters_can_be_set_while_the_node_runs(
    client: Client, small_model: Path, points: np.ndarray, expected: Segmentation, segmenter: Segmenter
) -> None:
    first, second, *_ = names_by_frequency(expected, segmenter)
    limit = float(np.median(expected.confidences[expected.labels == segmenter.info.labels.index(first)]))
    with node_of(client, model=small_model) as node, client.targeting(node.get_fully_qualified_name()):
        accepted = client.set_parameters(
            atomically=True,
            filtered__keep_classes=[first, second],
            filtered__min_confidence=1.0,
            filtered__class_min_confidence=[f"{first}: {limit}", f"{second}: 0"],
        )
        assert accepted == [(True, "")]
        found = outputs_of(client, node, message(points, 31), filtered=PointCloud2)["filtered"]
        of_first, of_second = (expected.labels == segmenter.info.labels.index(name) for name in (first, second))
        usable = np.isfinite(points).all(1) & points[:, :3].any(1)
        wanted = ((of_first & (expected.confidences > limit)) | of_second) & usable
        near = np.abs(expected.confidences - limit) < 1e-5  # rounding decides
        assert 0 < wanted.sum() < usable.sum()
        kept = set(of_cloud(found))
        assert kept >= set(coordinates(points[wanted & ~near]))
        assert kept <= set(coordinates(points[(wanted | (near & of_first)) & usable]))
        refused = (
            ({"filtered__keep_classes": ["persn"]}, "no class 'persn'", "did you mean 'person'"),
            ({"filtered__min_height_m": 2.0, "filtered__max_height_m": 1.0}, "must be less than max_height_m", ""),
            ({"filtered__ego_box": [1.0, 2.0]}, "ego_box must be 6 numbers", ""),
            ({"filtered__class_min_confidence": ["person"]}, "expected entries such as", ""),
            ({"extrinsics__height_m": 0.0, "obstacles__min_height_m": 0.2}, "need the sensor's height", "base_frame"),
        )
        for values, *reasons in refused:
            ((successful, reason),) = client.set_parameters(atomically=True, **values)
            assert not successful and all(part in reason for part in reasons), reason


def test_entropy_is_published_as_field_and_image(
    client: Client, small_model: Path, points: np.ndarray, expected: Segmentation
) -> None:
    assert expected.entropies is not None and expected.entropy_image is not None
    with node_of(client, model=small_model, publish__entropy=True) as node:
        found = outputs_of(client, node, message(points, 41), points=PointCloud2, entropy_image=Image)
    names = [field.name for field in found["points"].fields]
    assert names == [*XYZ, "intensity", "rgb", "confidence", "entropy", "label"]
    values = points_of(found["points"]).reshape(-1)
    np.testing.assert_allclose(values["entropy"], expected.entropies, atol=1e-4)
    assert values["entropy"][[10, 20]].tolist() == [1.0, 1.0]
    image = found["entropy_image"]
    assert (image.encoding, image.height, image.width, image.step) == ("32FC1", 64, 256, 1024)
    pixels = np.frombuffer(image.data, np.float32).reshape(64, 256)
    np.testing.assert_allclose(pixels, expected.entropy_image.numpy(), atol=1e-4)
    assert np.isnan(pixels).any() and np.nanmax(pixels) > 0.3


def test_what_nobody_subscribes_to_is_not_computed(
    client: Client, small_model: Path, points: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    segment = Segmenter.segment

    def spy(self: Segmenter, *arguments: Any, entropy: bool = False) -> Segmentation:
        asked.append(entropy)
        return segment(self, *arguments, entropy=entropy)

    with node_of(client, model=small_model, publish__entropy=True) as node:
        monkeypatch.setattr(Segmenter, "segment", spy)
        monkeypatch.setattr("sqsegv3_ros.inference.point_filter.PointFilter.mask", None)  # a call would fail
        outputs_of(client, node, message(points, 51), label_image=Image)
        assert asked and not any(asked)
