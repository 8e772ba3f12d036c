# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label` on bags: contents, options, shards, resuming and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, needs_shared

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from recording import CLOUD, named, record, scans
from rosbags.highlevel import AnyReader

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.rosbag_reader import STORAGES, BagReader
from sqsegv3_ros.data.semantic_kitti import read_labels, write_scan
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.pointcloud2 import read_field

FOUND = scans(2, 2000)


@pytest.fixture(scope="module")
def segmenter(small_model: Path) -> Segmenter:
    return Segmenter(small_model, backend="torch")


def call(*arguments: object) -> int:
    return main([*(str(a) for a in arguments), "--backend", "torch"])


def xyzi(scan: np.ndarray, scale: float = 1.0) -> np.ndarray:
    return np.stack([scan["x"], scan["y"], scan["z"], scan["intensity"] * np.float32(scale)], 1)


def messages(path: Path) -> list[tuple[str, str, int, bytes]]:
    with AnyReader([path]) as reader:
        return [(c.topic, c.msgtype, time_ns, bytes(raw)) for c, time_ns, raw in reader.messages()]


def clouds(path: Path, topic: str = "/lidar") -> list[Any]:
    with BagReader(path) as reader:
        return [reader.cloud(message) for message in reader.messages(topic)]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_labelled_bag_has_the_segmenters_labels_and_all_other_messages_unchanged(
    small_model: Path, segmenter: Segmenter, tmp_path: Path, storage: str
) -> None:
    bag = record(named(tmp_path, storage), storage, {"/lidar": FOUND})
    assert call("label", "--model", small_model, bag, "--output", tmp_path / "out") == 0
    labelled = tmp_path / "out" / bag.name
    for cloud, before, scan in zip(clouds(labelled), clouds(bag), FOUND, strict=True):
        expected = segmenter.segment(xyzi(scan))
        np.testing.assert_array_equal(read_field(cloud, "label"), expected.labels)
        np.testing.assert_allclose(read_field(cloud, "confidence"), expected.confidences, atol=1e-6)
        for name in scan.dtype.names:
            np.testing.assert_array_equal(read_field(cloud, name), scan[name])
        assert cloud.header == before.header
    others = [m for m in messages(bag) if m[0] != "/lidar"]
    assert [m for m in messages(labelled) if m[0] != "/lidar"] == others
    assert [m[:3] for m in messages(labelled)] == [m[:3] for m in messages(bag)]
    with BagReader(labelled) as reader:
        assert "/silent" in {c.topic for c in reader.connections}
    assert not list((tmp_path / "out").glob(".*"))


