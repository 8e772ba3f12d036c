# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label` on point-cloud files: the labels of every point in order, the outputs' names, and its messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import read_labels
from sqsegv3_ros.inference.segmenter import Segmenter

COUNT = 3000
FIELDS = [(name, "f4") for name in ("x", "y", "z", "reflectivity", "signal")] + [("ring", "u2"), ("ground_truth", "u1")]


def scan(seed: int) -> np.ndarray:
    points = (np.random.default_rng(seed).normal(size=(COUNT, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    points[:, 3] = np.abs(points[:, 3])
    return points


def truth(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 20, COUNT)


def write_fields(path: Path, seed: int) -> None:
    """Structured points; reflectivity is 0..255, signal is not the intensity."""
    points = scan(seed) * np.float32([1, 1, 1, 256])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*points.T.tolist(), [7.0] * COUNT, [0] * COUNT, truth(seed).tolist(), strict=True)
    np.save(path, np.array(list(rows), FIELDS))


def write_nuscenes(path: Path, seed: int) -> None:
    points = np.column_stack([scan(seed) * np.float32([1, 1, 1, 256]), np.zeros(COUNT)]).astype("<f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(points.tobytes())


def label(model: Path, *arguments: object) -> int:
    return main([str(argument) for argument in ("label", "--backend", "torch", "--model", model, *arguments)])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    write_fields(folder / "day" / "a.npy", 0)
    write_fields(folder / "day" / "b.npy", 1)
    write_nuscenes(folder / "night" / "c.pcd.bin", 2)
    return folder


def test_files_of_a_folder_give_labels_in_their_order_and_place_and_can_be_evaluated(
    small_model: Path, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert label(small_model, archive, "--output", out, "--intensity-scale", 1 / 256) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.label"))
    assert written == ["day/a.label", "day/b.label", "night/c.label"]
    segmenter = Segmenter(small_model, backend="torch")
    for seed, name in enumerate(("day/a", "day/b", "night/c")):
        expected = SEMANTIC_KITTI.to_raw(segmenter.segment(scan(seed)).labels)
        np.testing.assert_array_equal(read_labels(out / f"{name}.label"), expected)

    day = ("--dataset", archive / "day", "--predictions", out / "day", "--json", tmp_path / "out.json")
    assert main(["evaluate", *map(str, day)]) == 0
    right = [SEMANTIC_KITTI.to_labels(read_labels(out / f"day/{n}.label")) == truth(s) for s, n in enumerate("ab")]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["strict"]["accuracy"] == pytest.approx(np.mean(right))


def test_a_file_is_labelled_with_the_given_format_and_intensity(
    small_model: Path, archive: Path, tmp_path: Path
) -> None:
    plain = archive / "night" / "c.bin"
    (archive / "night" / "c.pcd.bin").rename(plain)
    scale = ("--intensity-scale", 1 / 256)
    assert label(small_model, plain, "--output", tmp_path / "out", "--format", "nuscenes", *scale) == 0
    segmenter = Segmenter(small_model, backend="torch")
    expected = SEMANTIC_KITTI.to_raw(segmenter.segment(scan(2)).labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "c.label"), expected)

    signal = ("--intensity-field", "signal")
    assert label(small_model, archive / "day" / "a.npy", "--output", tmp_path / "signal", *signal) == 0
    points = scan(0)
    points[:, 3] = 7
    expected = SEMANTIC_KITTI.to_raw(segmenter.segment(points).labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "signal" / "a.label"), expected)


def test_unusable_files_are_named_and_can_be_skipped(
    small_model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "day" / "a.npy").write_bytes(b"")
    (archive / "night" / "d.bin").write_bytes(b"")
    assert label(small_model, archive, "--output", tmp_path / "out") == 2
    assert "day/a.npy cannot be read as npy: it is empty" in capsys.readouterr().err
    assert label(small_model, archive / "day" / "a.npy", "--output", tmp_path / "alone") == 2
    assert not (tmp_path / "alone").exists()
    assert label(small_model, archive, "--output", tmp_path / "some", "--on-error", "skip-cloud") == 0
    assert not (tmp_path / "some/day/a.label").exists() and not (tmp_path / "some/night/d.label").exists()
    assert label(small_model, archive / "night" / "d.bin", "--output", tmp_path / "alone") == 2
    assert "d.bin has no points; it may be truncated" in capsys.readouterr().err
    assert len(read_labels(tmp_path / "some/day/b.label")) == COUNT
    (tmp_path / "notes.txt").write_text("x")
    assert label(small_model, tmp_path / "notes.txt", "--output", tmp_path / "no") == 2
    assert "expected a point-cloud file (.bin, .pcd," in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").rename(tmp_path / "none" / "notes.txt")
    assert label(small_model, tmp_path / "none", "--output", tmp_path / "no") == 2
    assert "has no bags and no point-cloud files" in capsys.readouterr().err
    assert label(small_model, archive, "--output", tmp_path / "no", "--format", "las") == 2
    assert "has no las files" in capsys.readouterr().err
