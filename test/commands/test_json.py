# SPDX-License-Identifier: Apache-2.0
"""`--json`: standard output is one JSON document, whose numbers are those of the text and of the written files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import read_labels, write_labels, write_scan
from sqsegv3_ros.inference.model_file import read_info

SCANS, POINTS = 3, 400
Numbers = Callable[..., tuple[dict[str, Any], list[float]]]


def numbers_in(text: str) -> list[float]:
    """The numbers in a text that are not part of a name or path."""
    return [float(number) for number in re.findall(r"(?<![\w/.-])\d+(?:\.\d+)?(?![\w/.])", text)]


@pytest.fixture
def numbers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Numbers:
    """Run a command twice; return its JSON and the numbers in its text. FILE and - must give the same JSON."""

    def run(*arguments: object) -> tuple[dict[str, Any], list[float]]:
        words, file = [str(argument) for argument in arguments], tmp_path / "results" / "numbers.json"
        assert main([*words, "--json", str(file)]) == 0
        text = capfd.readouterr().out
        assert main([*words, "--json", "-"]) == 0
        printed = json.loads(capfd.readouterr().out)  # fails if anything else is printed
        assert json.loads(file.read_text()) == printed
        assert len(text.splitlines()) == 1, text
        return printed, numbers_in(text)

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sequence with labels and without poses."""
    folder, generator = tmp_path / "kitti" / "sequences" / "04", np.random.default_rng(0)
    for number in range(SCANS):
        scan = (generator.normal(size=(POINTS, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
        write_scan(folder / "velodyne" / f"{number:06d}.bin", scan)
        write_labels(folder / "labels" / f"{number:06d}.label", np.full(POINTS, 40, np.uint32))
    return tmp_path / "kitti"


def test_convert_counts_clouds_and_scans(numbers: Numbers, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    bag, back = tmp_path / "bag", tmp_path / "back"
    found, shown = numbers("convert", root, "--bag", bag, "--force")
    assert found == {
        "output": str(bag), "topic": "/velodyne_points", "storage": "mcap", "scans": SCANS, "labels": True,
        "poses": False,
    }  # fmt: skip
    assert shown == [SCANS]
    found, shown = numbers("convert", bag, "--output", back, "--sequence", "7", "--force")
    assert found == {"output": str(back / "sequences" / "07"), "scans": SCANS, "labels": True, "poses": False}
    assert shown == [SCANS] == [len(list(back.glob("sequences/07/velodyne/*.bin")))]


def test_convert_counts_compressed_scans(numbers: Numbers, tmp_path: Path) -> None:
    for name in "ab":
        steps, remissions = np.ones((3, 50), np.int16), np.zeros(50, np.uint8)
        np.savez_compressed(tmp_path / f"{name}.npz", dxyz=steps, rem=remissions, label=np.full(50, 40, np.uint8))
    found, shown = numbers("convert", tmp_path, "--output", tmp_path / "out", "--force")
    assert found == {"output": str(tmp_path / "out/sequences/00"), "scans": 2, "labels": True, "poses": False}
    assert shown == [2]


def test_simulate_has_its_settings_and_outputs(numbers: Numbers, tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="needs embreex: pip install 'sqsegv3_ros[simulate]'")
    options = ("--scans", 2, "--sensor", "vlp16", "--scene", "highway", "--seed", 3)
    found, shown = numbers("simulate", *options, "--output", tmp_path / "out")
    assert found == {
        "scans": 2, "sensor": "vlp16", "seed": 3, "scene": "highway", "drive": False, "motion": "compensated",
        "outputs": [str(tmp_path / "out")],
    }  # fmt: skip
    assert shown == [2] == [len(list(tmp_path.glob("out/sequences/00/velodyne/*.bin")))]


def test_export_describes_the_written_file(
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "again.pt"
    command = ["export", str(small_model), "--output", str(target), "--width", "128", "--half", "--force", "--json"]
    for file in ("-", str(tmp_path / "export.json")):  # not compared: torch names things anew, which changes the size
        assert main([*command, file]) == 0
        text = capfd.readouterr().out
        found = json.loads(text if file == "-" else Path(file).read_text())
        info, size = read_info(target), target.stat().st_size
        assert found == {
            "output": str(target), "name": info.name, "classes": 20, "image_height": 64, "image_width": 128,
            "knn_mode": info.knn.mode, "weights_dtype": "float16", "bytes": size,
        }  # fmt: skip
    assert numbers_in(text) == [20, 64, 128, round(size / 1e6, 2)]


def test_label_counts_inputs_and_clouds_and_summarizes_them(
    numbers: Numbers, small_model: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["label", str(root), "--output", str(out), "--model", str(small_model), "--threads", "1"]
    found, shown = numbers(*command, "--backend", "torch", "--precision", "fp32", "--force")
    warnings = found.pop("warnings")
    assert found == {
        "output": str(out), "manifest": str(out / "manifest.jsonl"), "model": "small-random",
        "runtime": "torch on cpu, fp32, 1 thread", "inputs": 1, "finished_before": 0, "done": 1, "quarantined": 0,
        "failed": 0, "clouds": SCANS, "skipped_clouds": 0,
    }  # fmt: skip
    assert shown[0] == SCANS == len(list(out.rglob("*.label")))
    assert all(source.startswith(str(root)) for source in warnings)

    again, shown = numbers(*command, "--backend", "torch", "--precision", "fp32")  # nothing is left to do
    assert again == {**found, "finished_before": 1, "done": 0, "clouds": 0, "warnings": {}}
    assert shown == [1]

    assert main(["label", "--summary", str(out / "manifest.jsonl"), "--json", "-"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["done"], summary["clouds"], summary["points"]) == (1, SCANS, SCANS * POINTS)
    raw = np.concatenate([read_labels(path) for path in sorted(out.rglob("*.label"))])
    assert summary["class_shares"].get("road", 0) == pytest.approx((raw == 40).mean())


def test_label_counts_quarantined_inputs(small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scan, bad = tmp_path / "good.bin", tmp_path / "bad.bin"
    write_scan(scan, np.ones((POINTS, 4), np.float32))
    bad.write_bytes(bytes(15))  # not a multiple of 16
    command = ["label", str(scan), str(bad), "--output", str(tmp_path / "out"), "--model", str(small_model)]
    assert main([*command, "--on-error", "quarantine", "--json", "-"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["done"], found["quarantined"], found["failed"], found["clouds"]) == (1, 1, 0, 1)


def test_ablate_lists_the_training_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--commands", "--json", "-"]) == 0
    commands = json.loads(capfd.readouterr().out)["commands"]
    assert main(["ablate", "--commands"]) == 0
    assert capfd.readouterr().out.splitlines() == commands
