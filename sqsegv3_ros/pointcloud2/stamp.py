# SPDX-License-Identifier: Apache-2.0
"""The stamp of a message."""

from __future__ import annotations

import struct
from typing import Any


def stamp_ns(header: Any) -> int:
    """Return the stamp of a std_msgs/Header, nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def read_stamp_ns(cdr: bytes) -> int:
    """Read the stamp, nanoseconds, of a serialized message that begins with a header."""
    order = "<" if cdr[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", cdr, 4)
    return int(seconds) * 10**9 + int(nanoseconds)


def format_stamp(stamp_ns: int) -> str:
    """Format a stamp in nanoseconds as seconds, '1600000000.100000000'."""
    return f"{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}"
