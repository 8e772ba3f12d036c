# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes and what they share: the only room that imports rclpy."""

import os
import sys

try:
    import rclpy  # noqa: F401
except ImportError as error:
    distribution = os.environ.get("ROS_DISTRO")
    sourced = f"ROS 2 {distribution} is sourced" if distribution else "no ROS 2 is sourced"
    raise ImportError(
        f"rclpy cannot be imported by Python {sys.version_info.major}.{sys.version_info.minor} ({error}); {sourced}: "
        "source the distribution that was built for this Python, or pip install 'sqsegv3_ros[ros]'",
        name=error.name,
    ) from error
