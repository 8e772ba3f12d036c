# SPDX-License-Identifier: Apache-2.0
"""Self-training without labels: pseudo-labels, what they gain on a shifted sensor, resuming, collapse."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from test_training_data import IMAGE, write_data_set
from test_training_run import options

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.conversion import sequence_to_bag
from sqsegv3_ros.data.semantic_kitti import find_scans, read_labels, read_scan, write_labels, write_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.model_file import read_info
from sqsegv3_ros.inference.range_image import project
from sqsegv3_ros.labelling.plan import BagOptions
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.pointcloud2 import CloudSettings
from sqsegv3_ros.training import run as training_run
from sqsegv3_ros.training.adaptation import checks, recipe
from sqsegv3_ros.training.adaptation import run as adaptation_run
from sqsegv3_ros.training.adaptation.checks import require_sound, shrunk_classes
from sqsegv3_ros.training.adaptation.pseudo_labels import (
    SURE,
    TURNED,
    VARIED,
    ScanLabels,
    View,
    keep_confident,
    label_scan,
    thresholds,
)
from sqsegv3_ros.training.adaptation.recipe import Plan
from sqsegv3_ros.training.adaptation.recording import Recording
from sqsegv3_ros.training.adaptation.report import labelled_scans
from sqsegv3_ros.training.adaptation.run import Adaptation, AdaptationSettings
from sqsegv3_ros.training.adaptation.source import map_quantiles
from sqsegv3_ros.training.adaptation.teacher import load_labels
from sqsegv3_ros.training.checkpoint import read_trained
from sqsegv3_ros.training.module import SegmentationModule

ROAD, CAR, BUILDING = 9, 1, 13


def shifted_copy(source, target, scans):
    """The scans of a data set as another sensor measures them: brighter, fewer points, noise. No labels."""
    for number, file in enumerate(find_scans(source)[:scans]):
        rng = np.random.default_rng(number)
        points = read_scan(file.path)
        keep = rng.random(len(points)) < 0.7
        points[:, 3] += 0.2
        points[:, :3] *= 1.0 + 0.02 * rng.standard_normal((len(points), 1)).astype(np.float32)
        folder = target / "sequences" / "00"
        write_scan(folder / "velodyne" / f"{number:06d}.bin", points[keep])
        write_labels(folder / "labels" / f"{number:06d}.label", read_labels(file.labels_path)[keep])
    return target


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labelled scans, and scans of the same kind of places by another sensor."""
    folder = tmp_path_factory.mktemp("data")
    source = write_data_set(folder / "source", scans=8)
    places = write_data_set(folder / "places", sequences=("03", "04"), scans=8)
    return source, shifted_copy(places, folder / "target", 9)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """A model that learned the labelled scans."""
    folder = tmp_path_factory.mktemp("model")
    assert main(options(data[0], folder / "run", trainer__max_epochs=6)) == 0
    export = [
        "export",
        str(folder / "run" / "last.ckpt"),
        "--output",
        str(folder / "tiny.pt"),
        "--licence",
        "for tests",
    ]
    assert main(export) == 0
    return folder / "tiny.pt"


def module_of(path):
    info, weights = read_trained(path)
    module = SegmentationModule(
        network=NetworkConfig.from_dict(info.architecture),
        projection=IMAGE,
        normalization=info.normalization,
        knn=info.knn,
    )
    module.network.load_state_dict(weights)
    return module.eval()


def accuracy(module, root):
    """Share of the points with the right label: of a network's pixels, with nothing of the adaptation."""
    right = []
    for file in find_scans(root):
        points = read_scan(file.path)
        image = project(torch.from_numpy(points), IMAGE)
        with torch.no_grad():
            labels = module(image.channels[None], image.mask[None])[0][0].argmax(0).flatten()[image.pixel].numpy()
        truth = module.label_set.to_labels(read_labels(file.labels_path))
        right.append(labels == truth)
    return float(np.concatenate(right).mean())


def test_each_class_keeps_its_most_confident_share():
    rng = np.random.default_rng(0)
    road = ScanLabels(np.full(1000, ROAD, np.uint8), rng.uniform(0.6, 0.9, 1000).astype(np.float16))
    car = ScanLabels(np.full(200, CAR, np.uint8), rng.uniform(0.1, 0.4, 200).astype(np.float16))
    none = ScanLabels(np.zeros(50, np.uint8), np.zeros(50, np.float16))
    least = thresholds([road, car, none], 20, 0.4)
    for scan, count in ((road, 400), (car, 80), (none, 0)):
        kept = keep_confident(scan, least)
        assert np.count_nonzero(kept) == pytest.approx(count, rel=0.02)
        assert set(kept.tolist()) <= {0, int(scan.labels[0])}
        if count:
            assert scan.confidences[kept > 0].min() >= scan.confidences[kept == 0].max()
    sure = ScanLabels(np.full(1000, ROAD, np.uint8), np.linspace(SURE, 1, 1000).astype(np.float16))
    assert np.count_nonzero(keep_confident(sure, thresholds([sure], 20, 0.4))) > 990


