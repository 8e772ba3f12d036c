# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 inspect ROOT` counts the scans of a data set and fails if files are damaged or missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for sequence, points in (("00", 1_000_000), ("01", 200_000), ("11", 300_000)):
        write_scan(tmp_path / f"data/sequences/{sequence}/velodyne/000000.bin", np.zeros((points, 4)))
        if sequence != "11":
            write_labels(tmp_path / f"data/sequences/{sequence}/labels/000000.label", np.zeros(points))
    return tmp_path / "data"


def test_a_sound_root_is_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root)]) == 0
    *rows, note = capsys.readouterr().out.splitlines()
    assert note == "no labels in 11: training and evaluation need them, labelling does not"
    assert [row.split() for row in rows[1:]] == [
        ["00", "1", "1", "1.0"],
        ["01", "1", "1", "0.2"],
        ["11", "1", "0", "0.3"],
        ["all", "3", "2", "1.5"],
    ]
    assert main(["inspect", str(root), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sequences"]["01"] == {"scans": 1, "labelled": 1, "points": 200_000}
    assert (found["scans"], found["labelled"], found["points"], found["problems"]) == (3, 2, 1_500_000, [])


def test_damaged_files_fail_with_a_message_and_are_in_the_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labels(root / "sequences/01/labels/000000.label", np.zeros(7))
    assert main(["inspect", str(root), "--json", "-"]) == 2
    captured = capsys.readouterr()
    problem = "sequences/01/labels/000000.label: 28 bytes, expected 800000"
    assert json.loads(captured.out)["problems"] == [problem]
    assert captured.err == f"sqsegv3 inspect: {root}: 1 problem\n"
    assert main(["inspect", str(root)]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == problem


def test_a_part_of_the_data_set_is_not_complete(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root), "--complete"]) == 2
    captured = capsys.readouterr()
    (error,) = captured.err.splitlines()
    assert "12 problems; unpack the archives" in error
    assert "sequence 00 has 1 scans, expected 4541" in captured.out
    assert captured.out.splitlines()[-1] == "... and 2 more (all with --json)"


def test_options_of_models_and_of_data_sets_do_not_mix(
    root: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((root, "--runtime"), "are for a model file"),
        ((root, "--threads", "1"), "are for a model file"),
        ((root, "--legend", root / "legend.png"), "are for a model file"),
        ((root.parent,), "is a folder without sequences/NN/velodyne"),
        ((small_model, "--complete"), "--complete is for a SemanticKITTI data set"),
        (("--complete",), "--complete is for a SemanticKITTI data set"),
    ):
        assert main(["inspect", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err


def test_a_data_set_may_have_the_name_of_a_shipped_model(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root.parent)
    (root.parent / "small").mkdir()
    assert main(["inspect", "small"]) == 0
    assert "network" in capsys.readouterr().out
    (root.parent / "small").rmdir()
    root.rename(root.parent / "small")
    assert main(["inspect", "small"]) == 0
    assert "M points" in capsys.readouterr().out
