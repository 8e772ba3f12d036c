# SPDX-License-Identifier: Apache-2.0
"""Compressed scans (.npz) as SemanticKITTI sequences."""

from __future__ import annotations

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import read_labels, read_scan

XYZ = np.array([[10.0, -5.0, 0.005], [10.2, -5.0, 0.0], [-80.0, 40.0, 1.5], [0.0, 0.0, 0.0], [-80.3, 40.0, 1.0]])


def write(path, **labels):
    steps = np.round(XYZ / 0.005).astype(np.int16)
    differences = np.diff(steps, axis=0, prepend=np.zeros((1, 3), np.int16)).T  # wraps, as in int16
    np.savez(path, dxyz=differences, rem=np.array([0, 25, 100, 1, 64], np.uint8), **labels)


def convert(folder, root, *options):
    assert main(["convert", str(folder), "--output", str(root), "--sequence", "31", *map(str, options)]) == 0
    folder = root / "sequences" / "31"
    return read_scan(folder / "velodyne" / "000000.bin"), read_labels(folder / "labels" / "000000.label")


def test_points_remission_and_labels(tmp_path):
    write(tmp_path / "a.npz", label=np.array([10, 30, 70, 1, 255], np.uint16))
    options = ("--intensity-scale", 0.1, "--intensity-exponent", 0.5)
    points, raw = convert(tmp_path, tmp_path / "root", *options)
    kept = [0, 1, 2, 4]  # the fourth point is the origin: no return
    np.testing.assert_allclose(points[:, :3], XYZ[kept], atol=1e-5)
    np.testing.assert_allclose(points[:, 3], [0, 0.5, 1.0, 0.8])
    assert raw.tolist() == [10, 30, 70, 255]


def test_boxes_override_a_teacher_who_must_be_sure_enough(tmp_path):
    labels = {"box_label": [0, 30, 0, 0, 0], "teacher": [1, 1, 15, 1, 9], "teacher_confidence": [9, 15, 8, 15, 15]}
    write(tmp_path / "a.npz", **{name: np.array(values, np.uint8) for name, values in labels.items()})
    raw = convert(tmp_path, tmp_path / "root", "--least-confidence", 9)[1]
    assert raw.tolist() == [10, 30, 0, 40]  # car, person, unsure, road


def test_touching_points_of_an_object_class_become_an_instance(tmp_path):
    write(tmp_path / "a.npz", label=np.array([30, 30, 30, 0, 11], np.uint8))
    raw = convert(tmp_path, tmp_path / "root", "--objects", 30)[1]
    assert (raw & 0xFFFF).tolist() == [30, 30, 30, 11]
    near, also_near, far, other_class = (raw >> 16).tolist()
    assert near == also_near and {near, far} == {1, 2} and other_class == 0


def test_files_that_are_no_compressed_scans_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    command = ["convert", str(tmp_path), "--output", str(tmp_path / "root")]
    assert main(command) == 2
    assert "a.npz is not a compressed scan" in capsys.readouterr().err
    assert main([*command, "--match", "b*"]) == 2
    assert "no file that matches --match 'b*'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.npz"), *command[2:]]) == 2
    assert f"or a folder of .npz scans: pass {tmp_path}, with --match 'a.npz'" in capsys.readouterr().err
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04")
    assert main(command) == 2
    assert not (tmp_path / "root" / "sequences").exists() or not any((tmp_path / "root" / "sequences").iterdir())


def test_options_of_bags_are_refused(tmp_path, capsys):
    write(tmp_path / "a.npz", label=np.zeros(5, np.uint8))
    options = ["--topic", "/x", "--ground-truth-field", "ground_truth"]
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "root"), *options]) == 2
    assert "no input is a bag; omit --topic and --ground-truth-field" in capsys.readouterr().err


@pytest.mark.parametrize("confidence", [-1, 16])
def test_a_confidence_outside_of_its_range_is_refused(tmp_path, confidence, capsys):
    write(tmp_path / "a.npz", label=np.zeros(5, np.uint8))
    assert main(["convert", str(tmp_path), "--output", str(tmp_path), f"--least-confidence={confidence}"]) == 2
    assert "in 0..15" in capsys.readouterr().err
