# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 evaluate` on data sets: its numbers, and its messages for folders that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, GOLDEN, needs_shared

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan

CAR, ROAD, BUILDING = 10, 40, 50  # raw ids
MOVING_CAR = 252


def place(root: Path, scan: str, points, truth, prediction) -> None:
    """One scan of a data set at root/data and its prediction at root/predicted."""
    sequence, stem = scan.split("/")
    folder = root / "data" / "sequences" / sequence
    write_scan(folder / "velodyne" / f"{stem}.bin", np.asarray(points, dtype=np.float32))
    write_labels(folder / "labels" / f"{stem}.label", np.asarray(truth))
    write_labels(predicted(root, scan), np.asarray(prediction))


def predicted(root: Path, scan: str) -> Path:
    sequence, stem = scan.split("/")
    return root / "predicted" / "sequences" / sequence / "predictions" / f"{stem}.label"


def at_ranges(*ranges: float) -> np.ndarray:
    points = np.zeros((len(ranges), 4), dtype=np.float32)
    points[:, 0] = ranges
    return points


@pytest.fixture
def folders(tmp_path):
    """Two sequences, three scans, four points each."""
    instance = 7 << 16
    truth = np.array([CAR | instance, ROAD, ROAD, 0], dtype=np.uint32)
    place(tmp_path, "00/000000", at_ranges(5, 15, 25, 60), truth, [CAR, ROAD, CAR, ROAD])
    place(tmp_path, "00/000001", at_ranges(5, 15, 25, 60), truth, [CAR, ROAD, ROAD, ROAD])
    place(tmp_path, "03/000000", at_ranges(5, 15, 25, 60), [MOVING_CAR, ROAD, ROAD, ROAD], [CAR, 0, ROAD, BUILDING])
    return tmp_path


def evaluate(root: Path, *more: str) -> int:
    return main(["evaluate", "--dataset", str(root / "data"), "--predictions", str(root / "predicted"), *more])


def evaluated(root: Path, *more: str) -> dict:
    assert evaluate(root, "--json", str(root / "out.json"), *more) == 0
    return json.loads((root / "out.json").read_text())


