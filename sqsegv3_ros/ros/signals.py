# SPDX-License-Identifier: Apache-2.0
"""Handling of SIGINT and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, instead of ending the process, while the context lasts."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def treat_sigint_as_sigterm() -> None:
    """Send SIGTERM on Ctrl-C: a KeyboardInterrupt inside C++ code of torch or rclpy may abort the process."""

    def on_sigint(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored by jobs in the background
        signal.signal(signal.SIGINT, on_sigint)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
