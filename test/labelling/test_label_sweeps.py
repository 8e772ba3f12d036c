# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label` with sweeps.count: the labels that the sweeps of a bag vote for, with the poses of its /tf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.ros2_messages import (
    FRAME,
    POINT,
    START_NS,
    TF_TYPE,
    TOPIC,
    Ros2Messages,
    Transform,
    structured_points,
)
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, BagReader
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.inference.sweeps import SweepVote
from sqsegv3_ros.pointcloud2 import read_field

SWEEPS = 4


def sweep(number: int) -> np.ndarray:
    generator = np.random.default_rng(number)
    return (generator.normal(size=(4000, 4)) * [15, 15, 1, 0.2]).astype(np.float32)


def pose(number: int) -> np.ndarray:
    result = np.eye(4)
    result[0, 3] = 0.5 * number
    return result


def record(path: Path, *, tf: bool) -> Path:
    messages = Ros2Messages()
    with BagWriter(path, "mcap") as writer:
        clouds, transforms = writer.add(TOPIC, CLOUD_TYPE), writer.add("/tf", TF_TYPE)
        for number in range(SWEEPS):
            stamp_ns = START_NS + number * 10**8
            writer.write(clouds, stamp_ns, messages.cloud(structured_points(sweep(number), POINT), stamp_ns))
            if tf:  # after the cloud, as on a robot
                writer.write(transforms, stamp_ns + 1, messages.tf([Transform(pose(number), "odom", FRAME)], stamp_ns))
    return path


def label(tmp_path: Path, source: Path, model: Path) -> int:
    params = tmp_path / "sweeps.yaml"
    params.write_text("/**: {ros__parameters: {sweeps: {count: 3}}}")
    options = ["--output", str(tmp_path / "labelled"), "--model", str(model), "--params", str(params)]
    return main(["label", str(source), "--backend", "torch", *options])


def test_the_labels_of_a_bag_are_voted_with_its_transforms(tmp_path: Path, small_model: Path) -> None:
    assert label(tmp_path, record(tmp_path / "drive", tf=True), small_model) == 0
    segmenter, vote, changed = Segmenter(small_model, backend="torch"), SweepVote(3, 20), 0
    with BagReader(tmp_path / "labelled/drive") as reader:
        for number, message in enumerate(reader.messages(TOPIC)):
            points, cloud = sweep(number), reader.cloud(message)
            alone = segmenter.segment(points)
            expected = vote.vote(
                alone, points, pose(number), number + 1, segmenter.projection, segmenter.extrinsics
            ).labels
            np.testing.assert_array_equal(read_field(cloud, "label"), expected)
            changed += np.count_nonzero(expected != alone.labels)
    assert number == SWEEPS - 1 and changed > 50


def test_a_bag_without_poses_is_refused(tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(tmp_path, record(tmp_path / "drive", tf=False), small_model) == 2
    assert "has no poses on /tf, which sweeps.count needs; set it to 1" in capsys.readouterr().err
    assert not (tmp_path / "labelled/drive").exists()
