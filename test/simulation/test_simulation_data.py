# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 simulate`: its files, that a seed always gives the same bytes, and its error messages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_shared

pytest.importorskip("embreex", reason="needs the extra 'simulate'")

from sqsegv3_ros.cli import main
from sqsegv3_ros.data import semantic_kitti as kitti
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.ros2_messages import POINT_RING
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.simulation import statistics
from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate, simulate_sweeps

SMALL = ("--scene", "highway", "--sensor", "vlp16")  # few triangles, few rays


def run(output: Path, *arguments: str) -> int:
    return main(["simulate", *SMALL, "--output", str(output), *arguments])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("independent")
    assert run(root, "--scans", "6", "--seed", "5") == 0
    return root


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drive")
    arguments = ["--scans", "4", "--drive", "--scene", "city", "--sensor", "hdl32e", "--seed", "2"]
    assert main(["simulate", *arguments, "--output", str(root), "--bag", str(root / "bag")]) == 0
    return root


def test_scans_and_labels_have_semantic_kittis_layout(independent):
    scans = kitti.find_scans(independent)
    assert [scan.stem for scan in scans] == [f"{i:06d}" for i in range(6)]
    for scan in scans:
        points = kitti.read_scan(scan.path)
        raw = kitti.read_labels(scan.labels_path, len(points))
        assert len(points) > 3000
        assert SEMANTIC_KITTI.unknown_ids(raw) == ()
        assert not (raw & 0xFFFF == 0).any()
        things = np.isin(raw & 0xFFFF, [10, 18, 252, 258, 255])
        assert ((raw[things] >> 16) > 0).all() and ((raw[raw & 0xFFFF == 40] >> 16) == 0).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(independent, tmp_path):
    assert run(tmp_path / "same", "--scans", "6", "--seed", "5") == 0
    assert contents(tmp_path / "same") == contents(independent)
    assert run(tmp_path / "other", "--scans", "1", "--seed", "6") == 0
    one, other = (
        kitti.read_scan(root / "sequences/00/velodyne/000000.bin") for root in (independent, tmp_path / "other")
    )
    assert len(one) != len(other) or not np.array_equal(one, other)


def test_several_processes_write_the_same_bytes(independent, tmp_path):
    assert run(tmp_path, "--scans", "6", "--seed", "5", "--jobs", "2") == 0
    assert contents(tmp_path) == contents(independent)


def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(independent, tmp_path):
    assert run(tmp_path, "--scans", "3", "--seed", "5") == 0
    folder = tmp_path / "sequences/00"
    (folder / "velodyne/000001.bin").unlink()
    untouched = (folder / "velodyne/000002.bin").stat().st_mtime_ns
    assert run(tmp_path, "--scans", "6", "--seed", "5") == 0
    assert contents(tmp_path) == contents(independent)
    assert (folder / "velodyne/000002.bin").stat().st_mtime_ns == untouched


def test_scans_of_other_settings_are_not_mixed_and_overwritten_only_with_force(tmp_path, capsys):
    assert run(tmp_path, "--scans", "2", "--seed", "1") == 0
    assert run(tmp_path, "--scans", "1", "--seed", "2") == 2
    assert "already has" in capsys.readouterr().err
    assert run(tmp_path, "--scans", "1", "--seed", "2", "--force") == 0
    assert [scan.stem for scan in kitti.find_scans(tmp_path)] == ["000000"]
    assert run(tmp_path, "--scans", "1", "--seed", "2", "--sequence", "01") == 0
    assert [scan.sequence for scan in kitti.find_scans(tmp_path)] == ["00", "01"]