def test_the_teacher_sees_three_exponents_of_a_remission_that_the_start_does_not_know():
    assert [(v.yaw, v.flipped) for v in VARIED] == [(v.yaw, v.flipped) for v in TURNED]
    assert len({view.yaw for view in TURNED}) == 4 and {view.exponent for view in TURNED} == {1.0}
    assert sorted({round(view.exponent, 3) for view in VARIED}) == [0.833, 1.0, 1.2]
    points = np.array([[1.0, 0.0, 0.5, 0.25], [0.0, 2.0, 0.0, -0.1]], np.float32)
    np.testing.assert_allclose(View(np.pi / 2, True, 0.5).of(points), [[0, -1, 0.5, 0.5], [-2, 0, 0, 0]], atol=1e-6)
    assert points[0, 3] == 0.25


def test_views_are_turned_back(model, data):
    """The views of a network that knows only the azimuth would disagree if labels were not turned back."""
    module = module_of(model)
    points = read_scan(find_scans(data[0])[0].path)
    quarter = label_scan(module, points, [View(np.pi / 2, True)])
    turned = points.copy()
    turned[:, 0], turned[:, 1] = -points[:, 1].copy(), -points[:, 0].copy()  # by 90 degrees, then flipped
    image = project(torch.from_numpy(turned), IMAGE)
    with torch.no_grad():
        own = module(image.channels[None], image.mask[None])[0][0].softmax(0).flatten(1)[:, image.pixel]
    expected = own[torch.from_numpy(quarter.labels).long(), torch.arange(len(points))].numpy()
    assert np.median(np.abs(quarter.confidences - expected)) < 1e-3


@pytest.mark.parametrize("per_scan", [0.001, 0.1, 2.0])
def test_the_minutes_that_a_refused_plan_names_suffice(monkeypatch, per_scan):
    monkeypatch.setattr(recipe, "_measure", lambda _: (8.0, per_scan))
    with pytest.raises(UserError, match=r"^0\.0 minutes are left for training.*pass --minutes \d+ or more$") as refused:
        recipe.plan_run([], 100, seconds=6.0, spent=150.0)
    minutes = int(str(refused.value).split()[-3])
    plan = recipe.plan_run([], 100, seconds=60.0 * minutes, spent=150.0)
    assert plan.rounds >= recipe.FEWEST_ROUNDS and plan.steps >= recipe.FEWEST_STEPS
    with pytest.raises(UserError):
        recipe.plan_run([], 100, seconds=60.0 * (minutes - 1), spent=150.0)


def test_quantiles_are_mapped():
    rng = np.random.default_rng(0)
    source, target = rng.beta(2, 5, 20000).astype(np.float32), (0.2 + 0.3 * rng.random(20000)).astype(np.float32)
    source[:4000] = 0.0  # as dark surfaces
    at = np.linspace(0, 1, 257)
    mapped = map_quantiles(source, np.quantile(source, at), np.quantile(target, at))
    wanted = [0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(mapped, wanted), np.quantile(target, wanted), atol=0.01)
    assert len(np.unique(mapped[:4000])) == 1


class Interrupt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class FullDisk(Callback):
    def on_train_batch_end(self, *_):
        raise OSError(28, "No space left on device", "last.ckpt")


def adapt(monkeypatch, data, model, output, *more, fault=None):
    """Run the command with few simulated scans, or rather those of the data set, and a short plan."""
    source, target = data

    def copied_source(root, *_, **__):
        for sequence, original in (("00", "00"), ("01", "02")):
            for file in find_scans(source, [original]):
                folder = root / "sequences" / sequence
                write_scan(folder / "velodyne" / file.path.name, read_scan(file.path))
                write_labels(folder / "labels" / file.labels_path.name, read_labels(file.labels_path))

    with monkeypatch.context() as patch:
        patch.setattr(adaptation_run, "simulate_source", copied_source)
        patch.setattr(adaptation_run, "plan_run", lambda *_: Plan(3, 6))
        if fault is not None:
            original = training_run.run_callbacks
            patch.setattr(training_run, "run_callbacks", lambda run: [fault, *original(run)])
        command = ["adapt", str(target), "--model", str(model), "--output", str(output), "--remission-exponent", "1.2"]
        return main([*command, *more])


