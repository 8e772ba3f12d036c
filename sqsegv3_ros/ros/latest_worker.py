"""Items come in at any pace; one thread works on the newest, one at a time. What is replaced or too late is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """A thread that calls `work` with the newest item, from construction to `close`. Closed for items at first.

    work: must not raise. It hands on what it has made inside `delivering`, and only if that says so.
    Raises RuntimeError where no thread can be started.
    """

    def __init__(self, work: Callable[[T], None], name: str) -> None:
        self._work = work
        self._wake = threading.Condition()
        self._delivery = threading.Lock()
        self._waiting: list[T] = []  # at most one
        self._open = False
        self._ended = False
        self._session = 0  # from `open` to `shut`
        self._session_of_item = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Take items from now on."""
        with self._wake:
            self._session += 1
            self._open = True

    def put(self, item: T) -> bool:
        """Offer an item. Returns whether an older one was waiting, which it replaces."""
        with self._wake:
            if not self._open:
                return False
            replaced = bool(self._waiting)
            self._waiting = [item]
            self._wake.notify()
        return replaced

    def shut(self) -> None:
        """Take no more items, and deliver nothing from now on. Waits for a delivery, but not for the work."""
        with self._delivery, self._wake:
            self._open = False
            self._waiting = []

    def close(self) -> None:
        """`shut`, and end the thread when it has done the work that it is at."""
        self.shut()
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()

    @contextmanager
    def delivering(self) -> Iterator[bool]:
        """For `work`: whether what was made of its item is still wanted. `shut` waits for the end of this context."""
        with self._delivery:
            yield self._open and self._session == self._session_of_item

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                item = self._waiting.pop()
                self._session_of_item = self._session
            self._work(item)
            del item  # a cloud is not kept until the next one comes
