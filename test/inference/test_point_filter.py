# SPDX-License-Identifier: Apache-2.0
"""The point filter, compared point by point with rules written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sqsegv3_ros.data.label_map import load_label_map, shipped_label_maps
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.point_filter import (
    FilterConfig,
    PointFilter,
    ground_classes,
    parse_class_min_confidence,
)

COUNT = 4000
LEVEL = Extrinsics(height_m=1.5)


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points with a few unusable ones, labels of all classes, and confidences."""
    generator = np.random.default_rng(1)
    points = (generator.normal(size=(COUNT, 4)) * [6, 4, 1.5, 0.2]).astype(np.float32)
    points[5, 1], points[6, 2], points[7, :3] = math.nan, -math.inf, 0.0
    labels = generator.integers(0, len(SEMANTIC_KITTI), COUNT).astype(np.uint8)
    return points, labels, generator.uniform(0, 1, COUNT).astype(np.float32)


def kept(config: FilterConfig, scan: tuple[np.ndarray, ...], extrinsics: Extrinsics = LEVEL) -> set[int]:
    points, labels, confidences = scan
    mask = PointFilter(config, SEMANTIC_KITTI).mask(points, labels, confidences, extrinsics)
    return set(np.flatnonzero(mask).tolist())


def has_position(point: np.ndarray) -> bool:
    x, y, z = map(float, point[:3])
    return math.isfinite(x) and math.isfinite(y) and math.isfinite(z) and (x, y, z) != (0, 0, 0)


def test_without_settings_all_points_with_a_position_are_kept(scan: tuple[np.ndarray, ...]) -> None:
    assert kept(FilterConfig(), scan) == set(range(COUNT)) - {5, 6, 7}


def test_every_rule_removes_its_points_and_no_others(scan: tuple[np.ndarray, ...]) -> None:
    config = FilterConfig(
        keep_classes=("car", "person", "road", "pole"),
        remove_classes=("road",),
        min_confidence=0.5,
        class_min_confidence={"person": 0.2, "pole": 0.0},
        ego_box=(2.0, -1.0, -1.0, -2.0, 1.0, 0.5),  # corners in any order
        min_height_m=0.3,
        max_height_m=2.5,
    )

    def expected(point: np.ndarray, label: int, confidence: float) -> bool:
        x, y, z = map(float, point[:3])
        name = SEMANTIC_KITTI.names[label]
        if not has_position(point) or name not in ("car", "person", "pole"):
            return False
        if confidence < {"car": 0.5, "person": 0.2, "pole": 0.0}[name]:
            return False
        if -2 <= x <= 2 and -1 <= y <= 1 and -1 <= z <= 0.5:
            return False
        return 0.3 <= z + 1.5 <= 2.5

    wanted = {i for i, values in enumerate(zip(*scan, strict=True)) if expected(*values)}
    assert 50 < len(wanted) < COUNT / 4
    assert kept(config, scan) == wanted


def test_heights_are_those_above_the_ground_of_a_tilted_sensor(scan: tuple[np.ndarray, ...]) -> None:
    tilted = Extrinsics.from_angles(3.0, 20.0, 0.0, 1.2)
    roll, pitch = math.radians(3), math.radians(20)  # z of Ry(pitch) Rx(roll) p

    def height(point: np.ndarray) -> float:
        x, y, z = map(float, point[:3])
        return -math.sin(pitch) * x + math.cos(pitch) * (math.sin(roll) * y + math.cos(roll) * z) + 1.2

    found = kept(FilterConfig(min_height_m=0.2), scan, tilted)
    clear = [i for i, p in enumerate(scan[0]) if has_position(p) and abs(height(p) - 0.2) > 1e-4]
    assert {i for i in clear if height(scan[0][i]) > 0.2} == found & set(clear)
    assert len(found) > 100


@pytest.mark.parametrize("config", [FilterConfig(min_height_m=0.1), FilterConfig(max_height_m=2.0)])
def test_a_height_band_without_the_sensors_height_is_refused(
    scan: tuple[np.ndarray, ...], config: FilterConfig
) -> None:
    with pytest.raises(UserError, match="height band needs the sensor's height"):
        kept(config, scan, Extrinsics())


def test_unknown_classes_and_values_out_of_range_are_refused() -> None:
    for config in (FilterConfig(keep_classes=("persn",)), FilterConfig(class_min_confidence={"persn": 0.1})):
        with pytest.raises(UserError, match=r"no class 'persn'.*did you mean 'person'"):
            PointFilter(config, SEMANTIC_KITTI)
    with pytest.raises(UserError, match=r"min_confidence of car must be in 0\.\.1, found 2"):
        FilterConfig(class_min_confidence={"car": 2})
    with pytest.raises(UserError, match="ego_box must be 6 numbers"):
        FilterConfig(ego_box=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_height_m must be less than max_height_m, found 2 and 1"):
        FilterConfig(min_height_m=2, max_height_m=1)


def test_confidences_by_class_are_parsed() -> None:
    assert parse_class_min_confidence(["", "person: 0.3", "car:1"]) == {"person": 0.3, "car": 1.0}
    for entry in ("person", "person: x", ": 0.3", "person=0.3"):
        with pytest.raises(UserError, match=f"expected entries such as 'person: 0.3', found '{entry}'"):
            parse_class_min_confidence([entry])


def test_every_shipped_label_map_has_ground_classes() -> None:
    assert ground_classes(SEMANTIC_KITTI) == ["road", "parking", "sidewalk", "other-ground", "terrain"]
    for name in shipped_label_maps():
        assert ground_classes(load_label_map(name).apply(SEMANTIC_KITTI_MULTISCAN).labels), name
