# SPDX-License-Identifier: Apache-2.0
"""Check of a SemanticKITTI data set by file names and sizes, quick enough for all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqsegv3_ros.data.semantic_kitti import POINT_BYTES, is_dataset
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
        problems: One message for each file or folder that training or evaluation would refuse. A sequence without a
            folder of labels has none for that: it can be labelled.
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
        UserError: The folder is not a SemanticKITTI data set.
    """
    if not is_dataset(root):
        raise UserError(
            f"{root} is a folder without sequences/NN/velodyne; expected a model file or a SemanticKITTI data set "
            "(the folder 'dataset' that the archives make)"
        )
    sequences = sorted(path for path in Path(root).glob("sequences/*") if not path.is_file())
    return [_check_sequence(sequence, Path(root)) for sequence in sequences]


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


@dataclass(frozen=True)
class _Folder:
    """The files of a folder that have a suffix, by their name without it.

    Attributes:
        path: The folder, below the data set.
        suffix: The suffix.
        sizes: Bytes of each file.
        errors: Why an entry cannot be used.
        error: Why the folder cannot be read; empty if it can.
    """

    path: Path
    suffix: str
    sizes: dict[str, int]
    errors: dict[str, str]
    error: str = ""


def _check_sequence(sequence: Path, root: Path) -> SequenceCheck:
    scans = _read_folder(sequence / "velodyne", ".bin", root)
    has_labels = os.path.lexists(sequence / "labels")
    labels = _read_folder(sequence / "labels", ".label", root) if has_labels else None
    problems = [problem for folder in (scans, labels) if folder for problem in _unusable(folder)]
    if labels and scans.sizes and labels.sizes:
        problems += _mismatches(scans, labels)
    labelled = len(scans.sizes.keys() & labels.sizes.keys()) if labels else 0
    points = sum(scans.sizes.values()) // POINT_BYTES
    return SequenceCheck(sequence.name, len(scans.sizes), labelled, points, tuple(problems))


def _read_folder(folder: Path, suffix: str, root: Path) -> _Folder:
    sizes, errors, error = {}, {}, ""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.endswith(suffix):
                    continue
                stem = entry.name.removesuffix(suffix)
                try:
                    size = entry.stat().st_size
                    if entry.is_file():
                        sizes[stem] = size
                    else:
                        errors[stem] = "not a file"
                except OSError as failure:
                    errors[stem] = failure.strerror or str(failure)
    except OSError as failure:
        error = failure.strerror or str(failure)
    return _Folder(folder.relative_to(root), suffix, sizes, errors, error)


def _unusable(folder: _Folder) -> Iterator[str]:
    """What is wrong with a folder, or with files of it without regard to others."""
    if folder.error:
        yield f"{folder.path}: {folder.error}"
    elif not folder.sizes and not folder.errors:
        yield f"{folder.path}: no {folder.suffix} files"
    for stem, error in sorted(folder.errors.items()):
        yield f"{folder.path}/{stem}{folder.suffix}: {error}"
    if folder.suffix == ".bin":
        for stem, size in sorted(folder.sizes.items()):
            if not size or size % POINT_BYTES:
                yield f"{folder.path}/{stem}.bin: {size} bytes, expected a multiple of {POINT_BYTES} above 0"


def _mismatches(scans: _Folder, labels: _Folder) -> Iterator[str]:
    """Files without their counterpart, and labels that are not one per point."""
    for stem, size in sorted(scans.sizes.items()):
        path, expected = f"{labels.path}/{stem}.label", size // POINT_BYTES * LABEL_BYTES
        if not size or size % POINT_BYTES or stem in labels.errors:
            continue  # a problem already
        if stem not in labels.sizes:
            yield f"{path}: missing"
        elif labels.sizes[stem] != expected:
            yield f"{path}: {labels.sizes[stem]} bytes, expected {expected}"
    for stem in sorted(labels.sizes.keys() - scans.sizes.keys() - scans.errors.keys()):
        yield f"{labels.path}/{stem}.label: no scan velodyne/{stem}.bin"
