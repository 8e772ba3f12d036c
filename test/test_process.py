# SPDX-License-Identifier: Apache-2.0
"""Settings of the process: what they do to its memory is looked at in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sqsegv3_ros import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is set on Linux only")

_PROGRAM = """
import sys
import numpy as np
from sqsegv3_ros import process

process.prepare(training=sys.argv[1] == "training")
values = int(sys.argv[2])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

np.ones(values)  # 20 MB, once freed: glibc by itself keeps pieces of that size from then on
pieces = [np.ones(values) for _ in range(12_500_000 // values)]
small = [np.ones(1000) for _ in range(1000)]  # above them on the heap: it cannot shrink
full = resident()
del pieces
print(full - resident())
"""


def freed_mb(kind: str, values: int = 2_500_000, **environment: str) -> float:
    program = [sys.executable, "-c", _PROGRAM, kind, str(values)]
    # a mapped piece of memory is not resident before it is written to, and np.ones writes
    return float(subprocess.check_output(program, env={**os.environ, **environment}, text=True))


LARGE = 5_000_000  # values, 40 MB: glibc by itself maps and returns pieces of that size


def test_freed_tensors_are_kept_where_a_network_learns() -> None:
    if not process.keep_freed_memory():
        pytest.skip("the C library has no mallopt")
    assert freed_mb("training", LARGE) < 10
    assert freed_mb("inference", LARGE) > 50


def test_the_settings_can_be_switched_off() -> None:
    assert freed_mb("training", LARGE, SQSEGV3_PROCESS_SETTINGS="0") > 50
