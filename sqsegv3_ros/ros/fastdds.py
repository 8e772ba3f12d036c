"""The Fast DDS profile for processes that publish big clouds; nothing comes in, the environment's variables go out."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

from sqsegv3_ros.files import share_folders

# Kilted and later read the first, Jazzy and earlier the second
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_READ_THE_SECOND = ("humble", "iron", "jazzy")


def use_profile(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Have this process publish with the package's profile, unless one is set already. Returns whether it does now.

    By default a participant has 512 KiB of shared memory, and best-effort subscribers lose almost every cloud of
    megabytes; with the profile it has 64 MiB. To be called before rclpy.init. Other middlewares ignore it.
    """
    if any(environment.get(name) for name in PROFILE_VARIABLES):
        return False
    candidates = [folder / "config" / "fastdds.xml" for folder in share_folders()]
    profile = next((path for path in candidates if path.is_file()), None)
    if profile is None:
        return False
    environment.update(dict.fromkeys(_variables(environment.get("ROS_DISTRO", "")), str(profile)))
    return True


def _variables(distribution: str) -> tuple[str, ...]:
    """Those that this ROS reads, as newer ones warn of the second; both where that is not known."""
    if distribution:
        return PROFILE_VARIABLES[1:] if distribution in _READ_THE_SECOND else PROFILE_VARIABLES[:1]
    try:
        major = int(version("ros-fastdds").partition(".")[0])  # ROS from pip, without ROS_DISTRO
    except (PackageNotFoundError, ValueError):
        return PROFILE_VARIABLES
    return PROFILE_VARIABLES[:1] if major >= 3 else PROFILE_VARIABLES[1:]
