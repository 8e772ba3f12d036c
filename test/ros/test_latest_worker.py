from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqsegv3_ros.ros.latest_worker import Worker


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Slow:
    """Work that takes until it is let go; what is still wanted then is delivered."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.delivered: list[int] = []
        self.go = threading.Semaphore(0)
        self.worker: Worker[int] = Worker(self.work, "test")

    def work(self, item: int) -> None:
        self.begun.append(item)
        self.go.acquire()
        with self.worker.delivering() as wanted:
            if wanted:
                self.delivered.append(item)

    def finish(self) -> None:
        self.go.release(100)
        self.worker.close()


def test_the_newest_item_wins_and_every_replaced_one_is_told() -> None:
    slow = Slow()
    slow.worker.open()
    assert slow.worker.put(1) is False
    wait_until(lambda: slow.begun == [1])
    assert [slow.worker.put(i) for i in range(2, 6)] == [False, True, True, True]
    slow.go.release(2)
    wait_until(lambda: slow.delivered == [1, 5])
    slow.finish()


def test_shutting_does_not_wait_for_the_work_and_nothing_is_delivered_after_it() -> None:
    slow = Slow()
    slow.worker.open()
    slow.worker.put(1)
    wait_until(lambda: slow.begun == [1])
    slow.worker.put(2)
    slow.worker.shut()  # returns, though 1 is in work
    assert slow.worker.put(3) is False
    slow.worker.open()
    slow.go.release()  # 1 was of the session before: it is not delivered, though the worker is open again
    slow.worker.put(4)
    slow.go.release()
    wait_until(lambda: slow.delivered == [4])
    assert slow.begun == [1, 4]
    slow.finish()


def test_closing_waits_for_the_work_and_ends_the_thread() -> None:
    slow = Slow()
    slow.worker.open()
    slow.worker.put(1)
    wait_until(lambda: slow.begun == [1])
    closing = threading.Thread(target=slow.worker.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    slow.go.release()
    closing.join(5)
    assert not closing.is_alive() and slow.delivered == []
    assert "test" not in {thread.name for thread in threading.enumerate()}
