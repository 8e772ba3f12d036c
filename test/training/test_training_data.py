# SPDX-License-Identifier: Apache-2.0
"""Training data: checks of data sets, bad files, reproducible batches."""

from __future__ import annotations

import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, fill_gaps, normalize, project
from sqsegv3_ros.training.augment import Augmentation, RandomMagnitude
from sqsegv3_ros.training.data import ScanData, TrainingSet, load_label_set
from sqsegv3_ros.training.loader import EpochSampler
from sqsegv3_ros.training.module import SegmentationModule
from sqsegv3_ros.training.scans import Root, describe

IMAGE = ProjectionConfig(height=16, width=128)
ROAD, CAR, BUILDING = 40, 10, 50


def write_data_set(root, sequences=("00", "01", "02"), scans=3, points=1500):
    """Scans of a road (below), a wall (left) and cars (ahead), which differ from one another."""
    for s, sequence in enumerate(sequences):
        for n in range(scans):
            rng = np.random.default_rng((s, n))
            azimuth, elevation = rng.uniform(-np.pi, np.pi, points), rng.uniform(-0.4, 0.04, points)
            raw = np.where(elevation < -0.15, ROAD, np.where(azimuth > 0.5, BUILDING, CAR))
            distance = np.where(raw == ROAD, -1.7 / np.minimum(np.sin(elevation), -0.1), rng.uniform(5, 20, points))
            direction = np.stack(
                (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)), 1
            )
            remission = np.where(raw == CAR, 0.8, 0.2)
            folder = root / "sequences" / sequence
            write_scan(folder / "velodyne" / f"{n:06d}.bin", np.c_[direction * distance[:, None], remission])
            write_labels(folder / "labels" / f"{n:06d}.label", raw + (7 << 16))
    return root


@pytest.fixture
def root(tmp_path):
    return write_data_set(tmp_path / "data")


def make_data(root, **settings):
    given = {"train": ["00", "01"], "val": ["02"], "projection": IMAGE, "batch_size": 2, **settings}
    data = ScanData(None if root is None else str(root), **given)
    data.setup()
    return data


def test_summary_of_a_split(root):
    data = make_data(root)
    assert (len(data.train_store), len(data.val_store)) == (6, 3)
    text = describe(data.train_store, "training")
    assert "training: 6 scans of 2 sequences, 0.0 M points in memory (6 scans), 0 files skipped" in text
    assert "road" in text.splitlines()[1]
    assert "absent: bicycle, motorcycle, truck" in text
    raw = np.concatenate([np.fromfile(f, "<u4") & 0xFFFF for f in root.glob("sequences/0[01]/labels/*")])
    share = {data.label_set.names[c]: f for c, f in enumerate(data.frequencies) if f}
    assert share == pytest.approx(
        {"road": (raw == ROAD).mean(), "car": (raw == CAR).mean(), "building": (raw == BUILDING).mean()}
    )


def missing_labels(folder):
    (folder / "labels/000001.label").unlink()
    return r"velodyne/000001\.bin: no labels for it, expected .*labels/000001\.label"


def too_few_labels(folder):
    write_labels(folder / "labels/000001.label", np.full(1400, ROAD))
    return r"labels/000001\.label: 1400 labels, but the scan has 1500 points"


def cut_scan(folder):
    path = folder / "velodyne/000001.bin"
    path.write_bytes(path.read_bytes()[:-5])
    return r"velodyne/000001\.bin: 23995 bytes is not a whole number of points"


def empty_scan(folder):
    (folder / "velodyne/000001.bin").write_bytes(b"")
    return r"velodyne/000001\.bin: the scan is empty"


def not_finite(folder):
    points = np.fromfile(folder / "velodyne/000001.bin", "<f4").reshape(-1, 4)
    points[5, 0], points[9, 2] = np.nan, np.inf
    write_scan(folder / "velodyne/000001.bin", points)
    return r"velodyne/000001\.bin: 2 of 1500 points have a NaN or infinite value"


def unknown_ids(folder):
    write_labels(folder / "labels/000001.label", np.full(1500, 12345))
    return r"labels/000001\.label: ids 12345 are not in label set 'semantic-kitti'"


FAULTS = [missing_labels, too_few_labels, cut_scan, empty_scan, not_finite, unknown_ids]


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_bad_file_is_named(root, spoil):
    message = spoil(root / "sequences/01")
    with pytest.raises(UserError, match=message):
        make_data(root)


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_bad_file_is_skipped_and_counted_if_requested(root, spoil):
    spoil(root / "sequences/01")
    data = make_data(root, invalid="skip")
    assert len(data.train_store) == 5
    assert len(data.train_store.skipped) == 1
    assert "1 files skipped" in describe(data.train_store, "training")
    assert len(list(data.train_dataloader())) == 2


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_bad_file_outside_the_cache_is_named_too(root, spoil):
    spoil(root / "sequences/01")
    with pytest.raises(UserError, match=r"sequences/01/.*/000001"):
        list(make_data(root, cache_gb=0, samples_per_epoch=20).train_dataloader())


