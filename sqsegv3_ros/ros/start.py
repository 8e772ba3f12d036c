# SPDX-License-Identifier: Apache-2.0
"""Start of ROS in a process of the package's own nodes."""

from __future__ import annotations

import re
from typing import Any

import rclpy

from sqsegv3_ros.errors import UserError


def start_ros(arguments: list[str] | None, **options: Any) -> None:
    """Call rclpy.init with the command line.

    Args:
        arguments: Command line; None for that of the process.
        options: Further arguments of rclpy.init.

    Raises:
        UserError: A parameter file, an argument after --ros-args or a variable of the environment cannot be used.
    """
    try:
        rclpy.init(args=arguments, **options)
    except Exception as error:  # RCLError, UnknownROSArgsError, UnicodeEncodeError
        reason = re.sub(r",\s+at \S+:\d+|failed to initialize rcl: ", "", str(error)).strip()
        raise UserError(f"cannot start with these ROS arguments: {reason}") from error
