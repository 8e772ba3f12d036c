# SPDX-License-Identifier: Apache-2.0
"""The training run: command line and YAML settings, output folder, resuming, errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, capture_parser
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.training.callbacks import (
    BEST_NAME,
    LAST_NAME,
    AtomicCheckpointIO,
    LastCheckpoint,
    RunSettings,
    run_callbacks,
)
from sqsegv3_ros.training.checkpoint import read_checkpoint
from sqsegv3_ros.training.data import ScanData
from sqsegv3_ros.training.module import BEST_METRIC, SegmentationModule

CONFIG_NAME = "config.yaml"
# how Gloo (the first two) and NCCL say that another process is gone
_CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


class _NoSetting(argparse.Action):
    """An option that is no setting: neither in the configuration nor in the files that it is written to."""

    def __init__(self, option_strings: Sequence[str], **kwargs: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=kwargs["help"])

    def __call__(self, *_: Any) -> None:
        """Do nothing: whoever calls `train` has the option."""


class TrainCLI(LightningCLI):
    """Lightning's command line with this package's defaults; `--print_config` shows every setting."""

    trainer: Trainer
    model: SegmentationModule
    datamodule: ScanData

    def __init__(self, options: Sequence[str]):
        super().__init__(
            SegmentationModule,
            ScanData,
            args=list(options),
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "use_distributed_sampler": False,  # the data module hands each process its share
                "num_sanity_val_steps": 1,
                "enable_model_summary": False,
                "log_every_n_steps": 10,
            },
            parser_kwargs={"prog": "sqsegv3 train", "description": "Train a SqueezeSegV3.", "exit_on_error": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's settings and link the data's projection, labels and seed to the model's."""
        parser.add_argument("--run", type=RunSettings, default=RunSettings())
        parser.add_argument("--debug", action=_NoSetting, help="Print the traceback of an error.")
        parser.link_arguments("model.projection", "data.projection", apply_on="instantiate")
        parser.link_arguments("model.labels", "data.labels")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer with the callbacks and the logger of the run."""
        run = self.settings
        given = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [*(given.get("callbacks") or []), *run_callbacks(run)]
        if given.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=run.folder, name="", version="tensorboard")
        kwargs["plugins"] = [*(given.get("plugins") or []), AtomicCheckpointIO()]
        kwargs["default_root_dir"] = run.folder
        trainer = super().instantiate_trainer(**kwargs)
        if given.get("sync_batchnorm") and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
            raise UserError(
                "trainer.sync_batchnorm needs GPUs, but the processes run on CPUs; add --trainer.sync_batchnorm false"
            )
        return trainer

    @property
    def settings(self) -> RunSettings:
        """Settings of the run."""
        settings = self._get(self.config_init, "run")
        assert isinstance(settings, RunSettings)
        return settings

    @property
    def last(self) -> LastCheckpoint:
        """Callback that writes last.ckpt and handles Ctrl-C."""
        return next(c for c in self.trainer.callbacks if isinstance(c, LastCheckpoint))  # type: ignore[attr-defined]


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `sqsegv3 train`, with every setting as an option."""
    silence_library_warnings()
    return capture_parser(lambda: TrainCLI([]))


def train(options: Sequence[str]) -> int:
    """Run `sqsegv3 train`.

    Args:
        options: Its command line, parsed by jsonargparse.

    Returns:
        The exit code.

    Raises:
        UserError: Settings or data cannot be used.
        OperationError: Training failed.
    """
    cli = fit(options)
    if not cli.trainer.is_global_zero:
        return 0  # Lightning kills the first process, which reports, if another one fails
    last = cli.last
    if last.stopped_at is not None:
        print(
            f"stopped after step {last.stopped_at}; saved {last.path}. Resume with: --run.resume true", file=sys.stderr
        )
        return 130
    best = cli.settings.folder / f"{BEST_NAME}.ckpt"
    if best.is_file():
        metrics = read_checkpoint(best)[0]["training"]["metrics"]
        print(f"done; best mIoU {100 * metrics.get(BEST_METRIC, 0.0):.2f} % in {best}")
    elif last.path.is_file():
        print(f"done; no validation selected a {best.name}; the weights are in {last.path}")
    else:
        print("done; nothing was trained")
    return 0


