# SPDX-License-Identifier: Apache-2.0
"""The package built and installed into a scratch folder, as a user does it with pip or colcon, for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

Finished = subprocess.CompletedProcess[str]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "install", "log", "dist", "demo", "lightning_logs"
)
needs_colcon = pytest.mark.skipif(
    importlib.util.find_spec("colcon_core") is None, reason="needs colcon: pip install 'sqsegv3_ros[test]'"
)


def run(
    *command: str | Path, cwd: Path, timeout_s: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed. The virtual environment's programs come first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert result.returncode == 0, f"{command} gave {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def copy_source(target: Path) -> Path:
    """The package's source without what tools have left in it, so that builds neither see nor leave anything there."""
    shutil.copytree(ROOT, target, ignore=NOT_SOURCE, symlinks=True)
    return target


def colcon_build(source: Path, workspace: Path, *options: str) -> Path:
    """Build one package. Returns its install prefix."""
    folders = ["--build-base", workspace / "build", "--install-base", workspace / "install"]
    run(sys.executable, "-m", "colcon", "--log-base", workspace / "log", "build", "--base-paths", source, *folders,
        *options, cwd=workspace)  # fmt: skip
    return workspace / "install" / "sqsegv3_ros"


def site_packages(prefix: Path) -> Path:
    """The folder below an install prefix that belongs on PYTHONPATH."""
    return next(path for path in sorted(prefix.glob("lib/python3*/site-packages")))
