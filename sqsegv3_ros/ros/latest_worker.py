# SPDX-License-Identifier: Apache-2.0
"""A worker thread that processes only the newest item."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Process the newest item on a thread of its own, one item at a time.

    A newer item replaces one that still waits, so no queue builds up. The worker starts paused. The thread runs from
    construction to `close`.

    Args:
        process: Called with each item. It must not raise, and must publish its result inside `publish_guard`.
        name: Name of the thread.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(self, process: Callable[[T], None], name: str) -> None:
        self._process = process
        self._condition = threading.Condition()
        self._publishing = threading.Lock()
        self._waiting: list[T] = []  # at most one
        self._accepting = False
        self._closed = False
        self._session = 0  # counts calls of `resume`
        self._session_of_item = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Accept items from now on."""
        with self._condition:
            self._session += 1
            self._accepting = True

    def put(self, item: T) -> bool:
        """Offer an item; a paused worker ignores it.

        Returns:
            Whether the item replaced an older one that was still waiting.
        """
        with self._condition:
            if not self._accepting:
                return False
            replaced = bool(self._waiting)
            self._waiting = [item]
            self._condition.notify()
        return replaced

    def pause(self) -> None:
        """Accept no more items and publish nothing from now on.

        Waits for a publication in progress, but not for the processing of an item.
        """
        with self._publishing, self._condition:
            self._accepting = False
            self._waiting = []

    def close(self) -> None:
        """Pause, then end the thread once it has processed its current item."""
        self.pause()
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    @contextmanager
    def publish_guard(self) -> Iterator[bool]:
        """Keep `pause` waiting while the result of the current item is published.

        Yields:
            Whether to publish: False if the worker has been paused since it received the item.
        """
        with self._publishing:
            yield self._accepting and self._session == self._session_of_item

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                item = self._waiting.pop()
                self._session_of_item = self._session
            self._process(item)
            del item  # do not keep a cloud in memory until the next one arrives