def fit(options: Sequence[str], resume: str = "--run.resume true") -> TrainCLI:
    """Train until the run is finished, or stopped by Ctrl-C or SIGTERM.

    Args:
        options: Command line of `sqsegv3 train`.
        resume: What resumes the run, for error messages.

    Returns:
        The run; `last.stopped_at` is the step after which it was stopped.

    Raises:
        UserError: Settings or data cannot be used.
        OperationError: Training failed.
    """
    silence_library_warnings()
    try:
        cli = TrainCLI(options)
        checkpoint = _prepare_output(cli)
        cli.datamodule.setup()
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except ArgumentError as error:  # without the usage, which has 200 lines
        raise UserError(f"{error}\n(sqsegv3 train --help lists every setting)") from error
    except SystemExit:
        if "cli" not in locals() or cli.last.stopped_at is None:
            raise
    except MisconfigurationException as error:
        raise UserError(f"invalid trainer settings: {error}") from error
    except (OSError, RuntimeError, UserError) as error:
        raise _as_user_error(error, resume) from error
    return cli


def _prepare_output(cli: TrainCLI) -> Path | None:
    """Return the checkpoint to resume; for a new run, create its folder and write the settings into it."""
    output = cli.settings.folder
    last = output / f"{LAST_NAME}.ckpt"
    if output.is_file():
        raise UserError(f"--run.output {output} is a file; choose a folder")
    if cli.settings.resume:
        if not last.is_file():
            raise UserError(f"nothing to resume: there is no {last}")
        read_checkpoint(last)
        return last
    if last.exists():
        raise UserError(
            f"{output} already holds a run ({last.name}); resume it with --run.resume true or choose another "
            "--run.output"
        )
    if cli.trainer.is_global_zero:
        output.mkdir(parents=True, exist_ok=True)
        (output / CONFIG_NAME).write_text(cli.parser.dump(cli.config))
    return None


def _as_user_error(error: Exception, resume: str) -> Exception:
    """Return an error with a message for the user if the cause is known, else the error itself."""
    text = str(error)
    if "No space left" in text:
        return OperationError(f"{text}. Earlier checkpoints are intact: free space, then resume with {resume}")
    if isinstance(error, UserError):  # a worker's error has its traceback before the message
        return UserError(text.rsplit("UserError: ", 1)[-1].strip())
    if "DataLoader worker" in text or isinstance(error, ConnectionError):
        return OperationError(
            "a process that prepares training data was killed, probably out of memory; resume with "
            f"{resume} and fewer --data.workers or a smaller --data.cache_gb ({text.splitlines()[0]})"
        )
    if isinstance(error, OSError):
        return OperationError(f"{error.filename or 'file'}: {error.strerror or error}")
    if any(lost in text for lost in _CONNECTION_LOST):
        return OperationError(
            f"another training process ended, with its own message; remove the cause, then resume with {resume} "
            f"({text.splitlines()[0]})"
        )
    return error


def silence_library_warnings() -> None:
    """Suppress library messages that a user of this command cannot act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: (
            "litlogger" not in record.getMessage().lower()
            and not any(mark in record.getMessage() for mark in ("💡", "`weights_only` was not set"))
        )
    )
    for message in (
        "LightningCLI's args parameter",
        "does not have many workers",
        "exists and is not empty",
        "isinstance.treespec, LeafSpec",
        "smaller than the logging interval",
        "It is recommended to use `self.log",  # the logged values are the same in all processes
        "could not find the monitored key",  # after resuming at the end of a validated epoch
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