def test_topic_output_topic_storage_and_intensity_can_be_set(
    small_model: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    bag = record(tmp_path / "drive.bag", "ros1", {"/front": FOUND, "/rear": scans(1, 700)})
    options = ("--topic", "/front", "--output-topic", "/labelled", "--storage", "mcap", "--intensity-scale", "0.25")
    assert call("label", "--model", small_model, bag, "--output", tmp_path / "out", *options) == 0
    labelled = tmp_path / "out" / "drive"
    assert (labelled / "drive.mcap").is_file()
    with AnyReader([labelled]) as reader:
        counts = {c.topic: (c.msgtype, c.msgcount) for c in reader.connections}
    assert counts["/labelled"] == (CLOUD, 2) and counts["/rear"] == (CLOUD, 1) and "/front" not in counts
    expected = segmenter.segment(xyzi(FOUND[0], 0.25)).labels
    np.testing.assert_array_equal(read_field(clouds(labelled, "/labelled")[0], "label"), expected)
    np.testing.assert_array_equal(read_field(clouds(labelled, "/labelled")[0], "intensity"), FOUND[0]["intensity"])


def test_a_parameter_file_labels_as_the_node_does_with_that_file(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    bag = record(tmp_path / "drive", "mcap", {"/lidar": FOUND[:1]})
    own = tmp_path / "own.yaml"
    own.write_text(
        f"/**:\n  ros__parameters:\n    model: {small_model}\n    use_sim_time: true\n    knn: {{mode: 'off'}}\n"
        "    projection: {height: 32, fov_up_deg: 20.0}\n    publish.rgb: false\n"
    )
    assert call("label", bag, "--output", tmp_path / "out", "--params", own) == 0
    cloud = clouds(tmp_path / "out" / "drive")[0]
    projection = ProjectionConfig(width=256, height=32, fov_up_deg=20.0)
    expected = (
        Segmenter(small_model, knn=KnnConfig("off"), projection=projection, backend="torch")
        .segment(xyzi(FOUND[0]))
        .labels
    )
    np.testing.assert_array_equal(read_field(cloud, "label"), expected)
    assert "rgb" not in [field.name for field in cloud.fields]
    for text, words in (
        ("/**: {ros__parameters: {knn.kk: 3}}", "unknown parameter 'knn.kk'; did you mean 'knn.k'?"),
        ("/**: {ros__parameters: {knn: {k: many}}}", "knn.k must be int"),
        ("/**: {ros__parameters: {knn: {k: 1000}}}", "knn.k must be in 1..225"),
        ("{other: 1}", "no ros__parameters"),
        ("/lidar: {ros__parameters: {knn: {k: 3}}}", "parameters of /lidar; expected /**"),
        ("{", "not valid YAML"),
    ):
        own.write_text(text)
        assert call("label", bag, "--output", tmp_path / "new", "--params", own, "--model", small_model) == 2, words
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_archive_is_labelled_in_shards_and_resumed(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "archive"
    (archive / "monday").mkdir(parents=True)
    record(archive / "monday" / "a", "mcap", {"/lidar": FOUND[:1]})
    record(archive / "b.bag", "ros1", {"/lidar": FOUND[:1]})
    record(archive / "c", "sqlite3", {"/lidar": FOUND[:1]})
    write_scan(tmp_path / "000000.bin", xyzi(FOUND[0]))
    out = tmp_path / "out"
    inputs = ("label", "--model", small_model, archive, tmp_path / "000000.bin", "--output", out)

    assert call(*inputs, "--shard", "1/2") == 0
    assert sorted(p.name for p in out.iterdir()) == ["b.bag", "manifest-1-of-2.jsonl", "monday"]
    capsys.readouterr()
    written = (out / "b.bag").stat().st_mtime_ns
    assert call(*inputs) == 0  # other shards' records count
    assert "labelled 2 scans (2 inputs finished before)" in capsys.readouterr().out
    outputs = ["000000.label", "b.bag", "c", "manifest-1-of-2.jsonl", "manifest.jsonl", "monday"]
    assert sorted(p.name for p in out.iterdir()) == outputs
    assert (out / "b.bag").stat().st_mtime_ns == written
    assert len(read_labels(out / "000000.label")) == 2000
    assert call(*inputs) == 0
    assert "nothing to label (4 inputs finished before)" in capsys.readouterr().out
    labels = {tuple(read_field(clouds(out / name)[0], "label")) for name in ("monday/a", "b.bag", "c")}
    assert len(labels) == 1
    raw = SEMANTIC_KITTI.to_raw(np.array(labels.pop()))
    np.testing.assert_array_equal(read_labels(out / "000000.label"), raw)


def test_wrong_arguments_are_refused_before_anything_is_written(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = record(tmp_path / "in" / "drive", "mcap", {"/lidar": FOUND[:1]})
    many = record(tmp_path / "many", "mcap", {"/front": FOUND[:1], "/rear": FOUND[:1]})
    without = record(tmp_path / "without", "mcap", {})
    shutil.copytree(bag, tmp_path / "cut")
    file = tmp_path / "cut" / "drive.mcap"
    file.write_bytes(file.read_bytes()[:-500])
    shutil.copytree(bag, tmp_path / "other" / "drive")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "misc" / "deep").mkdir(parents=True)
    out = tmp_path / "out"
    for arguments, words in (
        ((many,), "/front (1 clouds), /rear (1 clouds)"),
        ((many, "--topic", "/side"), "no topic /side"),
        ((many, "--topic", "/front", "--output-topic", "/rear"), "already has a topic /rear"),
        ((without,), "has no clouds"),
        ((bag, tmp_path / "cut"), str(tmp_path / "cut")),
        ((tmp_path / "hollow",), "is empty"),
        ((tmp_path / "misc",), "has no bags and no point-cloud files"),
        ((bag, "--shard", "3/2"), "1 <= I <= N"),
        ((bag, "--shard", "half"), "such as 1/4"),
        ((bag, tmp_path / "other" / "drive"), "would both be written to"),
        ((bag, "--intensity-field", "signal"), "set intensity_fields to ['intensity']"),
    ):
        assert call("label", "--model", small_model, *arguments, "--output", out) == 2, words
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, said
        assert not [path for path in out.glob("*") if path.name != "manifest.jsonl"]
    for target, words in ((tmp_path / "in", "overwritten by its own"), (tmp_path / "x.bag", "must be a folder")):
        assert call("label", "--model", small_model, bag, "--output", target, "--force") == 2
        assert words in capsys.readouterr().err
    assert len(messages(bag)) == 3


def test_an_unusable_cloud_is_named_and_leaves_no_bag(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = FOUND[1][["x", "y", "ground_truth"]]
    bag = record(tmp_path / "drive", "mcap", {"/lidar": [FOUND[0], strange]})
    assert call("label", "--model", small_model, bag, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"bag {bag}, cloud 2 of /lidar" in said and "'z'" in said
    assert not (tmp_path / "out").exists()


@needs_shared
def test_a_real_ros_1_bag_is_labelled(small_model: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    source = DATA / "other_sensors" / "luminar_ros1.bag"
    assert call("label", "--model", small_model, source, "--output", tmp_path) == 0
    topic = "/luminar_pointcloud"
    first, before = clouds(tmp_path / source.name, topic)[0], clouds(source, topic)[0]
    points = np.stack([read_field(before, name) for name in ("x", "y", "z", "intensity")], 1).astype(np.float32)
    np.testing.assert_array_equal(read_field(first, "label"), segmenter.segment(points).labels)
    np.testing.assert_array_equal(read_field(first, "laser_id"), read_field(before, "laser_id"))
    assert first.header == before.header