@pytest.fixture(scope="module")
def adapted(data, model, tmp_path_factory):
    """An adapted model, what the command said, and the files of the recording before."""
    output = tmp_path_factory.mktemp("adapted") / "mine.pt"
    before = {path: path.read_bytes() for path in sorted(data[1].rglob("*.*"))}
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert adapt(monkeypatch, data, model, output, "--evaluate", str(data[1])) == 0
    return output, before


def test_adaptation_gains_on_a_sensor_without_labels(data, model, adapted):
    before, after = accuracy(module_of(model), data[1]), accuracy(module_of(adapted[0]), data[1])
    assert after > before + 0.02


def test_a_third_of_the_result_is_the_start(model, adapted):
    last = read_trained(adapted[0].with_suffix(".adapt") / "run" / "last.ckpt")[1]
    start, found = read_trained(model)[1], read_trained(adapted[0])[1]
    assert found.keys() == last.keys()
    moved = 0
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, last[name] * 2 / 3 + start[name] / 3)
            moved += not torch.allclose(last[name], start[name])
        else:
            assert torch.equal(value, last[name])
    assert moved > 10


def test_the_same_command_writes_a_model_again_that_was_moved_away(data, model, adapted, tmp_path, monkeypatch, capfd):
    output, facts = tmp_path / "mine.pt", tmp_path / "mine.adapt" / "recording.json"
    shutil.copytree(adapted[0].with_suffix(".adapt"), tmp_path / "mine.adapt")
    known = facts.read_text()
    facts.write_text(json.dumps(json.loads(known) | {"scans": 7}))
    assert adapt(monkeypatch, data, model, output) == 2
    assert "the recording has changed since the adaptation in" in capfd.readouterr().err
    facts.write_text(known)
    assert adapt(monkeypatch, data, model, output) == 0
    said = capfd.readouterr().err
    assert "simulating" not in said and "training: 3 rounds" not in said
    ours, whole = (read_trained(path)[1] for path in (output, adapted[0]))
    assert all(torch.equal(ours[name], value) for name, value in whole.items())
    assert sorted(path.name for path in (tmp_path / "mine.adapt").iterdir()) == [
        "adapt.lock", "plan.json", "recording.json", "report.html", "run", "train.yaml"
    ]  # fmt: skip


def test_the_recording_is_not_changed(data, adapted):
    assert adapted[1] == {path: path.read_bytes() for path in sorted(data[1].rglob("*.*"))}


