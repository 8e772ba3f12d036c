# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 evaluate` on bags: numbers counted by hand and of the same scans in folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from clouds import layout
from recording import named, record, scans

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan

LABELLED = layout(
    18, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), intensity=(12, "f4"), ground_truth=(16, "u1"), label=(17, "u1")
)
CAR, ROAD = SEMANTIC_KITTI.index("car"), SEMANTIC_KITTI.index("road")


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *(str(a) for a in arguments)])


def evaluated(tmp_path: Path, *arguments: object) -> dict:
    assert evaluate(*arguments, "--json", tmp_path / "out.json") == 0
    found: dict = json.loads((tmp_path / "out.json").read_text())
    return found


def labelled(truth: list[np.ndarray], seed: int = 5) -> list[np.ndarray]:
    """The scans with labels, about half of them right."""
    generator = np.random.default_rng(seed)
    found = []
    for scan in truth:
        cloud = np.zeros(len(scan), LABELLED)
        for name in scan.dtype.names:
            cloud[name] = scan[name]
        right = generator.random(len(scan)) < 0.5
        cloud["label"] = np.where(right, scan["ground_truth"], generator.integers(0, 20, len(scan)))
        found.append(cloud)
    return found


@pytest.mark.parametrize("storage", ["ros1", "sqlite3", "mcap"])
def test_a_bag_gives_the_numbers_counted_by_hand(tmp_path: Path, storage: str) -> None:
    scan = np.zeros(6, LABELLED)
    scan["x"] = 5
    scan["ground_truth"] = [CAR, CAR, ROAD, ROAD, ROAD, 0]
    scan["label"] = [CAR, ROAD, ROAD, ROAD, CAR, ROAD]
    found = evaluated(tmp_path, "--predictions", record(named(tmp_path, storage), storage, {"/lidar": [scan, scan]}))
    assert found["iou"]["car"] == pytest.approx(1 / 3)
    assert found["iou"]["road"] == pytest.approx(2 / 4)
    assert (found["points"], found["evaluated_points"], found["scan_count"]) == (12, 10, 2)
    assert found["scans"][1]["name"] == "drive/1600000000.100000000"
    assert found["predictions_bag"] == str(named(tmp_path, storage)) and found["ground_truth_bag"] is None


def test_a_bag_gives_the_numbers_of_the_same_scans_in_folders(tmp_path: Path) -> None:
    truth = scans(3, 3000)
    predicted = labelled(truth)
    for number, scan in enumerate(predicted):
        points = np.stack([scan[name] for name in ("x", "y", "z", "intensity")], 1)
        folder = tmp_path / "kitti" / "sequences" / "00"
        write_scan(folder / "velodyne" / f"{number:06d}.bin", points)
        write_labels(folder / "labels" / f"{number:06d}.label", SEMANTIC_KITTI.to_raw(scan["ground_truth"]))
        path = tmp_path / "predicted" / "sequences" / "00" / "predictions" / f"{number:06d}.label"
        write_labels(path, SEMANTIC_KITTI.to_raw(scan["label"]))
    folders = evaluated(tmp_path, "--dataset", tmp_path / "kitti", "--predictions", tmp_path / "predicted", "--border")
    both = record(tmp_path / "both", "mcap", {"/lidar": predicted})
    only_labels = record(tmp_path / "only", "sqlite3", {"/labels": [s[["x", "y", "z", "label"]] for s in predicted]})
    only_truth = record(tmp_path / "truth.bag", "ros1", {"/lidar": truth, "/other": truth[:1]})
    beside = ("--predictions", only_labels, "--dataset", only_truth, "--ground-truth-topic", "/lidar")
    for arguments in (("--predictions", both), beside):
        bags = evaluated(tmp_path, *arguments, "--border")
        for key in ("confusion", "miou", "iou", "strict", "by_range", "border", "support"):
            assert bags[key] == folders[key], key
    first = evaluated(tmp_path, "--predictions", both, "--limit", "1")
    assert [scan["points"] for scan in first["scans"]] == [3000]


def test_a_folder_of_bags_is_evaluated_as_a_whole(tmp_path: Path) -> None:
    one, other = labelled(scans(1, seed=1)), labelled(scans(2, seed=2))
    (tmp_path / "all" / "day").mkdir(parents=True)
    record(tmp_path / "all" / "day" / "a", "mcap", {"/lidar": one})
    record(tmp_path / "all" / "b.bag", "ros1", {"/lidar": other})
    together = record(tmp_path / "one", "mcap", {"/lidar": one + other})
    found = evaluated(tmp_path, "--predictions", tmp_path / "all")
    assert found["confusion"] == evaluated(tmp_path, "--predictions", together)["confusion"]
    assert [scan["name"].rpartition("/")[0] for scan in found["scans"]] == ["b", "b", "day/a"]


def test_bags_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = scans(3)
    predicted = labelled(truth)
    whole = record(tmp_path / "whole", "mcap", {"/lidar": predicted})
    plain = record(tmp_path / "plain", "mcap", {"/lidar": truth})
    fewer = record(tmp_path / "fewer", "mcap", {"/lidar": predicted[:2]})
    shorter = record(tmp_path / "shorter", "mcap", {"/lidar": [predicted[0], predicted[1][:-1], predicted[2]]})
    strange = predicted[1].copy()
    strange["label"][3] = 77
    unknown = record(tmp_path / "unknown", "mcap", {"/lidar": [predicted[0], strange, predicted[2]]})
    for arguments, words in (
        (("--predictions", plain), ("'label'", str(plain), "1600000000.000000000", "`sqsegv3 label`")),
        (("--predictions", whole, "--label-field", "x"), ("'x'", "integer")),
        (("--predictions", whole, "--ground-truth-field", "truth"), ("'truth'", "--dataset")),
        (("--predictions", fewer, "--dataset", plain), ("2 labelled clouds", "3 with ground truth")),
        (("--predictions", shorter, "--dataset", plain), (str(shorter), "499 labels", "500 points")),
        (("--predictions", unknown), (str(unknown), "0..19", "77")),
        (("--predictions", whole, "--dataset", tmp_path / "absent"), ("no bag", "absent")),
        (("--predictions", whole, "--topic", "/side"), ("no topic /side",)),
        (("--predictions", whole, "--sequences", "00"), ("--sequences",)),
        (("--predictions", tmp_path / "nothing"), ("--dataset",)),
        (("--predictions", tmp_path / "nothing", "--dataset", tmp_path, "--topic", "/a"), ("--topic", "for bags")),
    ):
        assert evaluate(*arguments, "--json", tmp_path / "out.json") == 2, words
        said = capsys.readouterr().err
        assert all(word in said for word in words) and "Traceback" not in said, said
        assert not (tmp_path / "out.json").exists()


def test_clouds_with_different_stamps_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = scans(2)
    bag = record(tmp_path / "labels", "mcap", {"/lidar": labelled(truth)})
    monkeypatch.setattr("recording.PERIOD_NS", 50_000_000)
    other = record(tmp_path / "truth", "mcap", {"/lidar": truth})
    assert evaluate("--predictions", bag, "--dataset", other) == 2
    assert "cloud 2 of bag" in capsys.readouterr().err
