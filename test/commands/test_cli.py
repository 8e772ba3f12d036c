# SPDX-License-Identifier: Apache-2.0
"""The command line, called as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from sqsegv3_ros.cli import COMMANDS, main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import read_labels, write_scan
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.range_image import ProjectionConfig
from sqsegv3_ros.inference.segmenter import Segmenter

TORCH = ("--backend", "torch")  # loads fastest


def scan(seed: int = 0, count: int = 2000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, 4)) * [15, 15, 1, 0.2]).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, (sequence, stem) in enumerate((("00", "000000"), ("00", "000001"), ("03", "000000"))):
        write_scan(tmp_path / f"kitti/sequences/{sequence}/velodyne/{stem}.bin", scan(number))
    return tmp_path / "kitti"


def call(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_scans_give_label_files_with_the_raw_ids_of_the_labels(small_model: Path, root: Path, tmp_path: Path) -> None:
    scans = sorted(root.glob("sequences/00/velodyne/*.bin"))
    assert call("label", "--model", small_model, *scans, "--output", tmp_path / "out", "--knn", "off") == 0
    segmenter = Segmenter(small_model, knn=KnnConfig("off"))
    for number, name in enumerate(("000000", "000001")):
        expected = SEMANTIC_KITTI.to_raw(segmenter.segment(scan(number)).labels)
        np.testing.assert_array_equal(read_labels(tmp_path / f"out/{name}.label"), expected)


def test_a_root_gives_predictions_in_its_own_layout(small_model: Path, root: Path, tmp_path: Path) -> None:
    assert call("label", "--model", small_model, root, "--output", tmp_path / "out", "--sequences", "0") == 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/**/*.label"))
    assert found == ["sequences/00/predictions/000000.label", "sequences/00/predictions/000001.label"]
    assert len(read_labels(tmp_path / "out" / found[0])) == 2000


def test_nothing_is_overwritten_without_force(
    small_model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("label", "--model", small_model, root / "sequences/03/velodyne/000000.bin", "--output", tmp_path)
    (tmp_path / "000000.label").write_text("precious")
    assert call(*arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "000000.label").read_text() == "precious"
    assert call(*arguments, "--force") == 0
    assert len(read_labels(tmp_path / "000000.label")) == 2000


def test_knn_settings_change_the_labels_and_come_from_the_model_unless_given(
    small_model: Path, root: Path, tmp_path: Path
) -> None:
    path = root / "sequences/03/velodyne/000000.bin"
    for name, options in (("own", ()), ("off", ("--knn", "off")), ("7", ("--knn-search", "7", "--knn-k", "7"))):
        assert call("label", "--model", small_model, path, "--output", tmp_path / name, *TORCH, *options) == 0
    segmenter, points = Segmenter(small_model, backend="torch"), scan(2)
    for name, knn in (("own", KnnConfig()), ("off", KnnConfig("off")), ("7", KnnConfig("safe", 7, 7))):
        segmenter.knn = knn
        expected = SEMANTIC_KITTI.to_raw(segmenter.segment(points).labels)
        np.testing.assert_array_equal(read_labels(tmp_path / name / "000000.label"), expected)


def test_the_mirrored_image_counts_if_asked_for(small_model: Path, root: Path, tmp_path: Path) -> None:
    path = root / "sequences/03/velodyne/000000.bin"
    parameters = tmp_path / "mirrored.yaml"
    parameters.write_text("/**:\n  ros__parameters:\n    average_mirrored: true\n")
    for name, options in (("option", ("--average-mirrored",)), ("file", ("--params", parameters))):
        assert call("label", "--model", small_model, path, "--output", tmp_path / name, *TORCH, *options) == 0
    alone, averaged = (
        Segmenter(small_model, backend="torch", average_mirrored=average).segment(scan(2)).labels
        for average in (False, True)
    )
    assert (alone != averaged).any()
    for name in ("option", "file"):
        labels = read_labels(tmp_path / name / "000000.label")
        np.testing.assert_array_equal(labels, SEMANTIC_KITTI.to_raw(averaged))


def test_intensity_and_projection_options_apply_and_input_warnings_are_printed(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    raw = scan(count=8000)
    raw[:, 3] = np.abs(raw[:, 3]) * 256
    write_scan(tmp_path / "raw.bin", raw)
    preset, own = tmp_path / "preset.yaml", tmp_path / "own.yaml"
    preset.write_text(
        "/**: {ros__parameters: {extrinsics: {yaw_deg: 90.0}, projection: {height: 32, fov_up_deg: 20.0}}}"
    )
    own.write_text("/**: {ros__parameters: {extrinsics: {yaw_deg: 0.0}, projection: {fov_up_deg: 40.0}}}")
    arguments = ("label", tmp_path / "raw.bin", "--model", small_model, *TORCH, "--force")

    assert call(*arguments, "--output", tmp_path / "a") == 0
    assert f"{tmp_path}/raw.bin: intensity does not fit: its median is" in capsys.readouterr().err
    options = ("--params", preset, "--params", own, "--intensity-scale", 1 / 256)
    assert call(*arguments, "--output", tmp_path / "b", *options) == 0
    assert "intensity" not in capsys.readouterr().err

    roots = ("--intensity-exponent", 0.5, "--intensity-scale", 1 / 16)
    rooted = np.column_stack([raw[:, :3], (raw[:, 3] / 256) ** 2 * 256])
    write_scan(tmp_path / "rooted" / "raw.bin", rooted.astype(np.float32))
    again = ("label", tmp_path / "rooted" / "raw.bin", *arguments[2:], "--output", tmp_path / "c")
    assert call(*again, *options[:4], *roots) == 0

    raw[:, 3] /= 256
    projection = ProjectionConfig(width=256, height=32, fov_up_deg=40.0)
    expected = SEMANTIC_KITTI.to_raw(Segmenter(small_model, projection=projection, backend="torch").segment(raw).labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "b" / "raw.label"), expected)
    assert (read_labels(tmp_path / "a" / "raw.label") != expected).any()
    assert (read_labels(tmp_path / "c" / "raw.label") == expected).mean() > 0.99  # roots round


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("label", "{root}"), "--output"),
        (("label", "{missing}", "--output", "{out}"), "does not exist"),
        (("label", "{empty}", "--output", "{out}"), "is empty; expected bags, point-cloud files"),
        (("label", "{root}", "--output", "{out}", "--sequences", "42"), "no sequence '42'"),
        (("label", "{scan}", "{scan_03}", "--output", "{out}"), "would both be written"),
        (("label", "{scan}", "--output", "{out}", "--sequences", "00"), "no input is one"),
        (("label", "{scan}", "--output", "{out}", "--model", "{missing}"), "missing not found"),
        (("label", "{scan}", "--output", "{out}", "--model", "{scan}"), "truncated or not a model file"),
        (("label", "{scan}", "--output", "{out}", "--knn-search", "4"), "odd"),
        (("label", "{scan}", "--output", "{out}", "--device", "abacus"), "auto, cuda, cpu"),
        (("label", "{scan}", "--output", "{out}", "--threads", "0"), "threads"),
        (("label", "{scan}", "--output", "{out}", "--intensity-scale", "nan"), "intensity_scale must be finite"),
        (("label", "{scan}", "--output", "{out}", "--intensity-exponent", "0"), "intensity_exponent must be in"),
        (("label", "{scan}", "--output", "{out}", "--intensity-field", "i"), "all inputs are .bin scans"),
        (("inspect", "{missing}"), "missing not found"),
        (("paint",), "invalid choice"),
        ((), "COMMAND"),
    ],
)
def test_wrong_use_exits_with_2_and_a_message_without_a_traceback(
    small_model: Path,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    places = {
        "root": root,
        "missing": tmp_path / "missing",
        "out": tmp_path / "out",
        "scan": root / "sequences/00/velodyne/000000.bin",
        "scan_03": root / "sequences/03/velodyne/000000.bin",
    }
    places["empty"] = tmp_path / "empty"
    places["empty"].mkdir()
    words = [a.format(**places) for a in arguments]
    if words and words[0] == "label" and "--model" not in words:
        words += ["--model", str(small_model)]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/**/*.label"))


def test_without_a_model_the_shipped_one_is_used_and_a_missing_one_is_reported(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqsegv3_ros.inference.model_file.shipped_models", dict)
    assert call("label", root, "--output", tmp_path / "out") == 2
    assert "none is installed" in capsys.readouterr().err


def test_inspect_prints_the_metadata_of_the_model(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", small_model) == 0
    text = capsys.readouterr().out
    for part in ("small-random", "random weights for tests", "traffic-sign", "field of view -25 to 3 deg", "sha256"):
        assert part in text
    assert "{" not in text and max(map(len, text.splitlines())) < 200


def test_inspect_draws_a_legend_of_the_models_classes(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    picture = tmp_path / "legend.png"
    assert call("inspect", small_model, "--legend", picture) == 0
    drawn = {color for _, color in Image.open(picture).getcolors(1 << 16)}
    assert {tuple(color) for color in SEMANTIC_KITTI.colors.tolist()} <= drawn
    assert call("inspect", small_model, "--legend", picture) == 2
    assert "already exists" in capsys.readouterr().err
    assert call("inspect", small_model, "--legend", picture, "--force") == 0


def test_the_help_lists_every_command_and_imports_no_heavy_library() -> None:
    program = (
        "import sys; from sqsegv3_ros.cli import main; code = main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'rclpy', 'yaml') if m in sys.modules]); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("[]")
    for command in COMMANDS:
        assert command in done.stdout


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0, command
        assert f"sqsegv3 {command}" in capsys.readouterr().out
