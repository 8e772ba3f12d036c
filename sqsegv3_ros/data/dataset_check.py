# SPDX-License-Identifier: Apache-2.0
"""Check of a SemanticKITTI data set by file names and sizes, quick enough for all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqsegv3_ros.data.semantic_kitti import POINT_BYTES
from sqsegv3_ros.errors import UserError

LABEL_BYTES = 4

# scans in each sequence of SemanticKITTI
LABELLED_SCANS = {
    "00": 4541, "01": 1101, "02": 4661, "03": 801, "04": 271, "05": 2761, "06": 1101, "07": 1101, "08": 4071,
    "09": 1591, "10": 1201,
}  # fmt: skip
TEST_SCANS = {
    "11": 921, "12": 1061, "13": 3281, "14": 631, "15": 1901, "16": 1731, "17": 491, "18": 1801, "19": 4981,
    "20": 831, "21": 2721,
}  # fmt: skip


@dataclass(frozen=True)
class SequenceCheck:
    """Scans and labels of one sequence.

    Attributes:
        sequence: Its name, such as '00'.
        scans: Number of .bin files.
        labelled: Number of scans with a .label file.
        points: Points of all scans.
        problems: One message for each file that training or evaluation would refuse.
    """

    sequence: str
    scans: int
    labelled: int
    points: int
    problems: tuple[str, ...]


def check_dataset(root: str | Path) -> list[SequenceCheck]:
    """Check that each scan has whole points, and in a labelled sequence one label per point.

    Reads file sizes only: ids and coordinates are checked where they are used.

    Args:
        root: SemanticKITTI data set.

    Returns:
        One result per sequence, in order.

    Raises:
        UserError: The folder is not a SemanticKITTI data set, or cannot be read.
    """
    folders = sorted(p.parent for p in Path(root).glob("sequences/*/velodyne"))
    if not folders:
        raise UserError(
            f"{root} is a folder without sequences/NN/velodyne; expected a model file or a SemanticKITTI data set "
            "(the folder 'dataset' that the archives make)"
        )
    try:
        return [_check_sequence(folder, Path(root)) for folder in folders]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def missing_scans(checks: list[SequenceCheck]) -> list[str]:
    """Compare the counts with those of SemanticKITTI.

    The test sequences 11 to 21 have no labels and may be missing, but not in part.

    Returns:
        One message per sequence that is not complete.
    """
    found = {check.sequence: check for check in checks}
    messages = []
    for sequence, expected in {**LABELLED_SCANS, **TEST_SCANS}.items():
        check = found.get(sequence)
        labels_expected = sequence in LABELLED_SCANS
        if check is None:
            if labels_expected:
                messages.append(f"sequence {sequence} is missing: expected {expected} labelled scans")
        elif check.scans != expected:
            messages.append(f"sequence {sequence} has {check.scans} scans, expected {expected}")
        elif labels_expected and not check.labelled:
            messages.append(f"sequence {sequence} has no labels, expected {expected}")
    return messages


def _check_sequence(folder: Path, root: Path) -> SequenceCheck:
    scans = _sizes(folder / "velodyne", ".bin")
    labels = _sizes(folder / "labels", ".label") if (folder / "labels").is_dir() else {}
    problems = list(_problems(folder.relative_to(root), scans, labels))
    points = sum(scans.values()) // POINT_BYTES
    return SequenceCheck(folder.name, len(scans), len(scans.keys() & labels.keys()), points, tuple(problems))


def _sizes(folder: Path, suffix: str) -> dict[str, int]:
    """Size in bytes of each file with a suffix, by its name without it."""
    with os.scandir(folder) as entries:
        return {e.name[: -len(suffix)]: e.stat().st_size for e in entries if e.name.endswith(suffix)}


def _problems(folder: Path, scans: dict[str, int], labels: dict[str, int]) -> Iterator[str]:
    if not scans:
        yield f"{folder}/velodyne: no .bin files"
    for stem, size in sorted(scans.items()):
        if not size or size % POINT_BYTES:
            yield f"{folder}/velodyne/{stem}.bin: {size} bytes, expected a multiple of {POINT_BYTES} above 0"
        elif labels and stem not in labels:
            yield f"{folder}/labels/{stem}.label: missing"
        elif labels and labels[stem] * POINT_BYTES != size * LABEL_BYTES:
            yield f"{folder}/labels/{stem}.label: {labels[stem]} bytes, expected {size // POINT_BYTES * LABEL_BYTES}"
    for stem in sorted(labels.keys() - scans.keys()):
        yield f"{folder}/labels/{stem}.label: no scan velodyne/{stem}.bin"
