# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 convert` from sequences to bags and back, without losses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_shared

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from recording import record, scans
from rosbags.highlevel import AnyReader

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import read_labels, read_scan, write_labels, write_scan

# KITTI's camera looks along the Velodyne's x axis; this one has an offset of 0.3 m and 0.1 m and is rotated by 1 degree
TURN = math.radians(1.0)
TR = np.array(
    [
        [math.sin(TURN), -math.cos(TURN), 0, 0],
        [0, 0, -1, -0.1],
        [math.cos(TURN), math.sin(TURN), 0, -0.3],
        [0, 0, 0, 1],
    ]
)
WORDS = np.array([0, 10 | 7 << 16, 252 | 8 << 16, 40, 81], np.uint32)


def call(*arguments: object) -> int:
    return main(["convert", *(str(a) for a in arguments)])


def row(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.9e}" for value in matrix[:3].ravel())


def driven(number: int) -> np.ndarray:
    """The Velodyne's pose: 1.5 m forward and 5 degrees to the left per scan."""
    angle = math.radians(5.0 * number)
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    pose[:3, 3] = 1.5 * number, 0.1 * number, 0
    return pose


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Scans 0, 1 and 3 of a sequence of four, with labels, poses, times and calibration."""
    folder = tmp_path / "kitti" / "sequences" / "04"
    generator = np.random.default_rng(3)
    for number in (0, 1, 3):
        points = generator.normal(size=(100 + number, 4)).astype(np.float32)
        points[5, :3] = np.nan
        write_scan(folder / "velodyne" / f"{number:06d}.bin", points)
        write_labels(folder / "labels" / f"{number:06d}.label", np.resize(WORDS, len(points)))
    poses = [TR @ driven(number) @ np.linalg.inv(TR) for number in range(4)]
    (folder / "poses.txt").write_text("".join(f"{row(pose)}\n" for pose in poses))
    (folder / "calib.txt").write_text(f"P0: {row(np.eye(4))}\nTr: {row(TR)}\n")
    (folder / "times.txt").write_text("0.000000e+00\n1.036224e-01\n2.072e-01\n3.11e-01\n")
    return tmp_path / "kitti"


def test_a_bag_has_points_classes_stamps_and_the_velodynes_poses(root: Path, tmp_path: Path) -> None:
    assert call(root, "--bag", tmp_path / "bag") == 0
    with AnyReader([tmp_path / "bag"]) as reader:
        found = [(c.topic, time_ns, reader.deserialize(raw, c.msgtype)) for c, time_ns, raw in reader.messages()]
    clouds = [(time_ns, m) for topic, time_ns, m in found if topic == "/velodyne_points"]
    stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for _, m in clouds]
    assert [stamp - stamps[0] for stamp in stamps] == [0, 103_622_400, 311_000_000]
    assert [time_ns for time_ns, _ in clouds] == stamps
    for (_, cloud), number in zip(clouds, (0, 1, 3), strict=True):
        scan = read_scan(root / f"sequences/04/velodyne/{number:06d}.bin")
        offsets = {field.name: (field.offset, field.datatype) for field in cloud.fields}
        assert offsets["ground_truth"][1] == 2 and offsets["raw_label"][1] == 6
        data = cloud.data.reshape(-1, cloud.point_step)
        np.testing.assert_array_equal(data[:, :16].copy().view(np.float32), scan)
        classes = [0, 1, 1, 9, 19]  # unlabeled, car, moving car, road, traffic sign
        np.testing.assert_array_equal(data[:, offsets["ground_truth"][0]], np.resize(classes, len(scan)))
        assert cloud.header.frame_id == "velodyne" and not cloud.is_dense
    transforms = [t for topic, _, m in found if topic == "/tf" for t in m.transforms]
    assert len(transforms) == 3
    for transform, number in zip(transforms, (0, 1, 3), strict=True):
        assert (transform.header.frame_id, transform.child_frame_id) == ("map", "velodyne")
        place, turn = transform.transform.translation, transform.transform.rotation
        np.testing.assert_allclose([place.x, place.y, place.z], [1.5 * number, 0.1 * number, 0], atol=1e-8)
        assert 2 * math.degrees(math.atan2(turn.z, turn.w)) == pytest.approx(5.0 * number, abs=1e-6)


@pytest.mark.parametrize("name", ["bag", "bag.mcap", "bag.db3"])
def test_a_sequence_survives_the_conversion_to_a_bag_and_back(root: Path, tmp_path: Path, name: str) -> None:
    assert call(root, "--sequence", "4", "--bag", tmp_path / name, "--topic", "/points") == 0
    assert call(tmp_path / name, "--output", tmp_path / "back", "--sequence", "07") == 0
    before, after = root / "sequences" / "04", tmp_path / "back" / "sequences" / "07"
    for new, old in enumerate((0, 1, 3)):
        for kind in ("velodyne/{:06d}.bin", "labels/{:06d}.label"):
            assert (after / kind.format(new)).read_bytes() == (before / kind.format(old)).read_bytes()
    np.testing.assert_allclose(np.loadtxt(after / "times.txt"), [0, 0.1036224, 0.311], atol=1e-9)
    poses = np.loadtxt(before / "poses.txt")[[0, 1, 3]]
    np.testing.assert_allclose(np.loadtxt(after / "poses.txt"), poses, atol=1e-6)
    calibration = dict(line.split(":") for line in (after / "calib.txt").read_text().splitlines())
    np.testing.assert_allclose([float(word) for word in calibration["Tr"].split()], TR[:3].ravel(), atol=1e-6)


def test_a_sequence_without_labels_poses_and_times_is_written_at_10_hz(root: Path, tmp_path: Path) -> None:
    for name in ("poses.txt", "times.txt", "calib.txt"):
        (root / "sequences" / "04" / name).unlink()
    (root / "sequences" / "04" / "labels" / "000001.label").unlink()
    assert call(root, "--bag", tmp_path / "bag") == 0
    with AnyReader([tmp_path / "bag"]) as reader:
        assert [c.topic for c in reader.connections] == ["/velodyne_points"]
        times = [time_ns for _, time_ns, _ in reader.messages()]
        assert list(np.diff(times)) == [100_000_000, 100_000_000]
    assert call(tmp_path / "bag", "--output", tmp_path / "back") == 0
    assert sorted(p.name for p in (tmp_path / "back/sequences/00").iterdir()) == ["times.txt", "velodyne"]


def test_any_bag_with_ground_truth_becomes_a_sequence_with_raw_ids(tmp_path: Path) -> None:
    found = scans(2)
    bag = record(tmp_path / "drive.bag", "ros1", {"/lidar": found})
    assert call(bag, "--output", tmp_path / "kitti", "--intensity-scale", "0.5") == 0
    folder = tmp_path / "kitti" / "sequences" / "00"
    for number, scan in enumerate(found):
        points = read_scan(folder / "velodyne" / f"{number:06d}.bin")
        np.testing.assert_array_equal(points[:, 0], scan["x"])
        np.testing.assert_array_equal(points[:, 3], scan["intensity"] * np.float32(0.5))
        words = read_labels(folder / "labels" / f"{number:06d}.label")
        expected = [SEMANTIC_KITTI.classes[label].raw_id for label in scan["ground_truth"]]
        np.testing.assert_array_equal(words, expected)
    assert not (folder / "poses.txt").exists()


@needs_shared
def test_real_scans_are_restored_byte_for_byte(tmp_path: Path) -> None:
    source = DATA / "semantic_kitti"
    assert call(source, "--sequence", "04", "--bag", tmp_path / "bag") == 0
    assert call(tmp_path / "bag", "--output", tmp_path / "back") == 0
    for kind, folder in (("*.bin", "velodyne"), ("*.label", "labels")):
        before = sorted((source / "sequences/04" / folder).glob(kind))
        after = sorted((tmp_path / "back/sequences/00" / folder).glob(kind))
        assert [p.read_bytes() for p in before] == [p.read_bytes() for p in after]


def test_unusable_input_is_refused_and_leaves_no_output(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "sequences" / "04"
    write_scan(root / "sequences" / "05" / "velodyne" / "000000.bin", np.zeros((3, 4), np.float32))
    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(2)})
    partly = record(tmp_path / "partly", "mcap", {"/lidar": [scans(1)[0], scans(1)[0][["x", "y", "z", "intensity"]]]})
    there = tmp_path / "there"
    (there / "sequences" / "00").mkdir(parents=True)

    def refused(words: str, *arguments: object) -> None:
        assert call(*arguments) == 2, words
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, said

    out, back, field = tmp_path / "out", tmp_path / "back", ("--ground-truth-field", "label")
    refused("several sequences (04, 05)", root, "--bag", out)
    refused("no sequence '09'", root, "--sequence", "09", "--bag", out)
    refused("not a SemanticKITTI data set", bag, "--bag", out)
    refused("either --bag OUT", bag)
    refused("does not exist; expected a bag, a SemanticKITTI", tmp_path / "absent", "--bag", out)
    refused("--force", root, "--sequence", "04", "--bag", bag)
    refused("cannot hold", root, "--sequence", "04", "--bag", tmp_path / "out.bag")
    refused("two digits", bag, "--output", back, "--sequence", "abc")
    refused("no topic /side", bag, "--output", back, "--topic", "/side")
    refused("cloud 2 of /lidar", partly, "--output", back)
    refused("lacks labels", partly, "--output", back)
    refused("'reflectivity'", bag, "--output", back, "--intensity-field", "reflectivity")
    refused("already exists", bag, "--output", there)
    refused("data set; omit --ground-truth-field and --match", root, *("--bag", out, "--match", "*"), *field)
    refused("no input is a folder of .npz scans; omit --match", bag, "--output", back, "--match", "*")
    refused("omit --least-confidence and --objects", bag, "--output", back, "--least-confidence", "0", "--objects", "3")
    refused("no bag is written; omit --storage", bag, "--output", back, "--storage", "mcap")
    write_labels(folder / "labels" / "000001.label", np.full(7, 40))
    refused(str(folder / "labels" / "000001.label"), root, "--sequence", "04", "--bag", out)
    write_labels(folder / "labels" / "000001.label", np.full(101, 77))
    refused("ids 77", root, "--sequence", "04", "--bag", out)
    (folder / "poses.txt").write_text("1 0 0 0\n")
    refused("poses.txt has 1 lines", root, "--sequence", "04", "--bag", out)
    (folder / "calib.txt").write_text("P0: 1\n")
    refused("no line 'Tr:'", root, "--sequence", "04", "--bag", out)
    (folder / "calib.txt").unlink()
    (folder / "poses.txt").unlink()
    (folder / "times.txt").write_text("0\n1\n1\n0.5\n")
    refused("must increase", root, "--sequence", "04", "--bag", out)
    (folder / "times.txt").write_text("0\nnan\n1\n2\n")
    refused("expected 1 numbers", root, "--sequence", "04", "--bag", out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    assert not list(back.glob("**/*.bin"))


def test_a_failed_rename_keeps_the_existing_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(1)})
    target = tmp_path / "kitti" / "sequences" / "00"
    write_scan(target / "velodyne" / "000000.bin", np.ones((3, 4)))
    rename, failed = Path.replace, []

    def fail_once(source: Path, destination: Path) -> Path:
        if destination == target and not failed:
            failed.append(source)
            raise OSError(5, "Input/output error")
        return rename(source, destination)

    monkeypatch.setattr(Path, "replace", fail_once)
    assert call(bag, "--output", tmp_path / "kitti", "--force") == 2
    assert failed and len(read_scan(target / "velodyne" / "000000.bin")) == 3
    assert list(target.parent.iterdir()) == [target]
