# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for ROS messages, to measure without ROS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PointField:
    """Stands in for sensor_msgs/PointField."""

    name: str = ""
    offset: int = 0
    datatype: int = 0
    count: int = 0


@dataclass
class PointCloud2:
    """Stands in for sensor_msgs/PointCloud2."""

    header: Any = None
    height: int = 0
    width: int = 0
    fields: list[PointField] = field(default_factory=list)
    is_bigendian: bool = False
    point_step: int = 0
    row_step: int = 0
    data: Any = None
    is_dense: bool = False
