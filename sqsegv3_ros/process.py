# SPDX-License-Identifier: Apache-2.0
"""Process settings: faster torch on a CPU, and the Fast DDS profile for large clouds."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

from sqsegv3_ros.files import share_folders

SWITCH = "SQSEGV3_PROCESS_SETTINGS"

# glibc's <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1

_OPENMP = "OMP_WAIT_POLICY"
_set_here = False


def prepare(*, training: bool = False) -> None:
    """Apply the settings for torch, before it is imported, unless SQSEGV3_PROCESS_SETTINGS=0.

    OpenMP's threads sleep between operations instead of spinning, unless OMP_WAIT_POLICY says otherwise: on cores that
    other processes want too, spinning makes small layers several times slower.

    Args:
        training: Also keep freed memory, see `keep_freed_memory`.
    """
    global _set_here
    if os.environ.get(SWITCH) == "0":
        return
    if _OPENMP not in os.environ:
        os.environ[_OPENMP] = "passive"
        _set_here = True
    if training:
        keep_freed_memory()


def untouched_environment() -> dict[str, str]:
    """The environment as it was before `prepare`, for child processes that decide for themselves."""
    return {name: value for name, value in os.environ.items() if not (_set_here and name == _OPENMP)}


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next allocation instead of returning it to the kernel.

    In training every large temporary tensor is otherwise mapped, faulted in page by page and unmapped again: 30 to 40 %
    of the CPU time. To be called before the first tensor is made.

    Returns:
        Whether it took effect; False, and harmless, if the C library is not glibc.
    """
    # glibc refuses a mapping threshold above half of its heap's maximum; 1 GiB is accepted on 64-bit machines
    return _mallopt(_M_MMAP_THRESHOLD, 1 << 30) and _mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def _mallopt(parameter: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(parameter, value))


PROFILE_SWITCH = "SQSEGV3_FASTDDS_PROFILE"
# Kilted and later read the first, Jazzy and earlier the second
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_READ_THE_SECOND = ("humble", "iron", "jazzy")


def use_fastdds_profile(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Make a process publish with the package's Fast DDS profile, unless one is set or SQSEGV3_FASTDDS_PROFILE=0.

    By default a participant has 512 KiB of shared memory, and best-effort subscribers lose almost every cloud of
    megabytes; with the profile it has 64 MiB. To be called before rclpy.init. Other middlewares ignore it.

    Returns:
        Whether the profile is used.
    """
    if environment.get(PROFILE_SWITCH) == "0" or any(environment.get(name) for name in PROFILE_VARIABLES):
        return False
    candidates = [folder / "config" / "fastdds.xml" for folder in share_folders()]
    profile = next((path for path in candidates if path.is_file()), None)
    if profile is None:
        return False
    environment.update(dict.fromkeys(_variables(environment.get("ROS_DISTRO", "")), str(profile)))
    return True


def _variables(distribution: str) -> tuple[str, ...]:
    """The variables that this ROS distribution reads, as newer ones warn about the second; both if it is unknown."""
    if distribution:
        return PROFILE_VARIABLES[1:] if distribution in _READ_THE_SECOND else PROFILE_VARIABLES[:1]
    try:
        major = int(version("ros-rmw-fastrtps-cpp").partition(".")[0])  # ROS from pip, without ROS_DISTRO
    except (PackageNotFoundError, ValueError):
        return PROFILE_VARIABLES
    return PROFILE_VARIABLES[:1] if major >= 9 else PROFILE_VARIABLES[1:]  # Jazzy has 8, Kilted 9
