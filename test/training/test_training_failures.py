# SPDX-License-Identifier: Apache-2.0
"""Failures from outside that end a training run: disk, killed workers, lost processes, and what is said of them."""

from __future__ import annotations

import os
import signal

import pytest
from lightning.pytorch import Callback
from test_training_data import write_data_set
from test_training_run import options, refused

from sqsegv3_ros.cli import main
from sqsegv3_ros.training import run as run_module


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data"))


class FullDisk(Callback):
    def on_train_batch_end(self, trainer, *_):
        raise OSError(28, "No space left on device", "last.ckpt")


class KilledWorker(Callback):
    def on_train_batch_end(self, trainer, *_):
        for worker in trainer.fit_loop._combined_loader.flattened[0]._iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (FullDisk, "No space left on device: 'last.ckpt'. Earlier checkpoints are intact: free space, then resume"),
        (KilledWorker, "a process that prepares training data was killed, probably out of memory"),
    ],
)
def test_external_failures_are_explained(root, tmp_path, monkeypatch, capsys, fault, message):
    original = run_module.run_callbacks
    monkeypatch.setattr(run_module, "run_callbacks", lambda *a, **k: [fault(), *original(*a, **k)])
    assert message in refused(capsys, options(root, tmp_path, data__workers=1), code=1)


def failing(error):
    class Failing(Callback):
        def on_fit_start(self, *_):
            raise error

    return Failing


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:9310",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [::1]:32: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5",
    ],
)
def test_a_lost_connection_is_the_failure_of_another_process(root, tmp_path, monkeypatch, capsys, text):
    monkeypatch.setattr(run_module, "run_callbacks", lambda *_: [failing(RuntimeError(text))()])
    said = refused(capsys, options(root, tmp_path), code=1)
    assert "another training process ended" in said and f"then resume with --run.resume true ({text})" in said


def test_a_failure_of_this_process_is_not_blamed_on_another_one(root, tmp_path, monkeypatch, capsys):
    missing = FileNotFoundError(2, "No such file or directory", "/data/igloo/x.bin")
    monkeypatch.setattr(run_module, "run_callbacks", lambda *_: [failing(missing)()])
    assert "/data/igloo/x.bin: No such file" in refused(capsys, options(root, tmp_path / "a"), code=1)
    for text in ("Distributed package doesn't have NCCL built in", "NCCL error: unhandled cuda error"):
        monkeypatch.setattr(run_module, "run_callbacks", lambda *_, text=text: [failing(RuntimeError(text))()])
        with pytest.raises(RuntimeError, match=text):
            main(options(root, tmp_path / "b"))
