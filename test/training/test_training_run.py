# SPDX-License-Identifier: Apache-2.0
"""Whole training runs on a tiny data set: curve, resuming, stopping, checkpoints, export, messages."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from conftest import GOLDEN, needs_shared
from lightning.pytorch import Callback
from test_training_data import IMAGE, make_data, write_data_set

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
from sqsegv3_ros.inference.model_file import ModelInfo, load_model, read_info
from sqsegv3_ros.inference.range_image import Normalization, normalize, project, restore
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training import run as run_module
from sqsegv3_ros.training.callbacks import ema_update
from sqsegv3_ros.training.checkpoint import load_network, load_weights, read_checkpoint
from sqsegv3_ros.training.module import SegmentationModule

TINY = {
    "--model.network.channels": "[8,8,8,8,8]",
    "--model.network.blocks": "[1,1,1,1,1]",
    "--model.network.attention_kernel": "1",
    "--model.network.azimuth_padding": "circular",
    "--model.network.dropout": "0.2",
    "--model.projection": '{"height": 16, "width": 128}',
    "--model.optimizer": '{"method": "adamw", "schedule": "one-cycle", "lr": 0.01}',
    "--data.train": '["00","01"]',
    "--data.val": '["02"]',
    "--data.crop_width": "64",
    "--data.augmentation.yaw_deg": '{"probability": 1.0, "low": -180, "high": 180}',
    "--run.ema_decay": "0.9",
    "--trainer.max_epochs": "3",
    "--trainer.accelerator": "cpu",
    "--trainer.enable_progress_bar": "false",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data"))


def options(root, output, **changes):
    given = {**TINY, "--data.root": str(root), "--run.output": str(output)}
    given |= {f"--{key.replace('__', '.')}": str(value) for key, value in changes.items()}
    return ["train", *(part for pair in given.items() for part in pair)]


class Losses(Callback):
    """Remembers every step's loss; sends a signal after one of them."""

    def __init__(self, interrupt_after=None):
        self.losses = {}
        self.interrupt_after = interrupt_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()
        if trainer.global_step == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)


def train(monkeypatch, arguments, interrupt_after=None):
    """Run the command in this process. Returns (exit code, loss by step)."""
    losses = Losses(interrupt_after)
    original = run_module.run_callbacks
    monkeypatch.setattr(run_module, "run_callbacks", lambda *a, **k: [losses, *original(*a, **k)])
    code = main(arguments)
    monkeypatch.undo()
    return code, losses.losses


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run of three epochs to the end: its folder and the loss of every step."""
    output = tmp_path_factory.mktemp("run")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        code, losses = train(monkeypatch, options(root, output))
    assert code == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    return output, losses


def history(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def without_time(entries):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in entries]


def test_a_run_leaves_checkpoints_history_settings_and_tensorboard_files(finished):
    output, losses = finished
    assert sorted(losses) == list(range(1, 10))
    assert losses[9] < losses[1]
    assert {p.name for p in output.iterdir()} == {
        "best.ckpt", "last.ckpt", "history.jsonl", "config.yaml", "tensorboard"
    }  # fmt: skip
    entries = history(output)
    assert [e["step"] for e in entries] == [3, 6, 9]
    assert entries[0]["train/loss"] == pytest.approx(np.mean([losses[i] for i in (1, 2, 3)]), abs=1e-4)
    best = max(entries, key=lambda e: e["val/miou"])
    description, _ = read_checkpoint(output / "best.ckpt")
    assert description["training"]["metrics"]["val/miou"] == pytest.approx(best["val/miou"], abs=1e-5)
    assert description["training"]["steps"] == best["step"]


@pytest.mark.parametrize("stop", [4, 6])
def test_ctrl_c_saves_and_resuming_continues_to_the_same_curve(finished, root, tmp_path, monkeypatch, capfd, stop):
    whole, losses = finished
    handler = signal.getsignal(signal.SIGINT)  # a shell ignores it for what it starts in the background
    code, before = train(monkeypatch, options(root, tmp_path), interrupt_after=stop)
    assert code == 130
    said = capfd.readouterr().err
    assert f"stopped after step {stop}; saved {tmp_path}/last.ckpt. Resume with: --run.resume true" in said
    assert signal.getsignal(signal.SIGINT) is handler
    code, after = train(monkeypatch, options(root, tmp_path, run__resume="true", data__workers=1))
    assert code == 0
    assert sorted(after) == list(range(stop + 1, 10))
    assert {**before, **after} == losses
    assert without_time(history(tmp_path)) == without_time(history(whole))
    ours, theirs = (torch.load(d / "last.ckpt", weights_only=True) for d in (tmp_path, whole))
    for entry in ("state_dict", "current_model_state"):
        assert all(torch.equal(ours[entry][k], v) for k, v in theirs[entry].items())


def confusion_of(network, root):
    """The validation scans' points counted one scan after the other, with nothing of the training code."""
    matrix = ConfusionMatrix(SEMANTIC_KITTI)
    for scan in make_data(root).val_store.cached():
        image = project(torch.from_numpy(scan.points), IMAGE)
        with torch.no_grad():
            labels = network(normalize(image, Normalization()))[0].argmax(1)[0]
        matrix.add(restore(labels, image).numpy(), scan.labels)
    return matrix


