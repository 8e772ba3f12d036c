"""What every test shares: where the reference data lies, and the environment in which ROS 2 runs in tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SQSEGV3_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
GOLDEN = SHARED / "golden"

needs_shared = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"needs the reference data in {SHARED} (set SQSEGV3_SHARED to its folder)"
)
