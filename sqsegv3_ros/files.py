"""Where the package lies comes in; its share folders (launch, config, models) go out, with and without ROS."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def share_folders() -> list[Path]:
    """The folders that may hold the package's launch, config and models folders, the likeliest first."""
    package = Path(__file__).resolve().parent
    folders = [package.parent]  # the source tree, also behind an editable or symlinked installation
    for prefix in [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), *_prefixes_of(package), sys.prefix]:
        if prefix:
            folders.append(Path(prefix) / "share" / "sqsegv3_ros")
    return [folder for folder in folders if (folder / "package.xml").is_file()]


def _prefixes_of(package: Path) -> list[str]:
    # .../lib/python3.11/site-packages/sqsegv3_ros lies four levels below its prefix (Debian: local/lib one more)
    return [str(parent) for parent in package.parents[2:6]]