def scores_of(network, root):
    return confusion_of(network, root).scores(strict=True)


def test_validation_counts_points_by_the_averaged_weights(finished, root):
    output, _ = finished
    matrix = confusion_of(load_network(*read_checkpoint(output / "last.ckpt")), root)
    scores, last = matrix.scores(strict=True), history(output)[-1]
    assert last["val/miou"] == pytest.approx(scores.miou_present, abs=1e-5)
    assert last["val/accuracy"] == pytest.approx(scores.accuracy, abs=1e-5)
    assert last["val/miou_all"] == pytest.approx(matrix.scores().miou, abs=1e-5)
    assert last["iou/road"] == pytest.approx(scores.iou[9], abs=1e-5)


def test_a_checkpoint_describes_itself(finished, root):
    description, _ = read_checkpoint(finished[0] / "best.ckpt")
    assert json.loads(json.dumps(description)) == description
    assert description["training"]["data"]["training"][0]["sequences"] == ["00", "01"]
    assert description["training"]["data"]["validation"] == {"name": root.name, "sequences": ["02"]}
    assert str(root.parent) not in json.dumps(description)
    assert description["network"]["channels"] == [8, 8, 8, 8, 8]
    assert description["training"]["augmentation"]["yaw_deg"]["high"] == 180


@pytest.fixture(scope="module")
def image(root):
    scan = make_data(root).val_store.cached()[0]
    return normalize(project(torch.from_numpy(scan.points), IMAGE), Normalization())


def test_exported_model_agrees_with_the_trained_network(finished, tmp_path, image, capsys):
    checkpoint, model = finished[0] / "best.ckpt", tmp_path / "model.pt"
    command = ["export", str(checkpoint), "--output", str(model), "--licence", "for tests", "--name", "tiny", "--half"]
    command += ["--knn-k", "3", "--knn-search", "7"]
    command += ["--sensor-height-m", "1.9"]
    assert main([*command[:-1], "-1"]) == 2
    assert "--sensor-height-m must be between 0 and 100 metres" in capsys.readouterr().err
    assert main(command) == 0
    assert "tiny, 20 classes, 16 x 128 pixels" in capsys.readouterr().out
    model = load_model(model)
    assert model.info.weights_dtype == "float16"
    assert model.info.labels == SEMANTIC_KITTI
    assert model.info.projection == IMAGE
    assert (model.info.knn.k, model.info.knn.search) == (3, 7)
    assert model.info.sensor_height_m == 1.9
    assert model.info.provenance["licence"] == "for tests"
    assert model.info.provenance["metrics"]["val/miou"] > 0
    with torch.no_grad():
        expected = load_network(*read_checkpoint(checkpoint))(image)[0].softmax(1)
        found = model.network(image).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)
    assert main(command) == 2  # it exists now


