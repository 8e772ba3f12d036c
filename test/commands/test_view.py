# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 view`: what a recording holds, read back through Rerun's own reader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from recordings import read_recording

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_scan
from sqsegv3_ros.inference.segmenter import Segmenter

needs_rerun = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None,
    reason="needs rerun-sdk: pip install 'sqsegv3_ros[view]'",
)
COUNT = 5000
FIELDS = [(name, "f4") for name in ("x", "y", "z", "intensity")] + [("ground_truth", "u1")]


def scan(seed: int) -> np.ndarray:
    points = (np.random.default_rng(seed).normal(size=(COUNT, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    points[:, 3] = np.abs(points[:, 3])
    points[5, 0] = np.nan
    return points


def truth(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 20, COUNT).astype(np.uint8)


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    """Two files with ground truth; their intensity is 0..255."""
    folder = tmp_path / "clouds"
    folder.mkdir()
    for number in range(2):
        points = scan(number) * np.float32([1, 1, 1, 256])
        rows = [(*point, label) for point, label in zip(points.tolist(), truth(number), strict=True)]
        np.save(folder / f"{number}.npy", np.array(rows, FIELDS))
    return folder


def view(*arguments: object) -> int:
    return main(["view", "--backend", "torch", *(str(argument) for argument in arguments)])


@needs_rerun
def test_a_recording_has_clouds_images_classes_and_latency_of_every_scan(
    small_model: Path, clouds: Path, tmp_path: Path
) -> None:
    file = tmp_path / "drive.rrd"
    assert view(clouds, "--model", small_model, "--intensity-scale", 1 / 256, "--save", file) == 0
    found = read_recording(file)

    classes = found["/"][0]["AnnotationContext:context"]
    infos = [entry["class_description"]["info"] for entry in classes]
    assert [info["label"] for info in infos] == list(SEMANTIC_KITTI.names)
    red, green, blue = SEMANTIC_KITTI.colors[SEMANTIC_KITTI.index("car")].tolist()
    assert infos[SEMANTIC_KITTI.index("car")]["color"] == (red << 24 | green << 16 | blue << 8 | 255)

    segmenter = Segmenter(small_model, backend="torch")
    for number in range(2):
        expected = segmenter.segment(scan(number))
        usable = np.isfinite(scan(number)[:, 0])
        rows = {entity: rows[number] for entity, rows in found.items() if len(rows) == 2}
        assert {row["scan"] for row in rows.values()} == {number}
        for cloud in ("points", "confidence", "ground_truth"):
            np.testing.assert_array_equal(
                rows[f"/lidar/{cloud}"]["Points3D:positions"], scan(number)[usable, :3].ravel()
            )
        np.testing.assert_array_equal(rows["/lidar/points"]["Points3D:class_ids"], expected.labels[usable])
        np.testing.assert_array_equal(rows["/lidar/ground_truth"]["Points3D:class_ids"], truth(number)[usable])
        bright = (rows["/lidar/confidence"]["Points3D:colors"] >> 16) & 0xFF  # green rises along the ramp
        order = np.argsort(expected.confidences[usable])
        assert (np.diff(bright[order].astype(int)) >= -1).all() and bright.max() > bright.min()

        label_image = rows["/label_image"]["SegmentationImage:buffer"].reshape(64, 256)
        np.testing.assert_array_equal(label_image, expected.label_image.numpy())
        range_image = rows["/range_image"]["DepthImage:buffer"].view(np.float32).reshape(64, 256)
        np.testing.assert_array_equal(range_image, expected.image.range.clamp_min(0).numpy())
        latency = {e: row["Scalars:scalars"][0] for e, row in rows.items() if e.startswith("/latency/")}
        assert set(latency) == {f"/latency/{stage}" for stage in (*expected.timings_ms, "total")}
        assert latency.pop("/latency/total") == pytest.approx(sum(latency.values()))

    assert view(clouds, "--model", small_model, "--limit", 1, "--save", file, "--force") == 0
    warnings = [str(row["TextLog:text"][0]) for row in read_recording(file)["/input_warnings"]]
    assert any(warning.startswith("intensity does not fit") for warning in warnings), warnings


@needs_rerun
def test_the_suggested_intensity_scale_is_that_of_the_stored_values(small_model: Path, tmp_path: Path) -> None:
    cloud = scan(0)
    cloud[:, 3] *= 65535 / cloud[:, 3].max()
    rows = [(*point, 0) for point in cloud.tolist()]
    np.save(tmp_path / "cloud.npy", np.array(rows, FIELDS))
    file = tmp_path / "cloud.rrd"
    scale = ("--intensity-scale", 1 / 255)
    assert view(tmp_path / "cloud.npy", "--model", small_model, *scale, "--save", file) == 0
    warnings = [str(row["TextLog:text"][0]) for row in read_recording(file)["/input_warnings"]]
    (found,) = (warning for warning in warnings if warning.startswith("intensity does not fit"))
    assert f"set intensity_scale: {1 / 65535:.6g}" in found


@needs_rerun
def test_a_bag_is_shown_at_the_time_of_its_clouds(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    for number in range(3):
        write_scan(tmp_path / f"root/sequences/00/velodyne/{number:06d}.bin", scan(number))
    assert main(["convert", str(tmp_path / "root"), "--bag", str(tmp_path / "drive.mcap")]) == 0
    file = tmp_path / "new" / "drive.rrd"
    assert view(tmp_path / "drive.mcap", "--model", small_model, "--save", file, "--limit", "2") == 0
    rows = read_recording(file)["/lidar/points"]
    assert [row["scan"] for row in rows] == [0, 1]
    assert [row["time"] for row in rows] == [1_700_000_000_000_000_000, 1_700_000_000_100_000_000]
    usable = np.isfinite(scan(1)[:, 0])
    np.testing.assert_array_equal(rows[1]["Points3D:positions"], scan(1)[usable, :3].ravel())
    np.testing.assert_array_equal(
        rows[1]["Points3D:class_ids"], Segmenter(small_model, backend="torch").segment(scan(1)).labels[usable]
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert view(*arguments) == 2
    return capsys.readouterr().err


@needs_rerun
def test_wrong_use_is_named_and_leaves_no_recording(
    small_model: Path, clouds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.rrd"
    model = ("--model", small_model)
    assert "--save" in refused(capsys, clouds, "--save", tmp_path / "new.mcap", *model)
    assert "--limit" in refused(capsys, clouds, "--save", file, "--limit", 0, *model)
    assert "--topic is for bags" in refused(capsys, clouds, "--save", file, "--topic", "/points", *model)
    assert "does not exist" in refused(capsys, tmp_path / "nowhere", "--save", file, *model)
    (tmp_path / "drive.mcap").write_bytes(bytes(32))
    assert "--format is for" in refused(capsys, tmp_path / "drive.mcap", "--save", file, "--format", "pcd", *model)
    (clouds / "0.npy").write_bytes(b"")
    assert "0.npy cannot be read" in refused(capsys, clouds, "--save", file, *model)
    assert not file.exists()
    file.write_bytes(b"mine")
    assert "--force" in refused(capsys, clouds / "1.npy", "--save", file, *model)
    assert file.read_bytes() == b"mine"
    assert view(clouds / "1.npy", "--save", file, "--force", *model) == 0
    assert len(read_recording(file)["/lidar/points"]) == 1


def test_without_rerun_the_command_that_installs_it_is_named(
    small_model: Path, clouds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert "[view]" in refused(capsys, clouds, "--save", tmp_path / "a.rrd", "--model", small_model)
