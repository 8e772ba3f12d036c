# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks of a run: weight averaging, checkpoints, history file, clean stop."""

from __future__ import annotations

import io
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from sqsegv3_ros.errors import require
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.training.module import BEST_METRIC, SegmentationModule

BEST_NAME, LAST_NAME, HISTORY_NAME = "best", "last", "history.jsonl"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, so that no failure leaves a truncated file.

    Lightning moves them from the folder for temporary files, which is not atomic across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: The disk is full or cannot be written to.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getvalue())


class WeightEma(WeightAveraging):
    """Exponential moving average of weights and BatchNorm statistics, validated and saved instead of the weights.

    Args:
        decay: Share of the old average kept at each step; smaller in the first steps, so that the random initial
            weights are soon forgotten.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__(avg_fn=lambda mean, new, count: ema_update(mean, new, count, decay))

    @property
    def average(self) -> SegmentationModule:
        """The module with the averaged weights, during training."""
        assert self._average_model is not None and isinstance(self._average_model.module, SegmentationModule)
        return self._average_model.module


def ema_update(mean: Tensor, new: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """Update an exponential moving average.

    Args:
        mean: The average.
        new: The new value.
        count: Number of earlier updates, which limits the decay to (1 + count) / (10 + count).
        decay: Share of the average to keep.

    Returns:
        The new average; `new` itself for integers, which are counters.
    """
    steps = float(count)
    keep = min(decay, (1.0 + steps) / (10.0 + steps))
    return mean + (new - mean) * (1.0 - keep) if mean.is_floating_point() else new


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after every validation and epoch, at an interval between them, and at the end of training.

    Ctrl-C and SIGTERM end training after the current step and a checkpoint; a second one ends it at once.

    Args:
        path: Checkpoint to write.
        minutes: Interval between validations.
    """

    def __init__(self, path: Path, minutes: float):
        self.path = path
        self.interval = 60.0 * minutes
        self.stop_requested = False
        self.stopped_at: int | None = None
        self._saved = time.monotonic()
        self._saved_step = -1
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers, after Lightning's."""
        self._saved = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._request_stop)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the interval has passed, unless a validation follows, which a run resumed before it would leave out.

        Training that ends within an epoch is saved here, because Lightning would later count the epoch as finished.
        """
        if not _validation_follows(trainer, batch_idx):
            ends = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
            late = time.monotonic() - self._saved > self.interval
            self._save(trainer, due=late or (ends and not trainer.is_last_batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every validation."""
        if not trainer.sanity_checking:
            self._save(trainer, due=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch without validation."""
        self._save(trainer, due=trainer.is_last_batch and trainer.global_step != self._saved_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers, before Lightning restores those that it replaced."""
        self._restore_handlers()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _save(self, trainer: Trainer, due: bool) -> None:
        stop = self.stop_requested
        if trainer.world_size > 1:  # all processes save together, but their clocks and signals differ
            due, stop = (trainer.strategy.reduce_boolean_decision(flag, all=False) for flag in (due, stop))
        if due or stop:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved, self._saved_step = time.monotonic(), trainer.global_step
        if stop:
            self.stopped_at = trainer.global_step
            raise KeyboardInterrupt


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch or 1
    return every is not None and (batch_idx + 1) % every == 0 and (trainer.current_epoch + 1) % epochs == 0


class History(Callback):
    """Prints a line and appends a JSON line to a file after every validation.

    Args:
        path: The file. A resumed run keeps its lines, except those of steps that it repeats.
    """

    def __init__(self, path: Path):
        self.path = path
        self._losses: list[float] = []
        self._started = time.monotonic()
        self._spent = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the duration of the run and the losses since the last validation."""
        return {"seconds": self._seconds(), "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the duration and the losses."""
        self._spent = state_dict["seconds"]
        self._losses = list(state_dict["losses"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines of steps that a resumed run repeats."""
        self._started = time.monotonic()
        if trainer.is_global_zero and self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= trainer.global_step]
            self.path.write_text("".join(line + "\n" for line in lines))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self._losses.append(float(loss))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and append the line of this validation."""
        if trainer.sanity_checking or not isinstance(pl_module, SegmentationModule):
            return
        loss = sum(self._losses) / max(len(self._losses), 1)
        self._losses = []
        if not trainer.is_global_zero:
            return
        scores = pl_module.scores
        entry = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": round(self._seconds(), 1)}
        entry |= {"train/loss": round(loss, 5), **{k: round(v, 5) for k, v in scores.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(
            f"step {trainer.global_step}, epoch {trainer.current_epoch}, {self._seconds() / 60:.1f} min: "
            f"loss {loss:.3f}, validation loss {scores['val/loss']:.3f}, "
            f"mIoU {100 * scores[BEST_METRIC]:.2f} %, accuracy {100 * scores['val/accuracy']:.2f} %",
            flush=True,
        )

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._started


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # truncated by a crash
        return 2**62


@dataclass(frozen=True)
class RunSettings:
    """Output folder and checkpoints of a run.

    Attributes:
        output: Folder for best.ckpt, last.ckpt, history.jsonl, config.yaml and TensorBoard's files.
        resume: Resume from last.ckpt of that folder.
        checkpoint_minutes: Interval of last.ckpt, which is also written after every validation and epoch.
        ema_decay: Decay of an exponential moving average of the weights, which is validated and saved; 0 disables it.
        early_stop_patience: Validations without a better mIoU after which training ends; 0 disables it.
    """

    output: str = "runs/sqsegv3"
    resume: bool = False
    checkpoint_minutes: float = 10.0
    ema_decay: float = 0.0
    early_stop_patience: int = 0

    def __post_init__(self) -> None:
        require(self.checkpoint_minutes > 0, "run: checkpoint_minutes", "above 0", self.checkpoint_minutes)
        require(0 <= self.ema_decay < 1, "run: ema_decay", "in [0, 1)", self.ema_decay)
        require(self.early_stop_patience >= 0, "run: early_stop_patience", "0 or more", self.early_stop_patience)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output).expanduser()


def run_callbacks(run: RunSettings) -> list[Callback]:
    """Make the callbacks of a run, in the order in which they must run."""
    callbacks: list[Callback] = [WeightEma(run.ema_decay)] if run.ema_decay else []
    if run.early_stop_patience:
        patience = run.early_stop_patience
        callbacks.append(EarlyStopping(BEST_METRIC, mode="max", patience=patience, check_on_train_epoch_end=False))
    best = ModelCheckpoint(
        dirpath=run.folder,
        filename=BEST_NAME,
        monitor=BEST_METRIC,
        mode="max",
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=False,  # before last.ckpt, which stores the score of the best one
    )
    last = LastCheckpoint(run.folder / f"{LAST_NAME}.ckpt", run.checkpoint_minutes)
    return [*callbacks, History(run.folder / HISTORY_NAME), best, last]