def test_a_class_bias_is_added_to_the_logits_of_the_class(finished, tmp_path, image, capsys):
    checkpoint = str(finished[0] / "best.ckpt")
    assert main(["export", checkpoint, "--output", str(tmp_path / "plain.pt")]) == 0
    once, twice = str(tmp_path / "once.pt"), str(tmp_path / "twice.pt")
    assert main(["export", checkpoint, "--output", once, "--class-bias", "person=1", "--class-bias", "car=-0.25"]) == 0
    assert main(["export", once, "--output", twice, "--class-bias", "person=0.5"]) == 0  # biases in the weights add up
    biased = load_model(twice)
    with torch.no_grad():
        difference = biased.network(image)[0] - load_model(tmp_path / "plain.pt").network(image)[0]
    shifts = dict.fromkeys(range(20), 0.0) | {6: 1.5, 1: -0.25}
    assert difference.mean((1, 2)).tolist() == pytest.approx(list(shifts.values()), abs=1e-5)
    assert float(difference.std((1, 2)).max()) < 1e-5
    assert biased.info.provenance["class_bias"] == {"person": 1.5, "car": -0.25}
    capsys.readouterr()
    assert main(["inspect", twice]) == 0
    assert any(
        line.split(maxsplit=2) == ["class", "bias", "person +1.5, car -0.25"]
        for line in capsys.readouterr().out.splitlines()
    )
    for wrong, message in (
        ("person", "expected CLASS=NUMBER"),
        ("car=nan", "expected CLASS=NUMBER, finite, such as person=0.5, found 'car=nan'"),
        ("cow=1", "no class 'cow'"),
        ("unlabeled=0.5", "class 'unlabeled' is ignored in evaluation; expected one of car, bicycle,"),
        ("car=0.1 car=-0.1", "found car=0.1 and car=-0.1; give a class once"),
    ):
        assert main(["export", checkpoint, "--output", str(tmp_path / "x.pt"), "--class-bias", *wrong.split()]) == 2
        assert message in capsys.readouterr().err


