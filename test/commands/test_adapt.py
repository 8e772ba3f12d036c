# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 adapt` before training: what it reads, which scans it takes, which sensor it simulates, what it refuses."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_model

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import find_scans, read_labels, read_scan, write_scan
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.model_file import read_info
from sqsegv3_ros.labelling.plan import BagOptions, plan_jobs
from sqsegv3_ros.pointcloud2 import CloudSettings
from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate, simulate_sweeps
from sqsegv3_ros.simulation.measured_sensor import measure_sensor
from sqsegv3_ros.simulation.sensors import SENSORS
from sqsegv3_ros.training.adaptation import recording as recording_module
from sqsegv3_ros.training.adaptation.recording import MIN_SCANS, Recording, copy_scans
from sqsegv3_ros.training.adaptation.source import simulate_source
from sqsegv3_ros.training.adaptation.workspace import locked

PRESETS = ROOT / "config" / "sensors"
SCANS = 10


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sweeps of a VLP-16 in different streets, as a SemanticKITTI data set and as a bag."""
    folder = tmp_path_factory.mktemp("drive")
    settings = SimulationSettings(SCANS, "vlp16", scene="highway", seed=5)
    list(simulate(settings, folder / "root", folder / "bag"))
    return folder / "root", folder / "bag"


def recording(source: Path, tmp_path: Path, extrinsics: Extrinsics | None = None) -> Recording:
    jobs = plan_jobs([str(source)], str(tmp_path / "out"), None, BagOptions())
    return Recording([str(source)], jobs, BagOptions(), CloudSettings(), CloudSettings(), extrinsics or Extrinsics())


def scans_of(root: Path) -> list[np.ndarray]:
    return [read_scan(file.path) for file in find_scans(root)]


def test_a_bag_and_a_root_give_the_same_scans(drive: tuple[Path, Path], tmp_path: Path) -> None:
    copies = []
    for number, source in enumerate(drive):
        copied = copy_scans(recording(source, tmp_path), tmp_path / str(number) / "sequences" / "00")
        assert (copied.scans, copied.unusable) == (SCANS, 0)
        copies.append(scans_of(tmp_path / str(number)))
    for of_root, of_bag, original in zip(*copies, scans_of(drive[0]), strict=True):
        np.testing.assert_array_equal(of_root, original)
        np.testing.assert_allclose(of_bag[:, :3], original[:, :3], atol=1e-5)
    labels = read_labels(find_scans(tmp_path / "0")[0].labels_path, len(copies[0][0]))
    assert not labels.any()


def test_a_standing_vehicle_gives_one_scan(drive: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    originals = scans_of(drive[0])
    for number, original in enumerate([originals[0]] * 6 + originals):
        noisy = original.copy()
        noisy[:, :3] *= 1 + 0.001 * rng.standard_normal((len(noisy), 1))
        write_scan(tmp_path / "stood" / "sequences" / "00" / "velodyne" / f"{number:06d}.bin", noisy)
    copied = copy_scans(recording(tmp_path / "stood", tmp_path), tmp_path / "copy" / "sequences" / "00")
    assert (copied.scans, copied.standing) == (SCANS, 6)


def test_a_long_recording_is_thinned_evenly(drive: tuple[Path, Path], tmp_path: Path) -> None:
    copied = copy_scans(recording(drive[0], tmp_path), tmp_path / "copy" / "sequences" / "00", limit=5)
    assert copied.scans == 5
    kept, originals = scans_of(tmp_path / "copy"), scans_of(drive[0])
    assert [next(i for i, o in enumerate(originals) if np.array_equal(o, k)) for k in kept] == [0, 2, 4, 6, 8]
    assert len(list((tmp_path / "copy" / "sequences" / "00" / "labels").iterdir())) == 5


def test_no_more_than_twice_the_wanted_scans_are_looked_at(drive: tuple[Path, Path], tmp_path: Path) -> None:
    originals = scans_of(drive[0])
    for number, points in enumerate(originals + originals[:5]):
        write_scan(tmp_path / "long" / "sequences" / "00" / "velodyne" / f"{number:06d}.bin", points)
    copied = copy_scans(recording(tmp_path / "long", tmp_path), tmp_path / "copy" / "sequences" / "00", limit=5)
    assert (copied.read, copied.scans) == (8, 5)  # every second of 15


def test_of_a_single_file_no_more_than_twice_the_wanted_scans_are_on_the_disk(
    drive: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = scans_of(drive[0])
    for number in range(40):
        write_scan(tmp_path / "long" / "sequences" / "00" / "velodyne" / f"{number:06d}.bin", originals[number % SCANS])
    copies, written = tmp_path / "copy" / "sequences" / "00", []

    def counted(path: Path, points: np.ndarray) -> None:
        write_scan(path, points)
        written.append(len(list(path.parent.iterdir())))

    monkeypatch.setattr(recording_module, "write_scan", counted)
    monkeypatch.setattr(recording_module, "_count", lambda *_: 1)  # as of a .pcap or .osf
    copied = copy_scans(recording(tmp_path / "long", tmp_path), copies, limit=8)
    assert (copied.scans, max(written)) == (8, 16)
    kept = [next(i for i, o in enumerate(originals) if np.array_equal(o, k)) for k in scans_of(tmp_path / "copy")]
    assert kept == [0, 4, 8, 2, 0, 4, 8, 2]  # 0, 4, 8, 12, 20, 24, 28, 32 of 40; every tenth is the same


def test_scans_are_levelled_and_points_without_a_position_left_out(drive: tuple[Path, Path], tmp_path: Path) -> None:
    for number, original in enumerate(scans_of(drive[0])):
        broken = np.concatenate([original, np.zeros((7, 4), np.float32), np.full((5, 4), np.nan, np.float32)])
        write_scan(tmp_path / "raw" / "sequences" / "00" / "velodyne" / f"{number:06d}.bin", broken)
    tilted = recording(tmp_path / "raw", tmp_path, Extrinsics.from_angles(0.0, 10.0, 0.0))
    copied = copy_scans(tilted, tmp_path / "copy" / "sequences" / "00")
    level, original = scans_of(tmp_path / "copy")[0], scans_of(drive[0])[0]
    assert level.shape == original.shape
    sin, cos = np.sin(np.radians(10.0)), np.cos(np.radians(10.0))
    np.testing.assert_allclose(level[:, 2], cos * original[:, 2] - sin * original[:, 0], atol=1e-3)
    measured = measure_sensor(copied.clouds, 1.8)  # in the sensor's own frame, where the beams are
    assert min(measured.elevations_deg) == pytest.approx(-15.0, abs=0.2)


@pytest.mark.parametrize("name", ["vlp16", "vlp32c", "hdl32e"])
def test_a_sensor_is_measured_from_its_rings(name: str) -> None:
    sweeps = simulate_sweeps(SimulationSettings(3, name, seed=3, scene="city"), range(3))
    measured = measure_sensor([(sweep.points, sweep.rings) for sweep in sweeps], 1.9)
    assert measured.beams == SENSORS[name].beams
    np.testing.assert_allclose(measured.elevations_deg, SENSORS[name].elevations_deg, atol=0.1)
    assert measured.columns == pytest.approx(SENSORS[name].columns, rel=0.01)
    assert measured.mount_height_m == 1.9


def test_even_beams_are_found_without_rings() -> None:
    sweeps = simulate_sweeps(SimulationSettings(3, "hdl32e", seed=3, scene="city", motion="raw"), range(3))
    measured = measure_sensor([(sweep.points, None) for sweep in sweeps], 1.9)
    assert measured.beams == 32
    assert measured.elevations_deg == pytest.approx(SENSORS["hdl32e"].elevations_deg, abs=0.15)


def test_simulated_scans_have_the_sensor_and_the_remission_of_the_recording(
    drive: tuple[Path, Path], tmp_path: Path
) -> None:
    dim = tmp_path / "dim"
    for file in find_scans(drive[0]):
        points = read_scan(file.path)
        points[:, 3] = 0.1 + 0.3 * points[:, 3]
        points[::10, 3] = -0.1  # as of some drivers; has no power
        write_scan(dim / "sequences" / "00" / "velodyne" / file.path.name, points)
    sensor = replace(SENSORS["vlp16"], columns=600)
    simulate_source(tmp_path / "simulated", dim, sensor, 1.2, exponent=1.44, seed=0, jobs=1, scans=2)
    points = np.concatenate(scans_of(tmp_path / "simulated"))
    elevation = np.degrees(np.arcsin(points[:, 2] / np.linalg.norm(points[:, :3], axis=1)))
    assert np.abs(np.percentile(elevation, [0, 0.5, 99.5, 100])).max() < 18  # the vehicle moves within a sweep
    assert np.percentile(elevation, 0.5) == pytest.approx(-15.0, abs=0.5)
    wanted = np.concatenate(scans_of(dim))[:, 3]
    shares = [0.3, 0.6, 0.9]
    assert points[:, 3].min() >= 0.0
    seen = points[:, 3] ** 1.44  # by the network
    np.testing.assert_allclose(np.quantile(seen, shares), np.quantile(wanted, shares), atol=0.03)
    assert len(list(tmp_path.glob("simulated/sequences/01/velodyne/*.bin"))) > 0
    raw = np.concatenate([read_labels(file.labels_path) for file in find_scans(tmp_path / "simulated", ["00"])])
    assert (raw & 0xFFFF == 40).any()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["adapt", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_wrong_use_is_refused_in_one_line(
    drive: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, mine = drive[0], tmp_path / "mine.pt"
    model = ("--model", small_model, "--output", mine)
    assert "must end in .pt" in refused(capsys, root, "--output", tmp_path / "mine.onnx")
    assert "must end in .pt" in refused(capsys, root, "--output", ".")
    assert "no input is a bag; omit --topic" in refused(capsys, root, *model, "--topic", "/points")
    for minutes in ("0", "1e6"):
        expected = "--minutes must be above 0 and below 100000, found"
        assert expected in refused(capsys, root, *model, "--minutes", minutes)
    exponent = refused(capsys, root, *model, "--remission-exponent", "0")
    assert "--remission-exponent must be in 0.1..10, found 0.0" in exponent
    assert "--seed must be in 0..4294967295, found -1" in refused(capsys, root, *model, "--seed", "-1")
    assert "nothing does not exist" in refused(capsys, tmp_path / "nothing", *model)
    assert "adapt reads local recordings" in refused(capsys, "s3://fleet/drive", *model)
    assert "model file" in refused(capsys, root, "--model", tmp_path / "no.pt", "--output", mine)
    pinned = tmp_path / "pinned.yaml"
    pinned.write_text(f"/**:\n  ros__parameters:\n    model_sha256: {'f' * 64}\n")
    assert f"expected {'f' * 64}" in refused(capsys, root, *model, "--params", pinned)
    pinned.write_text("/**:\n  ros__parameters:\n    model_sha256: abc\n")
    assert "must be 64 hexadecimal digits, found 'abc'" in refused(capsys, root, *model, "--params", pinned)
    assert "labels" in refused(capsys, root, *model, "--evaluate", _unlabelled(root, tmp_path))
    assert "no.bag does not exist; expected" in refused(capsys, root, *model, "--evaluate", tmp_path / "no.bag")
    few = tmp_path / "few"
    for file in find_scans(root)[: MIN_SCANS - 1]:
        write_scan(few / "sequences" / "00" / "velodyne" / file.path.name, read_scan(file.path))
    text = refused(capsys, few, *model)
    assert f"{MIN_SCANS - 1} different scans found in {MIN_SCANS - 1} clouds" in text and "record a drive" in text
    assert not mine.exists()
    mine.write_bytes(b"a model that came from elsewhere")  # beside the folder of the adaptation that failed
    assert "already exists" in refused(capsys, root, *model)


def test_force_deletes_nothing_before_all_is_checked(
    drive: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, workspace = tmp_path / "mine.pt", tmp_path / "mine.adapt"
    with locked(workspace, fresh=False):
        (workspace / "run").mkdir()
    kept = [workspace / "run" / "last.ckpt", workspace / "recording.json", workspace / "notes.txt"]
    for path in kept:
        path.write_text("{}")
    inside = workspace / "labelled"
    shutil.copytree(drive[0], inside)
    forced, model = ("--output", output, "--force"), ("--model", small_model)
    assert "model nope not found" in refused(capsys, drive[0], *forced, "--model", "nope")
    assert "labels" in refused(capsys, drive[0], *forced, *model, "--evaluate", _unlabelled(drive[0], tmp_path))
    for inputs in ([inside], [workspace], [drive[0], "--evaluate", inside]):
        assert f"is in {workspace}" in refused(capsys, *inputs, *forced, *model)
    with (workspace / "adapt.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"another adaptation uses {workspace}" in refused(capsys, drive[0], *forced, *model)
    assert all(path.is_file() for path in kept) and len(find_scans(inside)) == SCANS
    with locked(workspace, fresh=True):
        assert sorted(path.name for path in workspace.iterdir()) == ["adapt.lock", "labelled", "notes.txt"]


def test_a_folder_that_adapt_did_not_make_is_refused(
    drive: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "mine.adapt" / "recording"
    shutil.copytree(drive[0], scans)
    for force in ([], ["--force"]):
        text = refused(capsys, drive[0], "--model", small_model, "--output", tmp_path / "mine.pt", *force)
        assert "exists and has no adaptation" in text
    assert len(find_scans(scans)) == SCANS


def test_parameters_that_adaptation_cannot_follow_are_refused(
    drive: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", small_model, "--output", tmp_path / "mine.pt")
    for name, value, message in (
        ("projection.rows", "ring_from_bottom", "adapt needs 'elevation'"),
        ("base_frame", "base_link", "only the node has TF"),
    ):
        file = tmp_path / "robot.yaml"
        file.write_text(json.dumps({"/**": {"ros__parameters": {name: value}}}))
        assert message in refused(capsys, drive[0], *model, "--params", file)


def test_the_model_of_a_parameter_file_is_adapted_unless_another_is_given(
    drive: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(json.dumps({"/**": {"ros__parameters": {"model": "robots_own"}}}))
    arguments = (drive[0], "--output", tmp_path / "mine.pt", "--params", file)
    assert "model robots_own not found" in refused(capsys, *arguments)
    assert "model nope not found" in refused(capsys, *arguments, "--model", "nope")


def test_other_classes_than_those_of_simulated_scans_are_refused(
    drive: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.network.export import export_model
    from sqsegv3_ros.network.model import SqueezeSegV3

    torch.manual_seed(0)
    info = read_info(small_model)
    labels = replace(info.labels, name="mine")
    network = SqueezeSegV3(NetworkConfig.from_dict(info.architecture))
    export_model(network, tmp_path / "other.pt", info=replace(info, labels=labels))
    text = refused(capsys, drive[0], "--model", tmp_path / "other.pt", "--output", tmp_path / "mine.pt")
    assert "has the label set 'mine'; expected the classes of SemanticKITTI" in text


def test_too_little_time_is_refused_after_measuring(
    drive: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.training.adaptation import run as adaptation_run

    config = NetworkConfig(blocks=(1, 1, 1, 1, 1), channels=(8, 8, 8, 8, 8), attention_kernel=1)
    model = make_model(tmp_path / "tiny.pt", width=128, config=config)
    few_scans = partial(simulate_source, scans=4)
    monkeypatch.setattr(adaptation_run, "simulate_source", few_scans)
    command = [
        "adapt",
        str(drive[1]),
        "--model",
        str(model),
        "--output",
        str(tmp_path / "mine.pt"),
        "--minutes",
        "0.01",
    ]
    assert main([*command, "--params", str(PRESETS / "vlp16.yaml")]) == 2
    said = capsys.readouterr()
    assert "0.0 minutes are left for training, but this machine needs at least" in said.err
    assert re.search(r"pass --minutes \d+ or more", said.err)
    assert "simulating a vlp16 sensor: 16 beams, 1808 columns" in said.err
    facts = json.loads((tmp_path / "mine.adapt" / "recording.json").read_text())
    assert facts["scans"] == SCANS


def _unlabelled(root: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "unlabelled"
    file = find_scans(root)[0]
    write_scan(copy / "sequences" / "00" / "velodyne" / file.path.name, read_scan(file.path))
    return copy