def test_the_model_names_its_origin_and_the_report_compares(data, model, adapted, capsys):
    info = read_info(adapted[0])
    assert info.licence == "for tests"
    provenance = info.provenance
    assert provenance["started_from"]["name"] == "sqsegv3"
    assert main(["inspect", str(adapted[0])]) == 0
    assert "raised to the power 1.2" in capsys.readouterr().out
    assert "user's own recording" in provenance["note"]
    workspace = adapted[0].with_suffix(".adapt")
    rounds = [json.loads(line) for line in (workspace / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    assert rounds[0]["start_agreement"] > 0.5
    # with the remission as the start sees it
    before = load_labels(workspace / "run" / "start.npz")
    seen = [label_scan(module_of(model), read_scan(file.path)).labels for file in find_scans(data[1])]
    assert np.mean(np.concatenate([scan.labels for scan in before]) == np.concatenate(seen)) > 0.999
    assert "vary_remission: true" in (workspace / "train.yaml").read_text()
    page = (workspace / "report.html").read_text()
    assert page.count("<img") == 20 and "IoU before" in page and ">nan<" not in page
    assert not (workspace / "recording").exists() and not (workspace / "simulated").exists()


def test_nothing_is_lost_by_an_interruption_or_a_collapse(data, model, adapted, tmp_path, monkeypatch, capfd):
    """The same command without --force continues, and comes to the model of an uninterrupted run."""
    output, evaluate = tmp_path / "mine.pt", ("--evaluate", str(data[1]))
    output.write_bytes(b"an earlier model")
    assert adapt(monkeypatch, data, model, output, *evaluate, "--force", fault=Interrupt(8)) == 130
    assert "interrupted; the same command without --force continues" in capfd.readouterr().err
    assert adapt(monkeypatch, data, model, output, "--seed", "1", "--minutes", "9") == 2
    assert "holds an adaptation with different settings (seed)" in capfd.readouterr().err
    assert adapt(monkeypatch, data, model, output, "--minutes", "9") == 2
    assert "holds an adaptation with different settings (minutes)" in capfd.readouterr().err
    assert adapt(monkeypatch, data, model, output, "--remission-exponent", "1") == 2
    assert "holds an adaptation with different settings (remission_exponent)" in capfd.readouterr().err
    (tmp_path / "other.yaml").write_text("/**:\n  ros__parameters:\n    knn.k: 3\n    threads: 1\n")
    assert adapt(monkeypatch, data, model, output, "--params", str(tmp_path / "other.yaml")) == 2
    assert "different settings (parameters.knn.k)" in capfd.readouterr().err  # threads change no label
    assert adapt(monkeypatch, data, model, output, *evaluate, fault=FullDisk()) == 1
    assert "free space, then resume with the same command without --force" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(checks, "LEAST_AGREEMENT", 1.01)
        assert adapt(monkeypatch, data, model, output, *evaluate) == 1
    said = capfd.readouterr().err
    assert "the adapted model collapsed and is not written: only" in said and f"kept in {tmp_path}/mine.adapt" in said
    assert output.read_bytes() == b"an earlier model"
    assert adapt(monkeypatch, data, model, output, *evaluate, "--json", str(tmp_path / "results.json")) == 0
    assert "training: 3 rounds" not in capfd.readouterr().err
    ours, whole = (read_trained(path)[1] for path in (output, adapted[0]))
    assert all(torch.equal(ours[name], value) for name, value in whole.items())
    before, after = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert after["accuracy"] > before["accuracy"]
    assert adapt(monkeypatch, data, model, output) == 2
    assert "already exists" in capfd.readouterr().err


def test_a_bag_is_evaluated_with_the_intensity_settings_of_the_recording(data, model, tmp_path, monkeypatch):
    """Like the data set that it was made from, whose remission needs no settings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    raw, bag, clouds = tmp_path / "raw", tmp_path / "bag", CloudSettings(intensity_scale=0.01)
    shutil.copytree(data[1], raw)
    for file in find_scans(raw):
        write_scan(file.path, read_scan(file.path) * np.float32((1, 1, 1, 100)))
    sequence_to_bag(raw, None, bag, "mcap")
    summaries = []
    for path, file_clouds in ((data[1], CloudSettings()), (raw, clouds), (bag, clouds)):
        recording = Recording([], [], BagOptions(), clouds, file_clouds, Extrinsics())
        adaptation = Adaptation(recording, AdaptationSettings(str(model), {}, None, 1.0), tmp_path / "mine.adapt")
        summaries.append(labelled_scans(path, adaptation).evaluate(model, {})["iou"])
    assert summaries[0] == pytest.approx(summaries[1], abs=1e-3, nan_ok=True)
    assert summaries[0] == pytest.approx(summaries[2], abs=1e-3, nan_ok=True)


def test_the_remission_keeps_its_power_unless_another_is_given(model, adapted, tmp_path):
    def exponent(start, given=None):
        settings = AdaptationSettings(str(start), {}, None, 1.0, given)
        return Adaptation(None, settings, tmp_path / "mine.adapt").remission_exponent

    assert [exponent(model), exponent(model, 1.4)] == [1.0, 1.4]
    assert [exponent(adapted[0]), exponent(adapted[0], 1.0)] == [1.2, 1.0]


def record(**shares):
    return {"start_agreement": 0.8, "confidence": 0.7, "shares": {"road": 0.3, "car": 0.05, "person": 0.001, **shares}}


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (record() | {"start_agreement": 0.2}, "only 20 % of the points kept their label"),
        (record(car=0.001), r"car fell from 5\.0 to 0\.10 % of the points"),
        (record(road=0.9), "road rose from 30 to 90 % of the points"),
        (record() | {"confidence": float("nan")}, "the probabilities are not finite"),
    ],
)
def test_what_a_collapse_looks_like(tmp_path, end, message):
    from sqsegv3_ros.errors import OperationError

    with pytest.raises(OperationError, match=message):
        require_sound(record(), end, tmp_path)
    require_sound(record(), record(person=0.0), tmp_path)  # a rare class may go
    require_sound(record(), record(car=0.004), tmp_path)  # kept an eighth, which is named instead
    assert shrunk_classes(record(), record(car=0.004, person=0.0)) == ["car 5.0 -> 0.40 %"]
    assert shrunk_classes(record(), record(car=0.03)) == []