def onnx_logits(path, image):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def test_exported_onnx_file_agrees_with_the_trained_network(finished, tmp_path, image, capsys):
    onnx = pytest.importorskip("onnx")
    checkpoint, path = finished[0] / "best.ckpt", tmp_path / "model.onnx"
    assert main(["export", str(checkpoint), "--output", str(path), "--format", "onnx"]) == 0
    two = torch.cat((image, image.flip(3)))
    with torch.no_grad():
        expected = load_network(*read_checkpoint(checkpoint))(two)[0].softmax(1)
    torch.testing.assert_close(onnx_logits(path, two).softmax(1), expected, rtol=0, atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert ModelInfo.from_dict(json.loads(metadata["sqsegv3.json"])).labels == SEMANTIC_KITTI


@pytest.mark.parametrize(("padding", "kernel"), [("zero", 7), ("circular", 3)])
def test_onnx_labels_as_torch_does_with_any_kernel_and_padding(tmp_path, padding, kernel):
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.network.export import export_onnx

    pytest.importorskip("onnx")
    torch.manual_seed(0)
    config = NetworkConfig(channels=(8, 8, 8, 8, 8), attention_kernel=kernel, azimuth_padding=padding)
    network = SqueezeSegV3(config)
    for _ in range(2):  # BatchNorm statistics other than those it begins with
        network(3 * torch.randn(2, 5, 8, 64))
    info = ModelInfo("tiny", config.to_dict(), SEMANTIC_KITTI, IMAGE, Normalization(), KnnConfig())
    assert export_onnx(network, tmp_path / "tiny.onnx", info) < 1e-5


def test_onnx_file_that_labels_differently_is_not_written(finished, tmp_path, monkeypatch, capsys):
    from sqsegv3_ros.network import export

    pytest.importorskip("onnx")
    fold_norm = export.fold_norm

    def fold_wrongly(layer):
        fold_norm(layer)
        layer.conv.bias.data.neg_()

    monkeypatch.setattr(export, "fold_norm", fold_wrongly)
    checkpoint, path = finished[0] / "best.ckpt", tmp_path / "model.onnx"
    assert main(["export", str(checkpoint), "--output", str(path), "--format", "onnx"]) == 1
    assert "of a test image differently from torch; nothing written" in capsys.readouterr().err
    assert not path.exists()


@needs_shared
def test_training_can_start_from_an_official_checkpoint():
    module = SegmentationModule(network=NetworkConfig.ssgv3_21(), start_from=str(GOLDEN / "official_21"))
    stored = torch.load(GOLDEN / "official_21" / "backbone", weights_only=True)
    assert torch.equal(module.network.stem.conv.weight, stored["conv1.weight"])
    narrow = SqueezeSegV3(NetworkConfig.ssgv3_21(channels=(8, 8, 8, 8, 8)))
    with pytest.raises(UserError, match=r"do not fit the network: .* set model\.network to the shape"):
        load_weights(narrow, GOLDEN / "official_21")


def test_training_continues_from_an_exported_model_file(finished, root, tmp_path, monkeypatch):
    """The file has the training state with BatchNorms and auxiliary heads, so the loss continues at its level."""
    model = tmp_path / "model.pt"
    assert main(["export", str(finished[0] / "best.ckpt"), "--output", str(model), "--name", "tiny"]) == 0
    changes = {"model__start_from": model, "trainer__max_epochs": 1, "model__optimizer__lr": 1e-5}
    code, losses = train(monkeypatch, options(root, tmp_path / "further", **changes))
    assert code == 0
    first = {name: min(run) for name, run in (("new", finished[1]), ("further", losses))}
    assert losses[first["further"]] < 0.8 * finished[1][first["new"]]
    assert history(tmp_path / "further")[-1]["val/miou"] > 0.6 * history(finished[0])[-1]["val/miou"]


def test_training_can_start_from_a_checkpoint_with_other_classes(finished):
    description, weights = read_checkpoint(finished[0] / "best.ckpt")
    config = NetworkConfig.from_dict({**description["network"], "num_classes": 26})
    network = SqueezeSegV3(config)
    heads = network.heads[0].conv.weight.clone()
    assert "without the heads, whose classes differ" in load_weights(network, finished[0] / "best.ckpt")
    assert torch.equal(network.heads[0].conv.weight, heads)
    assert torch.equal(network.stem.conv.weight, weights["stem.conv.weight"])


def test_weight_average_warms_up_to_the_decay():
    assert ema_update(torch.tensor(0.0), torch.tensor(1.0), 0, 0.999).item() == pytest.approx(0.9)
    assert ema_update(torch.tensor(0.0), torch.tensor(1.0), 10**6, 0.999).item() == pytest.approx(0.001)
    assert ema_update(torch.tensor(3), torch.tensor(8), 10, 0.999).item() == 8  # a counter is no average


def test_early_stopping_ends_a_run_that_does_not_improve(root, tmp_path, monkeypatch):
    changes = {"model__optimizer": '{"method": "sgd", "schedule": "constant", "lr": 1e-12}', "run__ema_decay": 0}
    changes |= {"trainer__max_epochs": 9, "run__early_stop_patience": 2, "model__network__bn_momentum": "1e-9"}
    code, losses = train(monkeypatch, options(root, tmp_path, **changes))
    assert code == 0
    assert 9 <= max(losses) < 27


@pytest.mark.parametrize("changes", [{"trainer__max_steps": 2}, {"trainer__limit_val_batches": 0}])
@pytest.mark.parametrize("patience", [0, 2])
def test_a_run_that_ends_before_a_validation_keeps_its_weights(root, tmp_path, monkeypatch, capsys, changes, patience):
    code, losses = train(monkeypatch, options(root, tmp_path, run__early_stop_patience=patience, **changes))
    assert code == 0
    assert f"no validation selected a best.ckpt; the weights are in {tmp_path}/last.ckpt" in capsys.readouterr().out
    description, _ = read_checkpoint(tmp_path / "last.ckpt")
    assert description["training"]["steps"] == max(losses)
    assert description["training"]["metrics"] == {}  # no score of the untrained network


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_resumed_run_follows_the_curve_of_an_uninterrupted_one(root, tmp_path, monkeypatch, steps):
    constant = {"model__optimizer": '{"method": "adamw", "schedule": "constant", "lr": 0.01}'}
    _, whole = train(monkeypatch, options(root, tmp_path / "whole", **constant))
    changes = {**constant, "trainer__max_steps": steps}
    assert train(monkeypatch, options(root, tmp_path / "parts", **changes))[0] == 0
    changes |= {"trainer__max_steps": -1, "run__resume": "true"}
    code, rest = train(monkeypatch, options(root, tmp_path / "parts", **changes))
    assert code == 0
    assert rest == {step: loss for step, loss in whole.items() if step > steps}
    assert without_time(history(tmp_path / "parts")) == without_time(history(tmp_path / "whole"))
    best = [read_checkpoint(tmp_path / run / "best.ckpt")[0]["training"] for run in ("whole", "parts")]
    assert best[0]["steps"] == best[1]["steps"] and best[0]["metrics"] == best[1]["metrics"]


def refused(capsys, arguments, code=2):
    assert main(arguments) == code
    text = capsys.readouterr().err
    assert text.count("sqsegv3 train: ") == 1
    assert len(text.splitlines()) <= 12  # no usage of 200 lines, no traceback
    return text


def test_invalid_use_is_refused_with_one_message(finished, root, tmp_path, capsys):
    output, _ = finished
    configuration = (output / "config.yaml").read_text()
    assert "already holds a run (last.ckpt); resume it with --run.resume true" in refused(capsys, options(root, output))
    wrong = options(root, output, run__resume="true", model__network__attention_kernel=3)
    assert "has another network: attention_kernel differ" in refused(capsys, wrong)
    smaller = refused(capsys, options(root, output, run__resume="true", data__batch_size=1))
    assert "batches of 2 crops, 3 an epoch, 1 a step; now they would be of 1 crops on 1 process, 6 an epoch" in smaller
    accumulated = options(root, output, run__resume="true", trainer__accumulate_grad_batches=3)
    assert "3 an epoch, 3 a step. Resume with the same data" in refused(capsys, accumulated)
    longer = options(root, output, run__resume="true", trainer__max_epochs=4)
    assert "planned for 9 steps, now there would be 12, but one-cycle cannot be extended" in refused(capsys, longer)
    assert (output / "config.yaml").read_text() == configuration
    assert "nothing to resume: there is no" in refused(capsys, options(root, tmp_path, run__resume="true"))
    assert "unrecognized arguments: --data.rot" in refused(capsys, [*options(root, tmp_path), "--data.rot", "x"])
    assert "crop_width must be a multiple of 8" in refused(capsys, options(root, tmp_path, data__crop_width=7))
    assert "nowhere does not exist; expected" in refused(capsys, options(tmp_path / "nowhere", tmp_path / "o"))
    (tmp_path / "file").touch()
    assert "/file is a file; choose a folder" in refused(capsys, options(root, tmp_path / "file"))
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "last.ckpt").write_bytes((output / "last.ckpt").read_bytes()[:5000])
    assert "cut/last.ckpt (5000 bytes) cannot be read" in refused(capsys, options(root, cut, run__resume="true"))


