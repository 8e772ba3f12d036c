# SPDX-License-Identifier: Apache-2.0
"""Errors whose message is written for the user: what was found, what was expected, what to do."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

# Python package -> Debian package, on every Ubuntu that a ROS distribution supports
_APT = {
    "PyYAML": "python3-yaml",
    "tqdm": "python3-tqdm",
    "Pillow": "python3-pil",
    "matplotlib": "python3-matplotlib",
    "Jinja2": "python3-jinja2",
    "numpy": "python3-numpy",
}
# whose Ubuntu has no torch, or one older than 2.2
_WITHOUT_APT_TORCH = ("humble", "iron", "jazzy", "kilted")


class UserError(Exception):
    """The input, a file or a setting cannot be used. The command line prints the message and exits with 2."""


class OperationError(Exception):
    """Right use, but the work did not succeed. The command line prints the message and exits with 1."""


def install_command(package: str, requirement: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """Return the command that installs a Python package into the running Python.

    Args:
        package: Name on PyPI.
        requirement: What pip is to install, if that is not the package alone.
        environment: Environment variables; ROS_DISTRO is the ROS distribution, if one is sourced.

    Returns:
        An `apt install` if a ROS distribution is sourced and its Ubuntu has the package, otherwise a `pip install`.
    """
    distribution, in_venv = environment.get("ROS_DISTRO", ""), sys.prefix != sys.base_prefix
    if distribution and not in_venv:
        if package in _APT:
            return f"sudo apt install {_APT[package]}"
        if package == "torch" and distribution not in _WITHOUT_APT_TORCH:
            return "sudo apt install python3-torch"
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"  # PEP 668: pip refuses without the option
    option = "--break-system-packages " if marker.is_file() and not in_venv else ""
    return f"pip install {option}{shlex.quote(requirement or package)}"


def missing_package(package: str, purpose: str, extra: str = "") -> UserError:
    """Return the error for a package that is not installed, with the command that installs it.

    Args:
        package: Name on PyPI.
        purpose: What needs the package, as the subject of a sentence.
        extra: The extra of this package that brings it, with what else serves the same purpose.
    """
    command = install_command(package, f"sqsegv3_ros[{extra}]" if extra else "")
    return UserError(f"{purpose} needs the Python package '{package}': {command}")


def missing_torch(error: ModuleNotFoundError, purpose: str) -> UserError:
    """Return the error for a missing torch. Any other module's ModuleNotFoundError is raised again."""
    if error.name != "torch":
        raise error
    return missing_package("torch", purpose)


def last_line(error: BaseException) -> str:
    """The last line of an error's message, which holds the reason in torch's and OpenVINO's long ones."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].replace("std::bad_alloc", "out of memory (std::bad_alloc)")


def require(valid: bool, name: str, expected: str, found: object) -> None:
    """Raise UserError unless a setting is valid."""
    if not valid:
        raise UserError(f"{name} must be {expected}, found {found!r}")
