# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 evaluate` on point-cloud files: the same numbers as for a data set, and its messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan

COUNT = 500
CLASSES = np.array([SEMANTIC_KITTI.index(name) for name in ("road", "car", "person")])
FIELDS = [(name, "f4") for name in ("x", "y", "z", "intensity")]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two scans as a data set, as files with a field ground_truth, and as files with .label files; a third is wrong."""
    generator = np.random.default_rng(0)
    for number in range(2):
        points = (generator.normal(size=(COUNT, 4)) * 20).astype(np.float32)
        truth, predicted = CLASSES[generator.integers(3, size=(2, COUNT))]
        raw, raw_predicted = SEMANTIC_KITTI.to_raw(truth), SEMANTIC_KITTI.to_raw(predicted)
        name = f"{number:06d}"
        write_scan(tmp_path / f"data/sequences/00/velodyne/{name}.bin", points)
        write_labels(tmp_path / f"data/sequences/00/labels/{name}.label", raw)
        write_labels(tmp_path / f"predicted/sequences/00/predictions/{name}.label", raw_predicted)

        rows = [(*p, t) for p, t in zip(points.tolist(), truth, strict=True)]
        for folder in ("field/day", "beside/day"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"field/day/{name}.npy", np.array(rows, [*FIELDS, ("ground_truth", "i8")]))
        np.save(tmp_path / f"beside/day/{name}.npy", points)
        write_labels(tmp_path / f"beside/day/{name}.label", raw)
        write_labels(tmp_path / f"out/day/{name}.label", raw_predicted)
    return tmp_path


def evaluate(root: Path, dataset: str, predictions: str, *more: str) -> int:
    paths = ("--dataset", str(root / dataset), "--predictions", str(root / predictions))
    return main(["evaluate", *paths, "--json", str(root / "out.json"), *more])


def evaluated(root: Path, *arguments: str) -> dict:
    assert evaluate(root, *arguments) == 0
    return json.loads((root / "out.json").read_text())


def test_files_give_the_numbers_of_the_same_scans_in_a_data_set(folders: Path) -> None:
    expected = evaluated(folders, "data", "predicted", "--border")
    assert 0.1 < expected["accuracy"] < 0.6
    for dataset in ("field", "beside"):
        found = evaluated(folders, dataset, "out", "--border")
        assert [scan["name"] for scan in found["scans"]] == ["day/000000", "day/000001"]
        for key in ("confusion", "by_range", "border", "accuracy", "miou_present"):
            assert found[key] == expected[key], key
    one = evaluated(folders, "beside", "out", "--limit", "1")
    assert one["points"] == COUNT


def test_files_that_do_not_fit_are_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert evaluate(folders, *arguments) == 2
        return capsys.readouterr().err

    assert "no predictions folder" in refused("field", "nowhere")
    assert "has no las files" in refused("field", "out", "--format", "las")
    assert "--sequences is for SemanticKITTI" in refused("field", "out", "--sequences", "00")
    write_labels(folders / "out/day/000007.label", np.zeros(3))
    assert "000007.label: no cloud of that name" in refused("field", "out")
    (folders / "out/day/000007.label").unlink()
    (folders / "beside/day/000001.label").unlink()
    assert "beside/day/000001.label" in refused("beside", "out")
    (folders / "out/day/000001.label").unlink()
    assert "out/day/000001.label" in refused("field", "out")
    write_labels(folders / "out/day/000000.label", np.zeros(3))
    assert "3 labels, but the scan has 500 points" in refused("field", "out")
    (folders / "empty").mkdir()
    assert "has no point-cloud files" in refused("empty", "out")
