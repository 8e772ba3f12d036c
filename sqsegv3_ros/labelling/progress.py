# SPDX-License-Identifier: Apache-2.0
"""Progress of a labelling run: share of bytes done, rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from sqsegv3_ros.labelling.manifest import DONE, Record
from sqsegv3_ros.labelling.plan import Job

TERMINAL_PERIOD_S = 0.1
LOG_PERIOD_S = 30.0


class Progress:
    """A line on standard error, by tqdm if it is installed: live on a terminal, twice a minute in a log file.

    Args:
        jobs: All jobs of the run.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._sizes = {job.name: job.size for job in jobs}
        self._finished, self._not_labelled, self._clouds, self._bytes = 0, 0, 0, 0
        self._clouds_within, self._bytes_within = 0, 0.0
        self._begin = time.monotonic()
        self._bar: Any = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        period_s = TERMINAL_PERIOD_S if sys.stderr.isatty() else LOG_PERIOD_S
        total = sum(self._sizes.values())
        self._bar = tqdm(
            total=total, unit="B", unit_scale=True, mininterval=period_s, delay=period_s, dynamic_ncols=True
        )

    def advance(self, size: float) -> None:
        """Count a labelled cloud, which accounts for this many bytes of the input."""
        self._clouds_within += 1
        self._bytes_within += size
        self._show()

    def finish(self, record: Record) -> None:
        """Record the end of a job."""
        self._clouds_within, self._bytes_within = 0, 0.0
        self._finished += 1
        self._not_labelled += record.status != DONE
        self._clouds += record.clouds
        self._bytes += self._sizes[record.name]
        self._show()

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print a line without breaking the progress."""
        if self._bar is not None and sys.stderr.isatty():
            self._bar.write(f"sqsegv3 label: {text}", file=sys.stderr)
        else:
            print(f"sqsegv3 label: {text}", file=sys.stderr)

    def _show(self) -> None:
        if self._bar is None:
            return
        rate = (self._clouds + self._clouds_within) / (time.monotonic() - self._begin)
        failed = f", {self._not_labelled} not labelled" if self._not_labelled else ""
        text = f"{self._finished}/{len(self._sizes)} inputs, {rate:.1f} clouds/s{failed}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._bytes + self._bytes_within - self._bar.n)