def test_export_at_another_width(finished, tmp_path, capsys):
    checkpoint, model = str(finished[0] / "best.ckpt"), tmp_path / "wide.pt"
    trained = read_checkpoint(checkpoint)[0]["projection"]["width"]
    assert main(["export", checkpoint, "--output", str(model), "--width", str(2 * trained)]) == 0
    info = read_info(model)
    assert info.projection.width == 2 * trained and info.provenance["trained_width"] == trained
    assert main(["export", str(model), "--output", str(tmp_path / "wider.pt"), "--width", str(3 * trained)]) == 0
    assert read_info(tmp_path / "wider.pt").provenance["trained_width"] == trained
    assert main(["export", checkpoint, "--output", str(tmp_path / "x.onnx")]) == 2
    assert "x.onnx must end in .pt" in capsys.readouterr().err
    for width in ("100", "0", "-8"):
        assert main(["export", checkpoint, "--output", str(tmp_path / "x.pt"), "--width", width]) == 2
        assert f"--width must be a multiple of 8, at least 8, found {width}" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_export_refuses_files_that_are_not_checkpoints(tmp_path, capsys):
    unreadable = "cannot be read: it is damaged, or was not made by"
    for content in (b"nothing", b"junk\n", b"", b"PK\x03\x04" + bytes(500), bytes(3000)):
        (tmp_path / "x.ckpt").write_bytes(content)
        for name, message in (("x.ckpt", unreadable), ("y.ckpt", "there is no checkpoint")):
            assert main(["export", str(tmp_path / name), "--output", str(tmp_path / "m.pt")]) == 2
            assert message in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    assert main(["export", str(tmp_path / "x.ckpt"), "--output", str(tmp_path / "m.pt")]) == 2
    assert "was not made by `sqsegv3 train`" in capsys.readouterr().err


def test_a_run_trains_on_partial_labels_and_resumes(root, tmp_path):
    partial = tmp_path / "mine.yaml"
    partial.write_text("classes: {40: [road, parking], 10: car, 50: [building, fence, pole]}")
    extra = json.dumps([{"path": str(root), "sequences": ["01"], "weight": 9, "labels": str(partial)}])
    given = {"data__extra": extra, "data__train": '["00"]', "model__loss__lovasz": 1.0}
    assert main(options(root, tmp_path / "run", **given, trainer__max_steps=2)) == 0
    resumed = options(root, tmp_path / "run", **given, trainer__max_steps=4, run__resume="true")
    resumed[resumed.index("--model.optimizer") + 1] = '{"method": "adamw", "schedule": "constant", "lr": 0.01}'
    assert main(resumed) == 0
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")[0]["training"]["steps"] == 4