def test_fewer_scans_than_there_are_need_force(tmp_path, capsys):
    assert run(tmp_path, "--scans", "2") == 0
    assert run(tmp_path, "--scans", "1") == 2
    assert "already has 2 scans, up to 000001.bin; expected at most 1: pass more --scans" in capsys.readouterr().err
    assert run(tmp_path, "--scans", "1", "--force") == 0
    assert len(list(tmp_path.glob("sequences/00/*/*"))) == 2  # a scan and its labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scans", "0", "--output", "x"], "scans must be at least 1"),
        (["--scans", "1"], "no output"),
        (["--scans", "1", "--output", "x", "--jobs", "0"], "jobs must be at least 1"),
        (["--scans", "1", "--output", "x", "--seed", "-1"], "seed must be in"),
        (["--scans", "1", "--output", "x", "--sequence", "a"], "two digits"),
        (["--scans", "1", "--output", "x", "--scene", "moon"], "invalid choice"),
        (["--scans", "1", "--output", "x", "--sensor", "radar"], "invalid choice"),
        (["--scans", "one", "--output", "x"], "invalid int"),
    ],
)
def test_invalid_arguments_are_refused_with_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(tmp_path / "file", "--scans", "1") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(("package", "extra"), [("embreex", "simulate"), ("rosbags", "bags")])
def test_a_missing_package_is_named_with_its_extra(package, extra, tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run(tmp_path / "root", "--scans", "1", "--bag", str(tmp_path / "bag")) == 2
    assert f"sqsegv3_ros[{extra}]" in capsys.readouterr().err
    assert not (tmp_path / "bag").exists()


def test_poses_in_kittis_convention_align_the_sweeps_of_a_drive(drive):
    folder = drive / "sequences/00"
    calibration = dict(line.split(":") for line in (folder / "calib.txt").read_text().splitlines())
    to_camera = np.vstack([np.array(calibration["Tr"].split(), float).reshape(3, 4), [0, 0, 0, 1]])
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    assert len(poses) == 4 and len((folder / "times.txt").read_text().split()) == 4
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-8)
    assert np.linalg.norm(poses[3][:, 3]) > 0.8  # metres in 0.3 s

    def stationary(number: int) -> np.ndarray:
        points = kitti.read_scan(folder / f"velodyne/{number:06d}.bin")
        raw = kitti.read_labels(folder / f"labels/{number:06d}.label") & 0xFFFF
        near = np.linalg.norm(points[:, :3], axis=1) < 25
        return points[np.isin(raw, [50, 51, 80, 71, 10, 99]) & near, :3].astype(float)

    def to_first(points: np.ndarray, number: int) -> np.ndarray:
        camera = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ to_camera.T
        return (camera @ np.vstack([poses[number], [0, 0, 0, 1]]).T @ np.linalg.inv(to_camera).T)[:, :3]

    def offset(a: np.ndarray, b: np.ndarray) -> float:
        """Mean distance to the nearest point."""
        return float(np.mean([np.sqrt(((b - p) ** 2).sum(axis=1).min()) for p in a[:: max(len(a) // 300, 1)]]))

    first, last = stationary(0), stationary(3)
    assert len(first) > 300
    assert offset(to_first(last, 3), first) < 0.75 * offset(last, first)


def test_the_bag_holds_the_same_points_with_rings_and_classes_and_a_clock(drive):
    highlevel = pytest.importorskip("rosbags.highlevel", reason="needs the extra 'bags'")
    clouds, clocks, transforms = [], [], []
    with highlevel.AnyReader([drive / "bag"]) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            {"/velodyne_points": clouds, "/clock": clocks, "/tf": transforms}[connection.topic].append(
                (time_ns, message)
            )
    assert len(clouds) == len(transforms) == 4
    ticks = [m.clock.sec * 10**9 + m.clock.nanosec for _, m in clocks]
    assert ticks == sorted(ticks) and ticks[0] <= clouds[0][0] and clouds[-1][0] - ticks[-1] < 1e8
    for number, (received, cloud) in enumerate(clouds):
        stamp = cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec
        assert 0 < received - stamp < 1e8
        fields = [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields]
        floats = [("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1), ("intensity", 12, 7, 1)]
        assert fields == [*floats, ("ring", 16, 4, 1), ("ground_truth", 18, 2, 1)]
        assert cloud.header.frame_id == "velodyne" and cloud.point_step == 20 and cloud.height == 1
        points = np.frombuffer(cloud.data, dtype=POINT_RING)
        scan = kitti.read_scan(drive / f"sequences/00/velodyne/{number:06d}.bin")
        assert cloud.width == len(scan) and cloud.row_step == 20 * len(scan)
        np.testing.assert_array_equal(np.stack([points[n] for n in ("x", "y", "z", "intensity")], axis=1), scan)
        raw = kitti.read_labels(drive / f"sequences/00/labels/{number:06d}.label")
        np.testing.assert_array_equal(points["ground_truth"], SEMANTIC_KITTI.to_labels(raw))
        elevation = np.degrees(np.arcsin(scan[:, 2] / np.linalg.norm(scan[:, :3], axis=1)))
        medians = [np.median(elevation[points["ring"] == ring]) for ring in range(4, 24)]
        assert (np.diff(medians) > 0).all()  # Velodyne counts from the bottom


def test_an_existing_bag_is_not_overwritten(drive, capsys):
    before = contents(drive / "bag")
    assert main(["simulate", "--scans", "1", "--bag", str(drive / "bag")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert contents(drive / "bag") == before


def test_a_bag_with_the_ending_of_a_ros_1_bag_is_refused(tmp_path, capsys):
    assert main(["simulate", *SMALL, "--scans", "1", "--bag", str(tmp_path / "drive.bag")]) == 2
    assert "drive.bag cannot hold a bag of storage mcap" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_survives_if_the_new_one_cannot_be_moved_into_place(drive, tmp_path, monkeypatch):
    bag = tmp_path / "bag"
    shutil.copytree(drive / "bag", bag)
    before, rename, failed = contents(bag), Path.replace, []

    def fail_once(source: Path, target: Path) -> Path:
        if target == bag and not failed:
            failed.append(source)
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(UserError, match="Input/output error"):
        list(simulate(SimulationSettings(1, sensor="vlp16", scene="highway"), bag=bag, force=True))
    assert failed and contents(bag) == before
    assert list(tmp_path.iterdir()) == [bag]


def test_a_failed_run_leaves_no_bag_behind(tmp_path, monkeypatch):
    from sqsegv3_ros.simulation import dataset

    def fail(*_: object) -> None:
        raise RuntimeError("the power went out")

    monkeypatch.setattr(dataset, "_simulate_chunk", fail)
    with pytest.raises(RuntimeError):
        list(simulate(SimulationSettings(1, scene="highway"), bag=tmp_path / "bag"))
    assert list(tmp_path.iterdir()) == []


def test_a_single_sweep_equals_that_sweep_of_a_series():
    settings = SimulationSettings(8, sensor="vlp16", scene="highway", seed=3)
    every = list(simulate_sweeps(settings, range(8)))
    (alone,) = simulate_sweeps(settings, [6])
    np.testing.assert_array_equal(alone.points, every[6].points)
    np.testing.assert_array_equal(alone.labels, every[6].labels)


def test_invalid_settings_are_refused():
    for wrong in ({"motion": "blurred"}, {"sensor": "sonar"}, {"scene": "sea"}, {"scans": -3}):
        with pytest.raises(UserError):
            SimulationSettings(**{"scans": 1, **wrong})


def test_the_wasserstein_distance_of_histograms_is_the_distance_of_their_contents():
    bins = np.linspace(0, 10, 11)
    a, b = np.zeros(10), np.zeros(10)
    a[2], b[5] = 7.0, 3.0
    assert statistics.wasserstein_distance(a, b, bins) == pytest.approx(3.0)
    b[2] = 3.0
    assert statistics.wasserstein_distance(a, b, bins) == pytest.approx(1.5)
    assert statistics.histogram_quantile(a, bins, 0.5) == pytest.approx(2.5)
    assert np.isnan(statistics.histogram_quantile(np.zeros(10), bins, 0.5))


def test_statistics_count_classes_and_occupied_pixels(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'tools'")
    angle = np.linspace(-3, 3, 300)
    points = np.stack([10 * np.cos(angle), 10 * np.sin(angle), np.full(300, -1.0), np.full(300, 0.3)], axis=1)
    folder = tmp_path / "real/sequences/00"
    kitti.write_scan(folder / "velodyne/000000.bin", points)
    kitti.write_labels(folder / "labels/000000.label", np.where(np.arange(300) < 75, 50, 40))
    counted = statistics.count_scans(tmp_path / "real")
    assert counted.points == 300 and counted.by_range.sum() == 300
    assert counted.by_range[SEMANTIC_KITTI.index("building")].sum() == 75
    assert counted.occupied.sum() == pytest.approx(300 / 2048)
    assert statistics.main([str(tmp_path / "real"), str(tmp_path / "real"), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/statistics.md").read_text()
    assert "| building | " in text and "25.00 | 25.00" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"statistics.md", "rows.png", "remission.png"}
    assert statistics.main([str(tmp_path / "nothing"), str(tmp_path / "real"), "--output", str(tmp_path / "out")]) == 2


@needs_shared
@pytest.mark.skipif(not (DATA / "semantic_kitti").is_dir(), reason="needs the real scans in ../shared/data")
def test_simulated_scans_have_the_statistics_of_real_ones():
    real = statistics.count_scans(DATA / "semantic_kitti", ["00", "03", "05", "07", "10"])
    simulated = statistics.ScanStatistics()
    for sweep in simulate_sweeps(SimulationSettings(40, seed=77), range(0, 40, 3)):
        simulated.add(sweep.points, SEMANTIC_KITTI.to_labels(sweep.labels))
    assert abs(simulated.points / simulated.scans / (real.points / real.scans) - 1) < 0.06
    occupied = simulated.occupied / simulated.scans - real.occupied / real.scans
    assert np.abs(occupied).mean() < 0.08
    log_bins = np.log2(statistics.RANGE_BINS)
    moved = [
        statistics.wasserstein_distance(a, b, log_bins)
        for a, b in zip(real.row_range, simulated.row_range, strict=True)
    ]
    assert np.nanmean(moved) < 0.35  # octaves
    for name in ("road", "sidewalk", "building", "vegetation", "terrain", "fence"):
        label = SEMANTIC_KITTI.index(name)
        one, other = real.by_remission[label], simulated.by_remission[label]
        assert statistics.wasserstein_distance(one, other, statistics.REMISSION_BINS) < 0.08, name
        assert 0.3 < (other.sum() / simulated.points) / (one.sum() / real.points) < 3.0, name
