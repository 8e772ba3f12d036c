# SPDX-License-Identifier: Apache-2.0
"""Partial labels: raw ids of another data set as classes, or sets of classes, of a label set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.partial_labels import PartialLabels
from sqsegv3_ros.errors import UserError

CAR, ROAD, PARKING, BUILDING, FENCE = (SEMANTIC_KITTI.index(n) for n in ["car", "road", "parking", "building", "fence"])
TEXT = """
name: mine
classes:
  7: car
  3: [fence, building]
  4: [road, parking]
  5: [building, fence]
  9: []
"""


def from_text(folder: Path, text: str) -> PartialLabels:
    path = folder / "mine.yaml"
    path.write_text(text)
    return PartialLabels.from_yaml(path)


def test_ids_become_classes_sets_and_unlabeled(tmp_path):
    labels = from_text(tmp_path, TEXT)
    sets = [(ROAD, PARKING), (BUILDING, FENCE)]
    assert labels.sets(SEMANTIC_KITTI) == set(sets)
    coding = labels.coding(SEMANTIC_KITTI, sets)
    raw = np.array([7, 3, 4, 5, 9, 7 + (12 << 16)], np.uint32)
    assert coding.to_labels(raw).tolist() == [CAR, 21, 20, 21, 0, CAR]
    assert coding.unknown_ids(np.array([7, 8, 300, 9 + (1 << 16)])) == (8, 300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected a mapping 'classes'"),
        ("classes: {70000: car}", "found 70000: car"),
        ("classes: {1: 2}", "found 1: 2"),
        ("classes: {1: [car, 3]}", "found 1"),
        ("classes: {1: [car", "not valid YAML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        from_text(tmp_path, text)


def test_a_missing_file_and_an_unknown_class_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read file of partial labels .*other\.yaml"):
        PartialLabels.from_yaml(tmp_path / "other.yaml")
    with pytest.raises(UserError, match="no class 'cow'"):
        from_text(tmp_path, "classes: {1: [car, cow]}").sets(SEMANTIC_KITTI)


@pytest.mark.parametrize(("name", "ids"), [("nuscenes", range(32)), ("pandaset", range(43))])
def test_the_label_files_of_the_package_name_every_id(name, ids):
    labels = PartialLabels.from_yaml(ROOT / "config" / "labels" / f"{name}.yaml")
    assert set(ids) <= labels.classes.keys()
    assert all(len(members) < 6 for members in labels.sets(SEMANTIC_KITTI))
