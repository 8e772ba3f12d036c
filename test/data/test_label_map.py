# SPDX-License-Identifier: Apache-2.0
"""Label maps: the shipped ones, folding by hand-written expectations, and the errors of unusable files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqsegv3_ros.data.label_map import LabelMap, load_label_map, shipped_label_maps
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN, LabelClass, LabelSet
from sqsegv3_ros.errors import UserError

TOY = LabelSet(
    "toy",
    (
        LabelClass("unlabeled", (0, 0, 0), 0, ignored=True),
        LabelClass("car", (10, 20, 30), 10, frequency=0.1),
        LabelClass("bus", (40, 50, 60), 13, frequency=0.2),
        LabelClass("road", (70, 80, 90), 40, frequency=0.4),
    ),
    {0: 0, 1: 0, 10: 1, 13: 2, 16: 2, 40: 3},
)


def toy(*classes: dict[str, Any], drop: list[str] | None = None) -> LabelMap:
    return LabelMap.from_dict({"classes": [{"name": "unlabeled"}, *classes], "drop": drop or []}, "mine")


def test_classes_are_folded_renamed_recoloured_and_dropped() -> None:
    folded = toy({"name": "street", "from": ["road"]}, {"name": "car", "color": [1, 2, 3]}, drop=["bus"]).apply(TOY)
    assert folded.fold(np.array([0, 1, 2, 3, 3])).tolist() == [0, 2, 0, 1, 1]
    labels = folded.labels
    assert (labels.name, labels.names) == ("mine", ("unlabeled", "street", "car"))
    assert labels.colors.tolist() == [[0, 0, 0], [70, 80, 90], [1, 2, 3]]
    assert [c.ignored for c in labels.classes] == [True, False, False]

    both = toy({"name": "vehicle", "from": ["car", "bus"]}, {"name": "road"}).apply(TOY)
    assert both.fold(np.array([1, 2, 3])).tolist() == [1, 1, 2]
    assert both.labels.classes[1] == LabelClass("vehicle", (10, 20, 30), 10, frequency=pytest.approx(0.3))


def test_files_with_folded_labels_read_like_files_with_the_original_ones() -> None:
    folded = load_label_map("traversability").apply(SEMANTIC_KITTI)
    original = np.arange(len(SEMANTIC_KITTI))
    expected = folded.fold(original)
    np.testing.assert_array_equal(folded.labels.to_labels(SEMANTIC_KITTI.to_raw(original)), expected)
    np.testing.assert_array_equal(folded.labels.to_labels(folded.labels.to_raw(expected)), expected)


def test_traversability_says_where_a_robot_can_drive() -> None:
    labels = load_label_map("traversability").apply(SEMANTIC_KITTI)
    assert labels.labels.names == ("unknown", "drivable", "obstacle", "dynamic")
    found = {name: labels.labels.names[labels.table[i]] for i, name in enumerate(SEMANTIC_KITTI.names)}
    assert {n for n, new in found.items() if new == "drivable"} == {
        "road", "parking", "sidewalk", "other-ground", "terrain"
    }  # fmt: skip
    assert found["person"] == found["car"] == "dynamic" and found["building"] == found["pole"] == "obstacle"
    assert found["unlabeled"] == "unknown"


def test_autoware_has_the_ids_of_its_object_classification() -> None:
    labels = load_label_map("autoware").apply(SEMANTIC_KITTI).labels
    objects = ("unknown", "car", "truck", "bus", "trailer", "motorcycle", "bicycle", "pedestrian", "animal", "hazard")
    assert labels.names[:12] == (*objects, "over_drivable", "under_drivable")
    assert not {labels.index(name) for name in ("bus", "trailer", "animal")} & set(labels.evaluated)


def test_semantic_kitti_folds_moving_objects_and_semantic_kitti_moving_colours_them() -> None:
    single = load_label_map("semantic_kitti")
    assert single.apply(SEMANTIC_KITTI).labels.names == SEMANTIC_KITTI.names
    np.testing.assert_array_equal(single.apply(SEMANTIC_KITTI).labels.colors, SEMANTIC_KITTI.colors)
    folded = single.apply(SEMANTIC_KITTI_MULTISCAN)
    raw = np.array(sorted(SEMANTIC_KITTI.raw_to_label))
    expected = SEMANTIC_KITTI.to_labels(raw)
    np.testing.assert_array_equal(folded.fold(SEMANTIC_KITTI_MULTISCAN.to_labels(raw)), expected)

    moving = load_label_map("semantic_kitti_moving")
    labels = moving.apply(SEMANTIC_KITTI_MULTISCAN).labels
    assert labels.names == SEMANTIC_KITTI_MULTISCAN.names
    assert len(np.unique(labels.colors[[labels.index("car"), labels.index("moving-car")]], axis=0)) == 2
    with pytest.raises(UserError, match="unknown class 'moving-car'"):
        moving.apply(SEMANTIC_KITTI)


def test_every_shipped_map_has_distinct_colours() -> None:
    assert set(shipped_label_maps()) == {"semantic_kitti", "semantic_kitti_moving", "autoware", "traversability"}
    for name in shipped_label_maps():
        colors = load_label_map(name).apply(SEMANTIC_KITTI_MULTISCAN).labels.colors
        assert len(np.unique(colors, axis=0)) == len(colors), name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a mapping with a list `classes`"),
        ({"classes": {"car": 1}}, "expected a mapping with a list `classes`"),
        ({"classes": [], "dropp": []}, "unknown key 'dropp'; did you mean 'drop'"),
        ({"classes": ["car"]}, "expected a mapping with a `name`, found 'car'"),
        ({"classes": [{"name": "car", "form": []}]}, "class 'car': unknown key 'form'; did you mean 'from'"),
        ({"classes": [{"name": "car", "from": "car"}]}, "class 'car': from must be a list"),
        ({"classes": [{"name": "car", "color": [0, 0, 256]}]}, "three numbers 0..255"),
        ({"classes": [{"name": "car"}, {"name": "car"}]}, "two classes have the name 'car'"),
        ({"classes": [{"name": "car"}], "drop": [1]}, "drop must be a list of class names"),
    ],
)
def test_a_malformed_map_is_refused_with_the_entry(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelMap.from_dict(data, "mine")


@pytest.mark.parametrize(
    ("classes", "drop", "message"),
    [
        ([{"name": "vehicle", "from": ["car", "buss", "road"]}], [], "unknown class 'buss'; did you mean 'bus'"),
        ([{"name": "a", "from": ["car"]}, {"name": "car"}], [], "'car' is folded twice, into 'a' and 'car'"),
        ([{"name": "a", "from": ["car", "bus"]}], ["bus"], "'bus' is folded twice, into 'a' and 'drop'"),
        ([{"name": "car"}], ["bus"], "unmapped classes road; add each"),
    ],
)  # fmt: skip
def test_a_map_that_does_not_fit_the_classes_is_refused(classes: Any, drop: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy(*classes, drop=drop).apply(TOY)


def test_unlabeled_points_must_be_in_the_first_class() -> None:
    data = {"classes": [{"name": "car", "from": ["car", "bus", "road"]}, {"name": "unlabeled"}]}
    with pytest.raises(UserError, match=r"'unlabeled'.*must be in the first class 'car', found in 'unlabeled'"):
        LabelMap.from_dict(data, "mine").apply(TOY)


def test_a_map_is_found_by_name_or_path(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("classes: [{name: none, from: [unlabeled]}, {name: all, from: [car, bus, road]}]\n")
    assert load_label_map(str(path)).apply(TOY).labels.names == ("none", "all")
    with pytest.raises(UserError, match="'autowear' not found; did you mean 'autoware'"):
        load_label_map("autowear")
    with pytest.raises(UserError, match=r"cannot read label map .*missing\.yaml"):
        load_label_map(str(tmp_path / "missing.yaml"))
    path.write_text("classes: [")
    with pytest.raises(UserError, match=r"own.yaml is not valid YAML"):
        load_label_map(str(path))