def test_a_file_that_goes_bad_during_training_is_replaced_by_another_scan(root):
    data = make_data(root, cache_gb=0, invalid="skip", samples_per_epoch=20)
    not_finite(root / "sequences/01")
    assert len(list(data.train_dataloader())) == 10


def test_training_continues_on_the_last_readable_scan(root, caplog):
    data = make_data(root, cache_gb=0, invalid="skip", samples_per_epoch=20)
    scans = sorted(root.glob("sequences/0[01]/velodyne/*.bin"))
    for path in scans[1:]:
        path.write_bytes(b"")
    (batch,) = {b.labels.numpy().tobytes() for b in data.train_dataloader()}
    assert any(batch)
    assert sum("000002.bin: the scan is empty" in message for message in caplog.messages) == 2  # once per file


def test_training_ends_with_a_reason_if_no_scan_can_be_read(root):
    data = make_data(root, cache_gb=0, invalid="skip")
    for path in root.glob("sequences/0[01]/velodyne/*.bin"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 6 training scans can be read; .*\.bin: the scan is empty"):
        list(data.train_dataloader())


def test_a_file_that_goes_bad_is_left_out_of_validation(root):
    data = make_data(root, cache_gb=0, invalid="skip")
    (root / "sequences/02/velodyne/000001.bin").write_bytes(b"")
    assert [len(scan.point_labels) for scan in data.val_dataloader()] == [1500, 0, 1500]


def test_a_file_that_goes_bad_ends_validation_unless_it_may_be_skipped(root):
    data = make_data(root, cache_gb=0)
    (root / "sequences/02/velodyne/000001.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"02/velodyne/000001\.bin: the scan is empty"):
        list(data.val_dataloader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": None}, r"no training data given; set --data\.root"),
        ({"val": []}, "the validation split is empty"),
        ({"train": []}, "the training split of .* is empty"),
        ({"train": ["07"]}, r"has no sequence '07' \(sequences: 00, 01, 02\)"),
        ({"val": ["01"]}, "sequences 01 of .* are in training and validation; hold sequences out whole"),
        ({"val": ["1"]}, "sequences 01 of .* are in training and validation"),
        ({"crop_width": 256}, "crop_width must be a multiple of 8 in 8..128"),
        ({"invalid": "ignore"}, "invalid must be one of raise, skip"),
        ({"labels": "nuscenes"}, "is neither semantic-kitti nor semantic-kitti-all nor a file"),
        ({"workers": -1}, "workers must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(root, settings, message):
    with pytest.raises(UserError, match=message):
        make_data(settings.pop("root", root), **settings)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.bag"])
def test_a_wrong_path_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} does not exist; expected a bag or a SemanticKITTI data set"):
        make_data(tmp_path / name)


def test_more_crops_in_a_batch_than_in_an_epoch_is_refused(root):
    data = make_data(root, batch_size=7)
    with pytest.raises(UserError, match="6 crops an epoch do not fill a batch of 7"):
        data.train_dataloader()


def test_without_augmentation_a_batch_is_the_projection_of_the_scans(root):
    data = make_data(root, batch_size=6)
    (batch,) = data.train_dataloader()
    expected = {}
    for scan in data.train_store.cached():
        image = project(torch.from_numpy(scan.points), IMAGE)
        labels = torch.from_numpy(scan.labels)[image.index.clamp_min(0)] * (image.index >= 0)
        expected[image.channels.numpy().tobytes()] = (image.mask, labels)
    assert batch.channels.shape == (6, 5, 16, 128)
    for channels, mask, labels in zip(*batch, strict=True):
        right_mask, right_labels = expected.pop(channels.numpy().tobytes())
        assert torch.equal(mask, right_mask)
        assert torch.equal(labels, right_labels.to(torch.uint8))
    assert not expected  # every scan came once


BUSY = Augmentation(
    mix_sector_deg=RandomMagnitude(0.5, 30, 180),
    paste_objects=RandomMagnitude(1.0, 1, 3),
    yaw_deg=RandomMagnitude(1.0, -180, 180),
    jitter_m=RandomMagnitude(0.5, 0, 0.1),
    point_dropout=RandomMagnitude(0.5, 0, 0.5),
    fov_shift_deg=RandomMagnitude(0.5, -1, 1),
)


def stack(loader):
    return [torch.cat([b.channels.flatten(1), b.labels.flatten(1)], 1) for b in loader]


def test_crops_depend_on_seed_and_item_number_only(root):
    settings = {"augmentation": BUSY, "crop_width": 64, "samples_per_epoch": 8, "paste_classes": ["car"]}
    here = stack(make_data(root, **settings).train_dataloader())
    workers = stack(make_data(root, workers=2, **settings).train_dataloader())
    assert len(here) == 4
    assert all(torch.equal(a, b) for a, b in zip(here, workers, strict=True))
    other = stack(make_data(root, seed=1, **settings).train_dataloader())
    assert not any(torch.equal(a, b) for a, b in zip(here, other, strict=True))


def test_epochs_differ_and_a_loader_resumes_in_the_middle_of_one(root):
    data = make_data(root, augmentation=BUSY, samples_per_epoch=8)
    first = stack(data.train_dataloader())
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    second = [next(iterator) for _ in range(2)]
    state = loader.state_dict()
    rest = list(iterator)
    second = stack([*second, *rest])
    assert not any(torch.equal(a, b) for a in first for b in second)

    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(1)
    again = stack(resumed)
    assert len(again) == 2
    assert all(torch.equal(a, b) for a, b in zip(again, second[2:], strict=True))
    assert len(list(resumed)) == 4  # the next epoch is whole


def test_processes_share_an_epoch_without_overlap():
    samplers = [EpochSampler(11, rank, 3) for rank in range(3)]
    for sampler in samplers:
        sampler.set_epoch(2)
    draws = [list(s) for s in samplers]
    assert [len(d) for d in draws] == [3, 3, 3]
    assert sorted(d for own in draws for d in own) == list(range(18, 27))


def test_batches_of_all_processes_hold_the_same_crops_on_any_number_of_processes():
    """So a run resumes on another number of processes if batch_size keeps their crops."""

    def crops_until(batch, processes, batch_size):
        samplers = [EpochSampler(12, rank, processes) for rank in range(processes)]
        return sorted(item for s in samplers for item in list(s)[: batch * batch_size])

    for batch in range(1, 4):
        assert crops_until(batch, 1, 4) == crops_until(batch, 2, 2) == crops_until(batch, 4, 1)


@pytest.mark.slow
def test_workers_finish_their_batches_after_ctrl_c_and_sigterm(root, monkeypatch):
    original = DataLoader.__iter__

    def stopped_while_starting(loader):
        batches = original(loader)
        for worker in batches._workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        return batches

    monkeypatch.setattr(DataLoader, "__iter__", stopped_while_starting)
    assert len(list(make_data(root, workers=2, samples_per_epoch=12).train_dataloader())) == 6


def test_more_processes_than_validation_scans_are_refused(root):
    data = make_data(root)
    data.trainer = SimpleNamespace(global_rank=3, world_size=4)
    with pytest.raises(UserError, match=r"3 validation scans for 4 processes; .* lower trainer\.devices"):
        data.val_dataloader()


def test_roots_are_drawn_by_their_weights(root, tmp_path):
    other = write_data_set(tmp_path / "other", ("00",), scans=1, points=700)
    data = make_data(root, extra=[Root(str(other), weight=3.0)], root_weight=1.0, samples_per_epoch=400)
    loader = data.train_dataloader()
    few = sum(int((b.mask.flatten(1).sum(1) < 600).sum()) for b in loader)
    assert few / 400 == pytest.approx(0.75, abs=0.06)


def test_training_on_one_root_and_validating_on_another(root, tmp_path):
    simulated = write_data_set(tmp_path / "simulated", ("00", "02"))
    data = make_data(None, train=[], extra=[Root(str(simulated))], val_root=str(root), val=["02"])
    assert (len(data.train_store), len(data.val_store)) == (6, 3)
    assert data.provenance()["training"] == [{"name": "simulated", "sequences": None, "weight": None}]


def test_a_bag_of_labelled_clouds_is_a_root(root, tmp_path, monkeypatch):
    pytest.importorskip("rosbags")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bag = tmp_path / "drive.mcap"
    assert main(["convert", str(root), "--sequence", "01", "--bag", str(bag)]) == 0
    expected = make_data(root, train=["01"]).train_store
    for _ in range(2):  # made, then found
        found = make_data(None, extra=[Root(str(bag))], val_root=str(root)).train_store
        assert len(found) == len(expected) == 3
        for index in range(3):
            np.testing.assert_array_equal(found.read(index).points, expected.read(index).points)
            np.testing.assert_array_equal(found.read(index).labels, expected.read(index).labels)
    assert len(list((tmp_path / "cache" / "sqsegv3_ros" / "bags").iterdir())) == 1


def test_a_bag_without_labels_is_named(root, tmp_path, monkeypatch):
    pytest.importorskip("rosbags")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.rmtree(root / "sequences" / "01" / "labels")
    bag = tmp_path / "drive.mcap"
    assert main(["convert", str(root), "--sequence", "01", "--bag", str(bag)]) == 0
    with pytest.raises(UserError, match=r"drive\.mcap has no labels to train on: .*'ground_truth'"):
        make_data(root, train=["00"], extra=[Root(str(bag))])


def test_validation_sees_whole_scans_and_every_usable_point(root):
    data = make_data(root, crop_width=64, augmentation=BUSY)
    scans = list(data.val_dataloader())
    assert [s.channels.shape for s in scans] == [(1, 5, 16, 128)] * 3
    for file, scan in zip(data.val_store.files, scans, strict=True):
        raw = np.fromfile(file.labels_path, "<u4")
        np.testing.assert_array_equal(scan.point_labels, data.label_set.to_labels(raw))
        assert len(scan.pixel) == 1500


def test_moving_classes_are_kept_apart_with_their_label_set(root):
    folder = root / "sequences/00/labels"
    write_labels(folder / "000000.label", np.full(1500, 252))
    assert make_data(root).train_store.points[1] > 1500
    data = make_data(root, labels="semantic-kitti-all")
    moving = data.label_set.index("moving-car")
    assert data.train_store.points[moving] == 1500
    assert load_label_set("semantic-kitti-all") is data.label_set


def test_a_root_with_partial_labels_names_sets_of_classes(root, tmp_path):
    partial = tmp_path / "mine.yaml"
    partial.write_text(f"classes: {{{ROAD}: [road, parking], {CAR}: car, {BUILDING}: [building, fence]}}")
    extra = Root(str(root), ["01"], labels=str(partial))
    data = make_data(root, train=["00"], extra=[extra], augmentation=Augmentation())
    names = data.label_set.names
    assert [[names[c] for c in members] for members in data.sets] == [["road", "parking"], ["building", "fence"]]
    assert "road/parking" in describe(data.train_store, "training")
    raw = np.fromfile(root / "sequences/01/labels/000000.label", "<u4") & 0xFFFF
    scan = data.train_store.read(3)
    assert set(zip(raw.tolist(), scan.labels.tolist(), strict=True)) == {(ROAD, 20), (CAR, 1), (BUILDING, 21)}
    assert set(data.train_store.read(0).labels.tolist()) == {names.index(n) for n in ("road", "car", "building")}
    assert len(data.frequencies) == len(names)
    images = [image for batch in data.train_dataloader() for image in batch.labels]
    assert any((image >= 20).any() for image in images) and any((image.amax() < 20) for image in images)


def test_an_id_that_partial_labels_lack_is_named(root, tmp_path):
    partial = tmp_path / "mine.yaml"
    partial.write_text(f"name: mine\nclasses: {{{ROAD}: road}}")
    with pytest.raises(UserError, match=rf"ids {CAR}, {BUILDING} are not in label set 'mine'"):
        make_data(root, train=["00"], extra=[Root(str(root), ["01"], labels=str(partial))])


def test_objects_are_pasted_onto_sets_that_are_ground(root, tmp_path):
    partial = tmp_path / "mine.yaml"
    partial.write_text(f"classes: {{{ROAD}: [road, parking], {CAR}: car, {BUILDING}: [building, terrain]}}")
    paste = Augmentation(paste_objects=RandomMagnitude(1.0, 1, 1))
    data = make_data(root, train=["00"], extra=[Root(str(root), ["01"], labels=str(partial))], augmentation=paste)
    bank = data.train_dataloader().dataset.bank
    assert {20} == {label for label in bank.ground.tolist() if label >= 20}


def test_training_images_have_the_filled_gaps_and_the_height_of_the_live_path(root):
    """As the segmenter makes its image: few beams leave rows empty, and the sensor is lower than the model's."""
    image = ProjectionConfig(height=64, width=128, fill_rows=2)
    data = make_data(root, projection=image)
    scan = data.val_store.cached()[0]
    live = Extrinsics(height_m=1.2).compensate_height(fill_gaps(project(torch.from_numpy(scan.points), image), 2), 1.73)
    expected = normalize(live, Normalization())
    module = SegmentationModule(projection=image, sensor_height_m=1.73, recorded_height_m=1.2)
    validation = data.val_dataloader().dataset[0]
    torch.testing.assert_close(module.image(validation.channels, validation.mask), expected, rtol=1e-5, atol=1e-5)
    crop = TrainingSet(data.val_store, image, Augmentation(), crop_width=None, bank=None, seed=0)[0]
    assert float(crop.mask.float().mean()) > 1.5 * float(
        (crop.labels > 0).float().mean()
    )  # filled pixels have no label
