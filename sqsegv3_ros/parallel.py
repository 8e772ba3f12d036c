"""A piece of work with many operations on rows or points goes in; a few threads do it, each a share of the rows.

torch lets its threads share every single operation, and wakes them for each. A scan takes hundreds of small ones, for
which waking costs more than the work, most of all where threads sleep in between because other programs want the cores.
Here each thread does all operations of its share, and torch uses one thread for each of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")

_local = threading.local()
_switching = threading.Lock()  # the two below
_within, _before = 0, True  # threads in `as_written`, and how it was before the first


@contextmanager
def threads_share(count: int) -> Iterator[None]:
    """Within it, `share` divides its work among so many threads, and torch uses one thread for an operation.

    Holds for the calling thread; afterwards torch uses as many as before.
    """
    before, count_before = torch.get_num_threads(), thread_count()
    torch.set_num_threads(1)
    _local.count = count
    try:
        yield
    finally:
        _local.count = count_before
        torch.set_num_threads(before)


@contextmanager
def torch_shares() -> Iterator[None]:
    """Within `threads_share`, for work that does not divide itself: torch divides operations, as it usually does."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, thread_count()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def as_written() -> Iterator[None]:
    """Within it, TorchScript runs networks as they are written.

    On a CPU its optimiser finds nothing in them, and takes seconds of the first scans and 150 MB for the 21. Of the two
    switches the documented one holds for the calling thread alone; the threads that a network starts ask the other one
    when they first come to a piece of it. That one is the whole process's, and goes back when no thread is within any
    more. Where a later torch has no such switch, they optimise in vain.
    """
    global _within, _before
    switch = getattr(torch._C, "_jit_set_profiling_mode", lambda on: on)
    with _switching:
        _within += 1
        if _within == 1:
            _before = switch(False)
    try:
        with torch.jit.optimized_execution(False):
            yield
    finally:
        with _switching:
            _within -= 1
            if _within == 0:
                switch(_before)


def share(work: Callable[[int, int], T], length: int, least: int = 1) -> list[T]:
    """work(begin, end) for pieces of range(length), side by side within `threads_share`, else at once; in order.

    least: rows that are worth a thread of their own. What `work` raises is raised here, when all pieces have ended.
    """
    count = max(1, min(thread_count(), length // least))
    bounds = [(length * i // count, length * (i + 1) // count) for i in range(count)]
    if count == 1:
        return [work(*bounds[0])]
    inference = torch.is_inference_mode_enabled()  # known to the calling thread alone

    def piece(begin: int, end: int) -> T:
        with torch.inference_mode(inference):
            return work(begin, end)

    tasks = [_pool(count - 1).submit(piece, *b) for b in bounds[1:]]
    try:
        first = work(*bounds[0])
    finally:
        failures = [task.exception() for task in tasks]  # waits for them
    for failure in failures:
        if failure is not None:
            raise failure
    return [first, *(task.result() for task in tasks)]


def thread_count() -> int:
    """How many threads share the calling thread's work: 1 outside `threads_share`."""
    return getattr(_local, "count", 1)


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="share")
