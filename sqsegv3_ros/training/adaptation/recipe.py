# SPDX-License-Identifier: Apache-2.0
"""The training run of an adaptation: its settings for `sqsegv3 train`, and how many steps fit into the time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.backends import has_native_bf16
from sqsegv3_ros.training.adaptation.pseudo_labels import TURNED, label_scan
from sqsegv3_ros.training.adaptation.source import TRAINING, VALIDATION
from sqsegv3_ros.training.adaptation.teacher import TeacherLabels
from sqsegv3_ros.training.run import TrainCLI, silence_library_warnings

BATCH = 4
CROP_COLUMNS = 512
ROUNDS, FEWEST_ROUNDS = 6, 3
MOST_STEPS = 1200  # more gain nothing
FEWEST_STEPS = 30
_LABELLING_SHARE = 0.5  # of the time, at most, if there are more than the fewest rounds
_MEASURED_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """Length of a run.

    Attributes:
        rounds: Epochs, each of which begins with new labels.
        steps: Optimiser steps of each.
    """

    rounds: int
    steps: int


@dataclass(frozen=True)
class Trained:
    """What is trained on what.

    Attributes:
        model: Settings of the model: arguments of `SegmentationModule`, in plain JSON types.
        recording: SemanticKITTI data set of the recording.
        source: SemanticKITTI data set of the simulated scans.
        vary_remission: Whether the teacher averages views with several powers of the remission.
        output: Folder of the run.
        seed: Seed of the run.
    """

    model: Mapping[str, Any]
    recording: Path
    source: Path
    vary_remission: bool
    output: Path
    seed: int


def training_settings(trained: Trained, plan: Plan) -> dict[str, Any]:
    """Compose the configuration of `sqsegv3 train`, in plain JSON types.

    Half of the crops are of the recording, the others simulated, and most are mixed with a second scan of either kind:
    rare classes, of which a teacher is never sure, are learned from the simulated points.
    """
    width = trained.model["projection"]["width"]
    teacher = {
        "root": str(trained.recording),
        "output": str(trained.output),
        "rounds": plan.rounds,
        "vary_remission": trained.vary_remission,
    }
    return {
        "seed_everything": trained.seed,
        "model": {
            **trained.model,
            # natural frequencies, as the labels of the teacher have them; the Lovász loss cares for rare classes
            "loss": {"class_weights": "none", "lovasz": 1.0},
            "optimizer": {
                "method": "adamw", "schedule": "one-cycle", "lr": 0.001, "warmup_share": 0.1, "weight_decay": 0.01
            },
        },
        "data": {
            "extra": [
                {"path": str(trained.recording), "weight": 1},
                {"path": str(trained.source), "sequences": [TRAINING], "weight": 1},
            ],
            "val_root": str(trained.source),
            "val": [VALIDATION],
            "batch_size": BATCH,
            "samples_per_epoch": BATCH * plan.steps,
            "crop_width": min(CROP_COLUMNS, width),
            "cache_gb": 2.0,
            "augmentation": _augmentation(),
        },
        "run": {"output": str(trained.output), "checkpoint_minutes": 5, "ema_decay": 0.99},
        "trainer": {
            "accelerator": "auto",
            "devices": 1,
            "precision": "bf16-mixed" if _with_bf16() else "32-true",
            "max_epochs": plan.rounds,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 5.0,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": f"{TeacherLabels.__module__}.TeacherLabels", "init_args": teacher}],
        },
    }  # fmt: skip


def _augmentation() -> dict[str, Any]:
    def change(probability: float, low: float, high: float) -> dict[str, float]:
        return {"probability": probability, "low": low, "high": high}

    return {
        "mix_sector_deg": change(0.5, 60, 180),
        "mix_bands": change(0.5, 3, 6),
        "paste_objects": change(0.5, 1, 5),
        "yaw_deg": change(1.0, -180, 180),
        "flip_probability": 0.5,
        "scale": change(0.5, 0.95, 1.05),
        "shift_m": change(0.3, 0.0, 1.0),
        "lift_m": change(0.3, -0.1, 0.1),
        "jitter_m": change(0.3, 0.0, 0.03),
        "point_dropout": change(0.3, 0.0, 0.3),
        "remission_scale": change(0.3, 0.8, 1.2),
        "remission_shift": change(0.3, -0.03, 0.03),
    }


def _with_bf16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_native_bf16()


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a run computes on a device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_with_bf16())


def plan_run(options: list[str], scans: int, seconds: float, spent: float) -> Plan:
    """Plan a run that ends about when wanted, from the time of a few steps and labelled scans.

    Args:
        options: Command line of `sqsegv3 train`; its epochs do not matter.
        scans: Scans of the recording, which every round labels.
        seconds: Time for the whole adaptation.
        spent: How much of it is over.

    Raises:
        UserError: The time is too short.
    """
    per_step, per_scan = _measure(options)
    labelling, left = scans * per_scan, max(0.0, seconds - spent)

    def least(rounds: int) -> float:
        # one more round of labels than of steps: the last one compares the result with the start
        return (rounds + 1) * labelling + rounds * FEWEST_STEPS * per_step

    if left < least(FEWEST_ROUNDS):
        raise UserError(
            f"{left / 60:.1f} minutes are left for training, but this machine needs at least "
            f"{math.ceil(least(FEWEST_ROUNDS) / 60)} ({per_step:.1f} s a step, {per_scan:.1f} s to label a scan): "
            f"pass --minutes {math.ceil((spent + least(FEWEST_ROUNDS)) / 60)} or more"
        )
    rounds = max(FEWEST_ROUNDS, min(ROUNDS, int(_LABELLING_SHARE * left / max(labelling, 1e-9)) - 1))
    while rounds > FEWEST_ROUNDS and left < least(rounds):
        rounds -= 1
    steps = int((left - (rounds + 1) * labelling) / per_step) // rounds
    return Plan(rounds, min(steps, MOST_STEPS // rounds))


def _measure(options: list[str]) -> tuple[float, float]:
    """Seconds of a training step, and of labelling a scan."""
    silence_library_warnings()
    with _quiet(logging.getLogger("lightning.pytorch")):  # the run itself says all that again
        cli = TrainCLI(options)
        cli.datamodule.setup()
        batches = islice(cli.datamodule.train_dataloader(), _MEASURED_STEPS + 1)
    module, device = cli.model, cli.trainer.strategy.root_device
    module.to(device).train()
    with mixed_precision(device):
        for number, batch in enumerate(batches):
            if number == 1:  # the first one allocates memory
                begin = time.perf_counter()
            loss = module.criterion(
                module(batch.channels.to(device), batch.mask.to(device)), batch.labels.long().to(device)
            )
            loss.backward()
            loss.item()
        per_step = (time.perf_counter() - begin) / _MEASURED_STEPS
        module.eval()
        store = cli.datamodule.train_store
        assert store is not None
        points = store.cached()[0].points
        label_scan(module, points, TURNED)
        begin = time.perf_counter()
        label_scan(module, points, TURNED)
    return per_step, time.perf_counter() - begin


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Suppress messages that are no warnings."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_settings(path: Path, trained: Trained, plan: Plan) -> list[str]:
    """Write the configuration of the run as YAML. Returns the command line of `sqsegv3 train` that reads it."""
    import yaml

    from sqsegv3_ros.files import write_atomically

    text = "# written by `sqsegv3 adapt`, which deletes the scans named here when it is done\n"
    write_atomically(path, (text + yaml.safe_dump(training_settings(trained, plan), sort_keys=False)).encode())
    return ["--config", str(path)]


def plan_dict(plan: Plan) -> dict[str, int]:
    """The plan in plain JSON types."""
    return asdict(plan)
