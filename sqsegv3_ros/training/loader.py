# SPDX-License-Identifier: Apache-2.0
"""Loader of training batches: shares of several processes, resuming within an epoch, workers that outlive Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 60
"""Time for the training process to finish its step after SIGTERM."""


class EpochSampler(Sampler[int]):
    """The item numbers of an epoch for one of several processes: every `world_size`-th from `rank` on.

    Args:
        per_epoch: Items of an epoch, over all processes.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, per_epoch: int, rank: int = 0, world_size: int = 1):
        self.per_epoch = per_epoch - per_epoch % world_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch // self.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.per_epoch + self.rank
        items = range(first, (self.epoch + 1) * self.per_epoch, self.world_size)
        skip, self.skip = self.skip, 0
        return iter(items[skip:])


class ResumableLoader(DataLoader):
    """A loader that can resume in the middle of an epoch; its state is the number of batches delivered."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        self._delivered = self._resume_at % len(self)
        self._resume_at = 0
        self.sampler.skip = self._delivered * self.batch_size
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until a new worker can deal with them
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for batch in batches:
            self._delivered += 1
            yield batch

    _delivered = 0
    _resume_at = 0

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, for Lightning's checkpoint."""
        return {"batches": self._delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the batch at which the next iteration begins."""
        self._resume_at = state["batches"]


def outlive_signals(worker: int) -> None:
    """Keep a worker alive until its training process has stopped: Ctrl-C and a scheduler's SIGTERM reach both.

    Args:
        worker: Number of the worker, not used.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