def test_numbers_of_a_small_data_set_computed_by_hand(folders):
    found = evaluated(folders)
    # car: TP 3, FP 1, FN 0. road: TP 4, FP 0, FN 2, one more lost to unlabeled. building: FP 1
    assert found["iou"]["car"] == pytest.approx(3 / 4)
    assert found["iou"]["road"] == pytest.approx(4 / 6)
    assert found["iou"]["building"] == 0
    assert found["iou"]["person"] == 0
    assert found["miou"] == pytest.approx((3 / 4 + 4 / 6) / 19)
    assert found["miou_present"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert found["accuracy"] == pytest.approx(7 / 9)
    assert found["strict"]["iou"]["road"] == pytest.approx(4 / 7)
    assert found["strict"]["accuracy"] == pytest.approx(7 / 10)
    assert (found["points"], found["evaluated_points"], found["left_unlabeled"], found["scan_count"]) == (12, 10, 1, 3)
    assert found["support"]["road"] == 7


def test_confusion_has_predictions_as_rows_and_names_its_classes(folders):
    confusion = evaluated(folders)["confusion"]
    assert (confusion["rows"], confusion["columns"]) == ("prediction", "ground_truth")
    names = confusion["classes"]
    counts = np.array(confusion["counts"])
    assert counts.sum() == 12
    assert counts[names.index("building"), names.index("road")] == 1
    assert counts[names.index("unlabeled"), names.index("road")] == 1


def test_points_are_evaluated_by_range(folders):
    near, middle, far, _, farthest = evaluated(folders)["by_range"]
    assert (near["from_m"], near["to_m"], near["points"], near["accuracy"]) == (0, 10, 3, 1.0)
    assert middle["left_unlabeled"] == 1
    assert far["accuracy"] == pytest.approx(2 / 3)
    assert (farthest["to_m"], farthest["points"], farthest["evaluated_points"], farthest["accuracy"]) == (
        None,
        3,
        1,
        0.0,
    )


def test_points_without_a_finite_range_have_a_band_of_their_own(tmp_path):
    place(tmp_path, "00/000000", at_ranges(5, np.nan, np.inf), [ROAD, ROAD, ROAD], [ROAD, ROAD, CAR])
    found = evaluated(tmp_path)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert sum(band["points"] for band in found["by_range"]) == found["points"] == 3
    last = found["by_range"][-1]
    assert (last["from_m"], last["to_m"], last["points"], last["accuracy"]) == (None, None, 2, 0.5)


def test_sequences_and_limit_select_scans(folders):
    assert evaluated(folders, "--sequences", "3")["scan_count"] == 1
    first = evaluated(folders, "--sequences", "00", "--limit", "1")
    assert [scan["name"] for scan in first["scans"]] == ["00/000000"]
    assert first["limit"] == 1
    assert first["scans"][0]["accuracy"] == pytest.approx(2 / 3)


@needs_shared
def test_numbers_in_the_file_equal_the_official_release(tmp_path):
    golden = np.load(GOLDEN / "ioueval.npz")
    truth, prediction = SEMANTIC_KITTI.to_raw(golden["gt"]), SEMANTIC_KITTI.to_raw(golden["pred2"])
    for part in range(2):
        half = slice(part * 10000, (part + 1) * 10000)
        place(tmp_path, f"00/00000{part}", at_ranges(*range(10000)), truth[half], prediction[half])
    found = evaluated(tmp_path)
    assert found["miou"] == pytest.approx(float(golden["miou2"]), abs=1e-12)
    assert found["accuracy"] == pytest.approx(float(golden["acc2"]), abs=1e-12)
    assert list(found["iou"].values()) == pytest.approx(list(golden["iou2"][1:]), abs=1e-12)


@needs_shared
def test_border_iou_in_the_file_equals_the_official_release(tmp_path):
    golden = np.load(GOLDEN / "biou.npz")
    folder = tmp_path / "data" / "sequences" / "00"
    folder.mkdir(parents=True)
    scan = DATA / "semantic_kitti/sequences/00/velodyne/000000.bin"
    (folder / "velodyne").mkdir()
    (folder / "velodyne" / "000000.bin").symlink_to(scan)
    write_labels(folder / "labels" / "000000.label", SEMANTIC_KITTI.to_raw(golden["gt"]))
    write_labels(predicted(tmp_path, "00/000000"), SEMANTIC_KITTI.to_raw(golden["pred"]))
    for options, key in ((["--border"], "1_4"), (["--border", "2", "--border-connectivity", "8"], "2_8")):
        border = evaluated(tmp_path, *options)["border"]
        assert border["miou"] == pytest.approx(float(golden[f"miou_{key}"]), abs=1e-12)
        assert border["accuracy"] == pytest.approx(float(golden[f"acc_{key}"]), abs=1e-12)
        assert list(border["iou"].values()) == pytest.approx(list(golden[f"iou_{key}"][1:]), abs=1e-12)


def test_the_table_shows_the_numbers_of_the_file(folders, capsys):
    evaluated(folders, "--border")  # no two points are in neighbouring pixels, so none is near a border
    table = capsys.readouterr().out
    rows = {line[:18].strip(): line[18:].split() for line in table.splitlines()}
    assert rows["car"] == ["75.0", "75.0", "-", "3"]
    assert rows["person"] == ["-", "-", "-", "0"]
    assert rows["accuracy"][:2] == ["77.8", "70.0"]
    assert rows["50 m and more"][-1] == "1"


def test_another_label_set_from_yaml(folders):
    configuration = folders / "two.yaml"
    configuration.write_text(
        "name: two\n"
        "labels: {0: none, 10: vehicle, 40: rest}\n"
        "color_map: {0: [0, 0, 0], 10: [1, 2, 3], 40: [4, 5, 6]}\n"
        "learning_map: {0: 0, 10: 1, 252: 1, 40: 2, 50: 2}\n"
        "learning_map_inv: {0: 0, 1: 10, 2: 40}\n"
        "learning_ignore: {0: true}\n"
    )
    found = evaluated(folders, "--labels", str(configuration))
    assert list(found["iou"]) == ["vehicle", "rest"]
    assert found["iou"]["rest"] == pytest.approx(5 / 6)  # building counts as rest


def refused(root: Path, capsys, *more: str) -> str:
    """Evaluate, expect exit code 2 without output, and return the message."""
    assert evaluate(root, "--json", str(root / "out.json"), *more) == 2
    assert not (root / "out.json").exists()
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_a_missing_prediction_is_named(folders, capsys):
    path = predicted(folders, "00/000001")
    path.unlink()
    message = refused(folders, capsys)
    assert str(path) in message
    assert "1 of 2" in message


def test_a_prediction_without_a_scan_is_named(folders, capsys):
    path = predicted(folders, "00/000009")
    write_labels(path, np.zeros(4, dtype=np.uint32))
    assert str(path) in refused(folders, capsys)


@pytest.mark.parametrize("which", ["truth", "prediction"])
def test_labels_that_do_not_match_the_points_are_named_with_both_counts(folders, capsys, which):
    path = predicted(folders, "03/000000")
    if which == "truth":
        path = folders / "data/sequences/03/labels/000000.label"
    write_labels(path, np.full(5, ROAD))
    message = refused(folders, capsys)
    assert str(path) in message
    assert "5 labels" in message
    assert "4 points" in message


@pytest.mark.parametrize("which", ["truth", "prediction"])
def test_ids_that_are_not_in_the_label_set_are_named(folders, capsys, which):
    path = predicted(folders, "00/000000")
    if which == "truth":
        path = folders / "data/sequences/00/labels/000000.label"
    write_labels(path, np.array([CAR, 77, ROAD, 300]))
    message = refused(folders, capsys)
    assert str(path) in message
    assert "77, 300" in message


def test_a_sequence_without_ground_truth_is_named(folders, capsys):
    labels = folders / "data/sequences/03/labels"
    (labels / "000000.label").unlink()
    assert str(labels / "000000.label") in refused(folders, capsys)
    labels.rmdir()
    message = refused(folders, capsys)
    assert str(labels) in message
    assert "03" in message


def test_a_sequence_without_predictions_is_named(folders, capsys):
    predicted(folders, "03/000000").unlink()
    predicted(folders, "03/000000").parent.rmdir()
    assert str(predicted(folders, "03/000000").parent) in refused(folders, capsys)


def test_folders_that_are_not_a_data_set_are_named(folders, capsys):
    (folders / "empty").mkdir()
    assert main(["evaluate", "--dataset", str(folders / "empty"), "--predictions", str(folders / "predicted")]) == 2
    assert str(folders / "empty") in capsys.readouterr().err
    assert main(["evaluate", "--dataset", str(folders / "data"), "--predictions", str(folders / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert "no sequence '05'" in refused(folders, capsys, "--sequences", "05")


def test_a_truncated_scan_is_named(folders, capsys):
    path = folders / "data/sequences/00/velodyne/000000.bin"
    path.write_bytes(path.read_bytes()[:-3])
    assert str(path) in refused(folders, capsys)


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(folders, capsys):
    target = folders / "taken.json"
    target.mkdir()
    assert evaluate(folders, "--json", str(target)) == 2
    assert str(target) in capsys.readouterr().err
    assert sorted(p.name for p in folders.iterdir()) == ["data", "predicted", "taken.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "0"], "--limit must be 1 or more, found 0"),
        (["--limit", "two"], "invalid int value: 'two'"),
        (["--border", "0"], "pixels must be 1 or more"),
        (["--border", "--border-connectivity", "6"], "invalid choice: "),
        (["--border-connectivity", "8"], "--border"),
    ],
)
def test_invalid_options_are_refused(folders, capsys, options, words):
    assert evaluate(folders, *options) == 2
    assert words in capsys.readouterr().err


def test_a_sequence_named_twice_counts_once(folders):
    assert evaluate(folders, "--sequences", "00", "0", "--json", str(folders / "twice.json")) == 0
    assert evaluate(folders, "--sequences", "00", "--json", str(folders / "once.json")) == 0
    assert (folders / "twice.json").read_text() == (folders / "once.json").read_text()
