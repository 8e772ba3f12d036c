# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from programs import wait_until

from sqsegv3_ros.ros.latest_worker import LatestWorker


class Slow:
    """Processing that waits for `go` before it publishes."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.published: list[int] = []
        self.go = threading.Semaphore(0)
        self.worker: LatestWorker[int] = LatestWorker(self.process, "test")

    def process(self, item: int) -> None:
        self.begun.append(item)
        self.go.acquire()
        with self.worker.publish_guard() as allowed:
            if allowed:
                self.published.append(item)

    def finish(self) -> None:
        self.go.release(100)
        self.worker.close()


def test_the_newest_item_is_processed_and_replaced_ones_are_reported() -> None:
    slow = Slow()
    slow.worker.resume()
    assert slow.worker.put(1) is False
    wait_until(lambda: slow.begun == [1], 10)
    assert [slow.worker.put(i) for i in range(2, 6)] == [False, True, True, True]
    slow.go.release(2)
    wait_until(lambda: slow.published == [1, 5], 10)
    slow.finish()


def test_pausing_does_not_wait_for_the_processing_and_nothing_is_published_after_it() -> None:
    slow = Slow()
    slow.worker.resume()
    slow.worker.put(1)
    wait_until(lambda: slow.begun == [1], 10)
    slow.worker.put(2)
    slow.worker.pause()  # returns although 1 is being processed
    assert slow.worker.put(3) is False
    slow.worker.resume()
    slow.go.release()  # 1 was put before the pause: it is not published
    slow.worker.put(4)
    slow.go.release()
    wait_until(lambda: slow.published == [4], 10)
    assert slow.begun == [1, 4]
    slow.finish()


def test_closing_waits_for_the_processing_and_ends_the_thread() -> None:
    slow = Slow()
    slow.worker.resume()
    slow.worker.put(1)
    wait_until(lambda: slow.begun == [1], 10)
    closing = threading.Thread(target=slow.worker.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    slow.go.release()
    closing.join(5)
    assert not closing.is_alive() and slow.published == []
    assert "test" not in {thread.name for thread in threading.enumerate()}
