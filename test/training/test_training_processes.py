# SPDX-License-Identifier: Apache-2.0
"""Two training processes give the result of one process with all the data."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing
from conftest import ROOT
from test_training_data import IMAGE, make_data, write_data_set
from test_training_run import options, scores_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.checkpoint import load_network, read_checkpoint
from sqsegv3_ros.training.data import ValidationSet
from sqsegv3_ros.training.loss import LossConfig, MultiLayerLoss, class_weights
from sqsegv3_ros.training.module import SegmentationModule

PROCESSES = 2


class Together(torch.nn.Module):
    """Network and loss; BatchNorm and dropout as in evaluation, because synchronised BatchNorm needs CUDA."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        config = NetworkConfig(blocks=(1, 1, 1, 1, 1), channels=(8, 8, 8, 8, 8), attention_kernel=1)
        self.network = SqueezeSegV3(config)
        classes = SEMANTIC_KITTI.classes
        weights = class_weights("release", [c.frequency for c in classes], [c.ignored for c in classes])
        self.criterion = MultiLayerLoss(LossConfig(), weights, SEMANTIC_KITTI.evaluated)
        self.eval()

    def forward(self, images, labels):
        return self.criterion(self.network(images), labels)


def global_batch():
    """Four images; the halves have very different classes, so that a mean of the halves' means would be wrong."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 5, 8, 64, generator=generator)
    labels = torch.randint(0, 20, (4, 8, 64), generator=generator)
    labels[:2, :, 8:] = 0
    labels[2:] = labels[2:].clamp(9, 15)
    return images, labels


def gradients(module):
    return {name: p.grad.clone() for name, p in module.network.named_parameters()}


def train_one(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    module = Together()
    images, labels = (t.chunk(PROCESSES)[rank] for t in global_batch())
    together = DistributedDataParallel(module)
    together(images, labels).backward()
    torch.save(gradients(module), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one_with_the_global_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_one, (port, str(tmp_path)), nprocs=PROCESSES)
    alone = Together()
    alone(*global_batch()).backward()
    expected = gradients(alone)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            tolerance = {"rtol": 1e-3, "atol": 1e-6 * largest}
            torch.testing.assert_close(found[name], gradient, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def test_validation_step_does_not_wait_for_other_processes(tmp_path, monkeypatch):
    """Processes validate unequally many scans: one that waited for the others would wait forever."""
    data = make_data(write_data_set(tmp_path), projection=IMAGE)
    config = NetworkConfig(blocks=(1, 1, 1, 1, 1), channels=(8, 8, 8, 8, 8), attention_kernel=1)
    module = SegmentationModule(network=config, projection=IMAGE).eval()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: pytest.fail("waits for the other processes"))
    try:
        for number, scan in enumerate(DataLoader(ValidationSet(data.val_store, IMAGE), batch_size=None)):
            module.validation_step(scan, number)
    finally:
        torch.distributed.destroy_process_group()
    assert int(module.confusion.confmat.sum()) == 3 * 1500


@pytest.mark.long
def test_two_processes_train_and_validate_on_uneven_shares(tmp_path):
    root = write_data_set(tmp_path / "data")  # three scans to validate on, for two processes
    command = [sys.executable, "-m", "sqsegv3_ros.cli", *options(root, tmp_path / "run", trainer__max_epochs=1)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3, epoch 0") == 1  # said by one process only
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    description, weights = read_checkpoint(tmp_path / "run" / "last.ckpt")
    scores = scores_of(load_network(description, weights), root)
    assert json.loads(line)["val/miou"] == pytest.approx(scores.miou_present, abs=1e-5)


@pytest.mark.long
def test_the_process_whose_peer_failed_says_so_without_a_traceback(tmp_path):
    root = write_data_set(tmp_path / "data")
    command = [sys.executable, "-m", "sqsegv3_ros.cli", *options(root, tmp_path / "run", data__batch_size=1)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.limit_val_batches", "0.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # half of one scan is none on the second process
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert "invalid trainer settings: You requested to check 0.5" in done.stderr
    assert "another training process ended" in done.stderr
    assert "resume with --run.resume true" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_run_of_two_processes_resumes_on_one_with_the_same_crops_in_a_batch(tmp_path):
    root, run = write_data_set(tmp_path / "data"), tmp_path / "run"
    given = {"model__optimizer": '{"method": "adamw", "schedule": "constant", "lr": 0.01}', "data__workers": 1}
    start = options(root, run, **given, data__batch_size=1, trainer__max_steps=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sqsegv3_ros.cli", *start, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "batches of 2 crops on 2 processes, 3 an epoch, 1 a step" in done.stderr
    resumed = [*options(root, run, **given, data__batch_size=2, trainer__max_steps=3), "--run.resume", "true"]
    assert main(resumed) == 0
    assert read_checkpoint(run / "last.ckpt")[0]["training"]["steps"] == 3


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="synchronised BatchNorm needs two CUDA devices")
def test_synchronised_batchnorm_sees_the_global_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(normalise_one, (port, str(tmp_path)), nprocs=PROCESSES)
    alone = torch.nn.BatchNorm2d(5).train()
    alone(global_batch()[0])
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(found, alone.running_var, rtol=1e-4, atol=1e-5)


def normalise_one(rank, port, folder):
    torch.distributed.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    torch.cuda.set_device(rank)
    module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm2d(5)).cuda().train()
    module(global_batch()[0].chunk(PROCESSES)[rank].cuda())
    torch.save(module.running_var.cpu(), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()
