# SPDX-License-Identifier: Apache-2.0
"""The stamp of a message."""

from __future__ import annotations

from typing import Any


def stamp_ns(header: Any) -> int:
    """Return the stamp of a std_msgs/Header, nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
