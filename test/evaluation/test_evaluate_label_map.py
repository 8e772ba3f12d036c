# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label --label-map` and `sqsegv3 evaluate --label-map`: folded and unfolded labels give the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from clouds import layout
from recording import record, scans

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_map import load_label_map
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.rosbag_reader import BagReader
from sqsegv3_ros.data.semantic_kitti import read_labels, write_labels, write_scan
from sqsegv3_ros.pointcloud2 import read_field

POINT = layout(20, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), intensity=(12, "f4"), ground_truth=(16, "u1"))
MAP = "traversability"
CLASSES = ("drivable", "obstacle", "dynamic")
FOLDED = load_label_map(MAP).apply(SEMANTIC_KITTI)


def evaluated(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    command = ["evaluate", *map(str, arguments), "--label-map", MAP, "--json", str(tmp_path / "out.json")]
    assert main(command) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return found


def iou(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """IoU by folded class of labels of SemanticKITTI, with the map's members written as sets."""
    result = {}
    for name in CLASSES:
        members = {
            SEMANTIC_KITTI.index(old) for c in load_label_map(MAP).classes if c.name == name for old in c.members
        }
        is_true, is_labelled = np.isin(truth, list(members)), np.isin(labels, list(members)) & (truth > 0)
        result[name] = (is_true & is_labelled).sum() / (is_true | is_labelled).sum()
    return result


def labels_of(bag: Path, field: str = "label") -> np.ndarray:
    with BagReader(bag) as reader:
        return np.concatenate([read_field(reader.cloud(m), field) for m in reader.messages("/lidar")])


def test_bags_of_folded_and_of_unfolded_labels_give_the_same_numbers(tmp_path: Path, small_model: Path) -> None:
    source = record(tmp_path / "drive", "mcap", {"/lidar": scans(2)})
    label = ["label", str(source), "--model", str(small_model), "--backend", "torch"]
    assert main([*label, "--output", str(tmp_path / "plain")]) == 0
    assert main([*label, "--output", str(tmp_path / "folded"), "--label-map", MAP]) == 0
    plain, folded = labels_of(tmp_path / "plain/drive"), labels_of(tmp_path / "folded/drive")
    np.testing.assert_array_equal(folded, FOLDED.fold(plain))
    expected = iou(labels_of(source, "ground_truth"), plain)
    for name in ("plain", "folded"):
        found = evaluated(tmp_path, "--predictions", tmp_path / name / "drive")
        assert {c: found["strict"]["iou"][c] for c in CLASSES} == pytest.approx(expected)
        assert [c["name"] for c in found["label_set"]["classes"]] == ["unknown", *CLASSES]


def test_a_bag_that_does_not_say_what_its_labels_are_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = np.zeros(6, layout(20, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), ground_truth=(16, "u1"), label=(17, "u1")))
    bag = record(tmp_path / "bag", "mcap", {"/lidar": [scan]})
    assert main(["evaluate", "--predictions", str(bag), "--label-map", MAP]) == 2
    assert "does not record its label set" in capsys.readouterr().err


def test_label_files_of_folded_and_of_unfolded_labels_give_the_same_numbers(tmp_path: Path, small_model: Path) -> None:
    generator = np.random.default_rng(3)
    sequence = tmp_path / "data/sequences/00"
    truth = generator.integers(0, 20, 500)
    points = (generator.normal(size=(500, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    write_scan(sequence / "velodyne/000000.bin", points)
    write_labels(sequence / "labels/000000.label", SEMANTIC_KITTI.to_raw(truth))
    for name, options in (("plain", []), ("folded", ["--label-map", MAP])):
        command = ["label", str(tmp_path / "data"), "--output", str(tmp_path / name), "--model", str(small_model)]
        assert main([*command, "--backend", "torch", *options]) == 0
    raw = read_labels(tmp_path / "folded/sequences/00/predictions/000000.label")
    plain = SEMANTIC_KITTI.to_labels(read_labels(tmp_path / "plain/sequences/00/predictions/000000.label"))
    np.testing.assert_array_equal(FOLDED.labels.to_labels(raw), FOLDED.fold(plain))
    for name in ("plain", "folded"):
        found = evaluated(tmp_path, "--dataset", tmp_path / "data", "--predictions", tmp_path / name)
        assert {c: found["strict"]["iou"][c] for c in CLASSES} == pytest.approx(iou(truth, plain))


def test_an_unknown_label_map_is_refused_with_the_shipped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert (
        main(["evaluate", "--dataset", str(tmp_path), "--predictions", str(tmp_path), "--label-map", "autoware2"]) == 2
    )
    assert "label map 'autoware2' not found; did you mean 'autoware'?" in capsys.readouterr().err
