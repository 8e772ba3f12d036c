"""A bag of labelled clouds goes in; a folder in SemanticKITTI's layout with the same scans comes out."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from sqsegv3_ros.data.conversion import FromBag, bag_to_sequence
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.rosbag_reader import is_bag
from sqsegv3_ros.data.semantic_kitti import is_dataset
from sqsegv3_ros.errors import UserError

SEQUENCE = "00"  # that a bag becomes


def folder_of(path: Path, labels: LabelSet) -> Path:
    """The folder with sequences/NN/{velodyne,labels}: the path itself, or the copy of the bag that it is.

    The copy is made once, below $XDG_CACHE_HOME/sqsegv3_ros, and again after the bag has changed; processes that want
    it at the same time wait for the one that makes it. Points are read as `sqsegv3 convert` reads them without options.
    Raises UserError naming the bag: no labels, clouds that cannot be used, the disk is full.
    """
    if not is_bag(path) or is_dataset(path):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqsegv3_ros" / "bags"
    root = cache / f"{path.stem}-{_fingerprint(path, labels)}"
    sequence = root / "sequences" / SEQUENCE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not sequence.is_dir():
                bag_to_sequence(path, root, SEQUENCE, FromBag(labels=labels))
    except OSError as error:
        raise UserError(f"bag {path} cannot be copied to {root}: {error.strerror or error}") from error
    if not (sequence / "labels").is_dir():
        raise UserError(
            f"bag {path} has no labels to train on: its clouds have neither a field 'ground_truth' (the class of every "
            "point) nor 'raw_label'; if another field holds them, `sqsegv3 convert --ground-truth-field` makes a folder"
        )
    return root


def _fingerprint(path: Path, labels: LabelSet) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    told = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((told, labels.name, labels.names)).encode()).hexdigest()[:16]
