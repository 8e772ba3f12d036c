# SPDX-License-Identifier: Apache-2.0
"""Point layouts of sensors and drivers, as numpy types."""

from __future__ import annotations

from sqsegv3_ros.data.ros2_messages import POINT, point_type

LAYOUTS = {
    16: POINT,
    22: point_type(22, ring=("<u2", 16), time=("<f4", 18)),
    32: point_type(32, intensity=("<f4", 16), ring=("<u2", 20), time=("<f4", 24)),
    48: point_type(48, intensity=("<f4", 16), t=("<u4", 20), reflectivity=("<u2", 24), range=("<u4", 32)),
}
"""By bytes of a point, as published by KITTI players, Velodyne, PCL (padded) and Ouster."""
