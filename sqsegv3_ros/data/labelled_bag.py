# SPDX-License-Identifier: Apache-2.0
"""Cache of labelled bags as data sets in SemanticKITTI's layout."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from sqsegv3_ros.data.conversion import BagImport, bag_to_sequence
from sqsegv3_ros.data.rosbag_reader import is_bag
from sqsegv3_ros.data.semantic_kitti import is_dataset
from sqsegv3_ros.errors import UserError

SEQUENCE = "00"  # name of the sequence that a bag is converted to


def folder_of(path: Path, settings: BagImport) -> Path:
    """Return a folder with sequences/NN/{velodyne,labels}: the path itself, or a cached copy of a bag.

    The copy is made once in $XDG_CACHE_HOME/sqsegv3_ros, and again if the bag or the settings change. Concurrent
    processes wait for the one that makes it.

    Args:
        path: SemanticKITTI data set or bag.
        settings: How to read the clouds of a bag.

    Raises:
        UserError: The path does not exist, or the bag has no labels, or unusable clouds, or cannot be copied.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a bag or a SemanticKITTI data set")
    if not is_bag(path) or is_dataset(path):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqsegv3_ros" / "bags"
    root = cache / f"{path.stem}-{_fingerprint(path, settings)}"
    sequence = root / "sequences" / SEQUENCE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not sequence.is_dir():
                bag_to_sequence(path, root, SEQUENCE, settings)
    except OSError as error:
        raise UserError(f"bag {path} cannot be copied to {root}: {error.strerror or error}") from error
    if not (sequence / "labels").is_dir():
        raise UserError(
            f"bag {path} has no labels to train on: its clouds have neither a field 'ground_truth' (class of each "
            "point) nor 'raw_label'; if another field has them, use `sqsegv3 convert --ground-truth-field`"
        )
    return root


def _fingerprint(path: Path, settings: BagImport) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    labels = settings.labels
    reading = (settings.topic, settings.cloud, settings.ground_truth_field, labels.name, labels.names)
    return hashlib.sha256(repr((stats, reading)).encode()).hexdigest()[:16]
