# SPDX-License-Identifier: Apache-2.0
"""The official recipes at full size, as docs/full_size.md describes them: trained, stopped, resumed, exported, used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from test_training_data import write_data_set

from sqsegv3_ros.data.semantic_kitti import read_labels, read_scan
from sqsegv3_ros.inference.backends import has_native_bf16
from sqsegv3_ros.inference.model_file import read_info

Start = Callable[[list[str]], "subprocess.Popen[str]"]
STEPS = 3
GIB_PER_PROCESS = {"21": 6.5, "53": 13.0}


def available_gib() -> float:
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 2**20


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sqsegv3_ros.cli", *map(str, arguments)]


@contextmanager
def starting() -> Iterator[Start]:
    """Start commands in process groups of their own, for signals to all of their processes; at the end kill them."""
    started = []

    def start(arguments: list[str]) -> subprocess.Popen[str]:
        environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
        process = subprocess.Popen(
            arguments, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            with suppress(ProcessLookupError):  # all of the group have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


def test_a_failed_assertion_leaves_no_process_behind() -> None:
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(AssertionError), starting() as start:
        process = start([sys.executable, "-c", f"import subprocess; subprocess.run({child})"])
        raise AssertionError
    assert process.returncode == -signal.SIGKILL


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate()
    assert process.returncode == code, f"{out}\n{err}"
    return out + err


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real scans, or synthetic ones if there are none."""
    real = DATA / "semantic_kitti"
    return real if real.is_dir() else write_data_set(tmp_path_factory.mktemp("data"), ("00", "04"), points=100_000)


def history_without_time(run: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("size", "processes"), [("21", 2), ("53", 1)])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_and_its_model_labels(
    size: str, processes: int, root: Path, tmp_path: Path, start: Start
) -> None:
    needed = processes * GIB_PER_PROCESS[size]
    if available_gib() < needed:
        pytest.skip(f"needs {needed:g} GiB of free memory, found {available_gib():.1f}")

    def train(run: Path, *further: str) -> subprocess.Popen[str]:
        options = {
            "config": ROOT / f"config/train/ssgv3_{size}.yaml",
            "data.root": root,
            "data.train": '["00"]',
            "data.val": '["04"]',
            "data.batch_size": 1,
            "data.workers": 1,
            "data.samples_per_epoch": STEPS * processes,
            "run.output": run,
            "run.checkpoint_minutes": 0.001,  # after every step
            "trainer.accelerator": "cpu",
            "trainer.devices": processes,
            "trainer.strategy": "ddp" if processes > 1 else "auto",
            "trainer.sync_batchnorm": "false",
            "trainer.precision": "bf16-mixed" if has_native_bf16() else "32-true",
            "trainer.max_epochs": 1,
            "trainer.limit_val_batches": 0.5,
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_progress_bar": "false",
        }
        return start(command("train", *(p for k, v in options.items() for p in (f"--{k}", v)), *further))

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finish(train(whole)).count("done; best mIoU") == 1  # said by one process

    stopped = train(parts)
    while not (parts / "last.ckpt").is_file() and stopped.poll() is None:
        time.sleep(0.2)
    if stopped.poll() is None:
        os.killpg(stopped.pid, signal.SIGTERM)
    assert "Resume with: --run.resume true" in finish(stopped, code=130)
    assert not (parts / "best.ckpt").exists()
    finish(train(parts, "--run.resume", "true"))

    assert history_without_time(parts) == history_without_time(whole)
    states = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (parts, whole)]
    assert all(torch.equal(states[0][name], weights) for name, weights in states[1].items())

    model, predictions = tmp_path / "model.pt", tmp_path / "predictions"
    finish(start(command("export", parts / "best.ckpt", "--output", model, "--half", "--licence", "for tests")))
    info = read_info(model)
    assert (info.name, info.projection.height, info.projection.width) == (f"ssgv3-{size}", 64, 2048)
    assert info.provenance["steps"] == STEPS
    scan = min((root / "sequences/04/velodyne").glob("*.bin"))
    finish(start(command("label", scan, "--model", model, "--output", predictions)))
    labels = read_labels(predictions / f"{scan.stem}.label", len(read_scan(scan)))
    assert set(np.unique(labels).tolist()) <= {c.raw_id for c in info.labels.classes}
