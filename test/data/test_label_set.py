# SPDX-License-Identifier: Apache-2.0
"""Label sets: the built-in ones, configurations, and conversion between labels and raw ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, needs_shared

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN, LabelClass, LabelSet
from sqsegv3_ros.errors import UserError

TINY = LabelSet(
    "tiny", (LabelClass("none", (0, 0, 0), 0, True), LabelClass("wall", (1, 2, 3), 50)), {0: 0, 50: 1, 51: 1}
)


@needs_shared
def test_the_built_in_classes_equal_the_official_configuration() -> None:
    official = LabelSet.from_yaml(GOLDEN / "official_21/data_cfg.yaml")
    assert official.classes == SEMANTIC_KITTI.classes
    assert dict(official.raw_to_label) == dict(SEMANTIC_KITTI.raw_to_label)


def test_the_multiscan_set_has_separate_moving_classes() -> None:
    raw = np.array([252, 253, 254, 255, 256, 257, 258, 259, 10])
    assert SEMANTIC_KITTI_MULTISCAN.to_labels(raw).tolist() == [20, 21, 22, 23, 24, 24, 25, 24, 1]
    assert SEMANTIC_KITTI_MULTISCAN.to_raw(np.arange(20, 26)).tolist() == [252, 253, 254, 255, 259, 258]
    assert SEMANTIC_KITTI.to_labels(raw).tolist() == [1, 7, 6, 8, 5, 5, 4, 5, 1]


def test_instance_bits_are_ignored_and_unknown_ids_become_unlabeled_and_are_listed() -> None:
    words = np.array([(7 << 16) | 40, 40, 77, (3 << 16) | 65535], np.uint32)
    assert SEMANTIC_KITTI.to_labels(words).tolist() == [9, 9, 0, 0]
    assert SEMANTIC_KITTI.unknown_ids(words) == (77, 65535)


def test_labels_become_raw_ids_and_labels_outside_the_set_are_refused() -> None:
    raw = SEMANTIC_KITTI.to_raw(np.arange(20, dtype=np.uint8))
    assert raw.dtype == np.uint32
    assert raw.tolist() == [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
    with pytest.raises(UserError, match=r"0\.\.1.*found 0\.\.5"):
        TINY.to_raw(np.array([0, 5]))


def test_a_set_survives_json() -> None:
    for labels in (SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN, TINY):
        again = LabelSet.from_dict(json.loads(json.dumps(labels.to_dict())))
        assert again.classes == labels.classes and dict(again.raw_to_label) == dict(labels.raw_to_label)


def test_the_error_for_an_unknown_class_lists_the_classes() -> None:
    assert TINY.index("wall") == 1
    with pytest.raises(UserError, match=r"no class 'roof'.*none, wall"):
        TINY.index("roof")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_map": None}, "no mapping 'learning_map'"),
        ({"learning_map_inv": {0: 0, 2: 50}}, "without gaps"),
        ({"learning_map_inv": {0: 0, 1: 51}}, "raw id 51"),
        ({"learning_map": {0: 0, 50: 7}}, "maps to class 7"),
        ({"learning_map": {0: 0, "wall": 1}}, "malformed entry .*'wall'"),
        ({"color_map": {0: [0, 0, 0], 50: [3, 2]}}, "malformed entry .*3"),
        ({"content": {0: 0.5, 50: "half"}}, "malformed entry .*'half'"),
    ],
)
def test_the_error_for_a_contradictory_configuration_names_the_entry(change: dict, message: str) -> None:
    config = {
        "labels": {0: "none", 50: "wall"},
        "color_map": {0: [0, 0, 0], 50: [3, 2, 1]},
        "learning_map": {0: 0, 50: 1},
        "learning_map_inv": {0: 0, 1: 50},
    }
    assert LabelSet.from_config(config).colors.tolist() == [[0, 0, 0], [1, 2, 3]]
    with pytest.raises(UserError, match=message):
        LabelSet.from_config({**config, **change})


def test_more_than_256_classes_need_two_bytes() -> None:
    many = LabelSet("many", tuple(LabelClass(str(i), (0, 0, 0), i) for i in range(300)), {i: i for i in range(300)})
    assert many.dtype is np.uint16 and many.to_labels(np.array([299])).tolist() == [299]
    assert SEMANTIC_KITTI.dtype is np.uint8


def test_an_unusable_configuration_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.yaml"
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    for content, message in (
        ("a: 1", "no mapping 'labels'"),
        ("- 1", "found list"),
        ("{", "not valid YAML"),
        ("", "NoneType"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message) as refusal:
            LabelSet.from_yaml(path)
        assert str(path) in str(refusal.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"~/own.yaml: .*NoneType"):  # read, not absent
        LabelSet.from_yaml("~/own.yaml")
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        LabelSet.from_yaml(tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match=r"PyYAML.*\[tools\]"):
        LabelSet.from_yaml(path)
