# SPDX-License-Identifier: Apache-2.0
"""Replay without ROS, on a simulated clock: rate, sources and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clouds import Header, PointCloud2, PointField
from conftest import DATA, needs_shared

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.replay import Player, Source, TimedCloud, open_source
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import make_cloud, read_field

START_NS = 5_000 * 10**9


def recording(*times_s: float) -> Source:
    clouds = [TimedCloud(START_NS + round(seconds * 1e9), cdr=b"") for seconds in times_s]
    return Source("/lidar", len(clouds), lambda: iter(clouds))


class World:
    """A clock that advances only by waiting, and by `cost_s` for each published cloud."""

    def __init__(self, cost_s: float = 0.0, stop_s: float = 1e9) -> None:
        self.now_s, self.cost_s, self.stop_s = 100.0, cost_s, stop_s
        self.published: list[tuple[float, float]] = []
        self.ticks: list[tuple[float, float]] = []

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.now_s - 100 > self.stop_s

    def publish(self, cloud: TimedCloud) -> None:
        self.published.append((round(self.now_s - 100, 9), (cloud.time_ns - START_NS) / 1e9))
        self.now_s += self.cost_s

    def tick(self, time_ns: int) -> None:
        self.ticks.append((round(self.now_s - 100, 9), (time_ns - START_NS) / 1e9))

    def player(self, **settings: object) -> Player:
        return Player(self.publish, self.wait, now=self.now, **settings)  # type: ignore[arg-type]


def test_clouds_are_published_at_the_recorded_rate_times_the_factor() -> None:
    for rate in (1.0, 0.5, 4.0):
        world = World()
        report = world.player(rate=rate).play(recording(0, 0.1, 0.25, 1.0))
        assert [at for at, _ in world.published] == pytest.approx([0, 0.1 / rate, 0.25 / rate, 1 / rate])
        assert (report.published, report.total, report.late, report.interrupted) == (4, 4, 0, False)


def test_late_clouds_are_counted_and_do_not_delay_the_following_ones() -> None:
    world = World(cost_s=0.12)  # more than the period, until there is a gap
    report = world.player().play(recording(0, 0.1, 0.2, 0.5, 0.6))
    assert [at for at, _ in world.published] == pytest.approx([0, 0.12, 0.24, 0.5, 0.62])
    assert report.late == 3 and report.worst_s == pytest.approx(0.04)
    assert "3 were more than 10 ms late, at most 40 ms" in report.text("/lidar")


def test_a_loop_keeps_the_recordings_period_until_it_is_stopped() -> None:
    world = World(stop_s=0.75)
    report = world.player(loop=True).play(recording(0, 0.1, 0.2))
    assert [at for at, _ in world.published] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert [recorded for _, recorded in world.published[3:5]] == pytest.approx([0, 0.1])
    assert report.interrupted and report.published == 8
    assert report.text("/lidar").endswith("interrupted")


@pytest.mark.parametrize("times", [(0,), (0, 0)])
def test_a_loop_of_clouds_without_a_period_has_10_hz(times: tuple[float, ...]) -> None:
    world = World(cost_s=0.001, stop_s=0.12)
    world.player(loop=True, rate=2.0).play(recording(*times))
    assert [at for at, _ in world.published[:: len(times)]] == pytest.approx([0, 0.05, 0.1])


def test_the_clock_has_the_recordings_time_and_is_never_ahead_of_a_cloud() -> None:
    world = World()
    world.player(rate=2.0, tick=world.tick, clock_hz=50.0).play(recording(0, 0.1, 0.2))
    assert world.ticks[0] == (0, 0)  # before the first cloud, so that it is not received at time 0
    assert len(world.ticks) >= 5 + 3
    for at, shown in world.ticks:
        assert shown == pytest.approx(2.0 * at, abs=1e-6)
    for at, recorded in world.published:
        assert (at, pytest.approx(recorded)) in [(t, s) for t, s in world.ticks]
        assert all(shown <= recorded + 1e-9 for t, shown in world.ticks if t <= at)


def test_a_cloud_is_held_back_until_the_previous_one_is_answered_without_catching_up() -> None:
    world = World()

    def ready() -> bool:  # the node needs 0.25 s per cloud
        return not world.published or world.now_s - 100 >= world.published[-1][0] + 0.25

    report = world.player(ready=ready).play(recording(0, 0.1, 0.2, 1.0))
    gaps = np.diff([at for at, _ in world.published])
    np.testing.assert_allclose(gaps, [0.25, 0.25, 0.8], atol=0.005)
    assert report.late == 0


def test_invalid_rates_are_refused() -> None:
    for settings in ({"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}, {"clock_hz": 0.0}):
        with pytest.raises(UserError, match="positive"):
            World().player(**settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "kitti" / "sequences" / "03"
    for number in range(2):
        points = np.full((4, 4), number + 0.5, np.float32)
        write_scan(folder / "velodyne" / f"{number:06d}.bin", points)
        write_labels(folder / "labels" / f"{number:06d}.label", np.array([10, 252, 40 | 3 << 16, 0]))
    return tmp_path / "kitti"


def message(cloud: TimedCloud) -> PointCloud2:
    assert cloud.points is not None
    return make_cloud(cloud.points, PointCloud2, PointField, Header())  # type: ignore[no-any-return]


def test_a_sequence_has_ground_truth_if_all_scans_have_labels_and_10_hz_without_times(root: Path) -> None:
    with open_source(root, None, None, None) as source:
        clouds = list(source)
        assert (source.topic, len(source)) == ("/velodyne_points", 2)
    np.testing.assert_array_equal(read_field(message(clouds[1]), "x"), np.full(4, 1.5))
    np.testing.assert_array_equal(read_field(message(clouds[0]), "ground_truth"), [1, 1, 9, 0])
    assert clouds[1].time_ns - clouds[0].time_ns == 100_000_000
    (root / "sequences/03/times.txt").write_text("0.0\n0.25\n")
    (root / "sequences/03/labels/000001.label").unlink()
    with open_source(root, None, "3", None) as source:
        clouds = list(source)
    assert clouds[1].time_ns - clouds[0].time_ns == 250_000_000
    assert "ground_truth" not in (clouds[0].points.dtype.names or ())  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"000001\.label are missing \(1 of 2"), open_source(root, None, None, True):
        pass


def test_labels_can_be_omitted(root: Path) -> None:
    with open_source(root, None, None, False) as source:
        assert all(c.points is not None and "ground_truth" not in c.points.dtype.names for c in source)


@needs_shared
def test_real_scans_have_their_points_and_classes() -> None:
    with open_source(DATA / "semantic_kitti", None, "07", True) as source:
        cloud = message(next(iter(source)))
    scan = np.fromfile(DATA / "semantic_kitti/sequences/07/velodyne/000000.bin", "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(read_field(cloud, "intensity"), scan[:, 3])
    raw = np.fromfile(DATA / "semantic_kitti/sequences/07/labels/000000.label", "<u4") & 0xFFFF
    truth = read_field(cloud, "ground_truth")
    for word, label in ((40, 9), (50, 13), (10, 1), (0, 0)):
        np.testing.assert_array_equal(truth[raw == word], label)


def test_an_unusable_source_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    from recording import record, scans

    monkeypatch.setattr("sqsegv3_ros.ros.replay_node.replay", lambda *_: pytest.fail("replay has started"))
    bag = record(tmp_path / "drive", "mcap", {"/front": scans(1), "/rear": scans(1)})
    without = record(tmp_path / "without", "sqlite3", {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(100))
    write_labels(root / "sequences/03/labels/000001.label", np.array([10, 10]))
    for arguments, words in (
        ((tmp_path / "absent",), "absent"),
        ((tmp_path / "empty",), "is empty"),
        ((tmp_path / "cut.bag",), "cut.bag"),
        ((bag,), "/front (1 clouds), /rear (1 clouds)"),
        ((bag, "--topic", "/text"), "std_msgs/msg/String"),
        ((bag, "--topic", "/front", "--sequence", "00"), "SemanticKITTI data sets"),
        ((without,), "has no clouds"),
        ((root, "--topic", "/front"), "topic of a bag"),
        ((root, "--sequence", "42"), "no sequence '42'"),
    ):
        assert main(["replay", *(str(a) for a in arguments)]) == 2, words
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, said
    with (
        pytest.raises(UserError, match=r"000001\.label: 2 labels, but the scan has 4 points"),
        open_source(root, None, None, None) as source,
    ):
        list(source)
