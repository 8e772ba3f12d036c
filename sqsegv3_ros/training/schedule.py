# SPDX-License-Identifier: Apache-2.0
"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from sqsegv3_ros.errors import UserError, require

METHODS = ("sgd", "adamw")
SCHEDULES = ("release", "one-cycle", "constant")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule. The defaults are those of the release's SqueezeSegV3-21.

    Attributes:
        method: 'sgd' (release: momentum, weight decay on every parameter) or 'adamw' (weight decay on kernels only).
        schedule: 'release' (linear warm-up over warmup_epochs, then decay_per_epoch, both by step), 'one-cycle' (from
            lr / 25 up to lr within warmup_share of all steps, then by a cosine down to almost 0) or 'constant'.
        lr: Highest learning rate (release: 0.001 for the 21, 0.005 for the 53; paper: 0.01 and 0.005).
        momentum: Momentum of 'sgd'.
        weight_decay: Weight decay.
        warmup_epochs: Length of the warm-up of 'release' in epochs.
        decay_per_epoch: Factor of the learning rate per epoch in 'release'.
        warmup_share: Share of all steps in which 'one-cycle' rises, 0..1.
    """

    method: str = "sgd"
    schedule: str = "release"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    decay_per_epoch: float = 0.995
    warmup_share: float = 0.2

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("method", self.method in METHODS, f"one of {', '.join(METHODS)}"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("lr", self.lr > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warmup_epochs", self.warmup_epochs >= 0, "0 or more"),
            ("decay_per_epoch", 0 < self.decay_per_epoch <= 1, "in (0, 1]"),
            ("warmup_share", 0 < self.warmup_share < 1, "between 0 and 1"),
        ):
            require(valid, f"optimizer: {name}", expected, getattr(self, name))


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimiser of a module's trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.method == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    # biases and BatchNorm have one dimension: decaying them only changes scales that the next layer undoes
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps_per_epoch: int, total_steps: float
) -> LRScheduler | None:
    """Make the schedule, to be advanced after every optimiser step.

    Args:
        optimizer: The optimiser.
        config: Settings.
        steps_per_epoch: Optimiser steps per epoch.
        total_steps: Optimiser steps of the whole run; infinite if not known.

    Returns:
        The schedule; None for 'constant'.

    Raises:
        UserError: The number of steps of a one-cycle schedule is not known.
    """
    if config.schedule == "constant":
        return None
    if config.schedule == "release":
        warmup = round(config.warmup_epochs * steps_per_epoch)
        decay = config.decay_per_epoch ** (1.0 / steps_per_epoch)
        return LambdaLR(optimizer, lambda step: release_factor(step, warmup, decay))
    if not 0 < total_steps < float("inf"):
        raise UserError(
            "optimizer: the one-cycle schedule needs the number of steps: set trainer.max_steps or trainer.max_epochs"
        )
    return OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=int(total_steps),
        pct_start=config.warmup_share,
        cycle_momentum=config.method == "sgd",
        base_momentum=min(0.85, config.momentum),
        max_momentum=config.momentum,
    )


def release_factor(step: int, warmup_steps: int, decay_per_step: float) -> float:
    """Return the share of the highest learning rate that the release uses at a 0-based step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return decay_per_step ** (step - warmup_steps)
