# SPDX-License-Identifier: Apache-2.0
"""The check of a data set finds each file that training would refuse, and what a download lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sqsegv3_ros.data.dataset_check import LABELLED_SCANS, TEST_SCANS, SequenceCheck, check_dataset, missing_scans
from sqsegv3_ros.errors import UserError

POINTS = 25


def write_sequence(root: Path, sequence: str, scans: int, labelled: bool = True) -> Path:
    folder = root / "sequences" / sequence
    (folder / "velodyne").mkdir(parents=True)
    (folder / "poses.txt").write_text("")
    for number in range(scans):
        (folder / f"velodyne/{number:06d}.bin").write_bytes(bytes(16 * POINTS))
        if labelled:
            (folder / "labels").mkdir(exist_ok=True)
            (folder / f"labels/{number:06d}.label").write_bytes(bytes(4 * POINTS))
    return folder


def test_scans_labels_and_points_are_counted_by_sequence(tmp_path: Path) -> None:
    write_sequence(tmp_path, "11", 2, labelled=False)
    write_sequence(tmp_path, "03", 3)
    assert check_dataset(tmp_path) == [
        SequenceCheck("03", 3, 3, 3 * POINTS, ()),
        SequenceCheck("11", 2, 0, 2 * POINTS, ()),
    ]


def cut_scan(folder: Path) -> str:
    (folder / "velodyne/000001.bin").write_bytes(bytes(16 * POINTS - 3))
    return "sequences/03/velodyne/000001.bin: 397 bytes, expected a multiple of 16 above 0"


def empty_scan(folder: Path) -> str:
    (folder / "velodyne/000001.bin").write_bytes(b"")
    return "sequences/03/velodyne/000001.bin: 0 bytes, expected a multiple of 16 above 0"


def cut_label(folder: Path) -> str:
    (folder / "labels/000001.label").write_bytes(bytes(4 * POINTS - 1))
    return "sequences/03/labels/000001.label: 99 bytes, expected 100"


def missing_label(folder: Path) -> str:
    (folder / "labels/000001.label").unlink()
    return "sequences/03/labels/000001.label: missing"


def missing_scan(folder: Path) -> str:
    (folder / "velodyne/000001.bin").unlink()
    return "sequences/03/labels/000001.label: no scan velodyne/000001.bin"


def no_scans(folder: Path) -> str:
    for file in folder.glob("velodyne/*"):
        file.unlink()
    return "sequences/03/velodyne: no .bin files"


def no_scan_folder(folder: Path) -> str:
    shutil.rmtree(folder / "velodyne")
    return "sequences/03/velodyne: No such file or directory"


def empty_labels(folder: Path) -> str:
    for file in folder.glob("labels/*"):
        file.unlink()
    return "sequences/03/labels: no .label files"


def scan_folder(folder: Path) -> str:
    (folder / "velodyne/000001.bin").unlink()
    (folder / "velodyne/000001.bin").mkdir()
    return "sequences/03/velodyne/000001.bin: not a file"


def dangling_scan(folder: Path) -> str:
    (folder / "velodyne/000001.bin").unlink()
    (folder / "velodyne/000001.bin").symlink_to("/nowhere")
    return "sequences/03/velodyne/000001.bin: No such file or directory"


def dangling_label(folder: Path) -> str:
    (folder / "labels/000001.label").unlink()
    (folder / "labels/000001.label").symlink_to("/nowhere")
    return "sequences/03/labels/000001.label: No such file or directory"


def dangling_labels(folder: Path) -> str:
    shutil.rmtree(folder / "labels")
    (folder / "labels").symlink_to("/nowhere")
    return "sequences/03/labels: No such file or directory"


def labels_file(folder: Path) -> str:
    shutil.rmtree(folder / "labels")
    (folder / "labels").write_text("")
    return "sequences/03/labels: Not a directory"


SPOILED = (cut_scan, empty_scan, cut_label, missing_label, missing_scan, no_scans, no_scan_folder, empty_labels)
SPOILED += (scan_folder, dangling_scan, dangling_label, dangling_labels, labels_file)


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_file_that_training_would_refuse_is_a_problem(tmp_path: Path, spoil) -> None:
    write_sequence(tmp_path, "01", 2)
    message = spoil(write_sequence(tmp_path, "03", 3))
    first, second = check_dataset(tmp_path)
    assert (first.problems, second.problems) == ((), (message,))


def test_a_sequence_that_is_a_dangling_link_is_a_problem(tmp_path: Path) -> None:
    write_sequence(tmp_path, "01", 2)
    (tmp_path / "sequences/03").symlink_to("/nowhere")
    (tmp_path / "sequences/README").write_text("")
    assert [check.problems for check in check_dataset(tmp_path)] == [
        (),
        ("sequences/03/velodyne: No such file or directory",),
    ]


@pytest.mark.parametrize("layout", ["", "velodyne", "sequences/00"])
def test_a_folder_without_scans_is_refused(tmp_path: Path, layout: str) -> None:
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="is a folder without sequences/NN/velodyne"):
        check_dataset(tmp_path)


def whole() -> dict[str, SequenceCheck]:
    labelled = {s: SequenceCheck(s, count, count, 1, ()) for s, count in LABELLED_SCANS.items()}
    return labelled | {s: SequenceCheck(s, count, 0, 1, ()) for s, count in TEST_SCANS.items()}


def test_counts_are_those_that_the_data_set_publishes() -> None:
    assert sum(LABELLED_SCANS.values()) == 23201
    assert sum(TEST_SCANS.values()) == 20351
    assert missing_scans(list(whole().values())) == []
    assert (
        missing_scans([check for s, check in whole().items() if s <= "10"]) == []
    )  # the test sequences may be left out


def test_a_missing_sequence_scan_or_label_archive_is_named() -> None:
    checks = whole()
    del checks["02"]
    checks["03"] = SequenceCheck("03", 790, 790, 1, ())
    checks["04"] = SequenceCheck("04", 271, 0, 1, ())
    checks["20"] = SequenceCheck("20", 830, 0, 1, ())
    assert missing_scans(list(checks.values())) == [
        "sequence 02 is missing: expected 4661 labelled scans",
        "sequence 03 has 790 scans, expected 801",
        "sequence 04 has no labels, expected 271",
        "sequence 20 has 830 scans, expected 831",
    ]
