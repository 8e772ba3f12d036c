# SPDX-License-Identifier: Apache-2.0
"""Labelled scans of a split: found, checked and kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.conversion import BagImport
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.labelled_bag import folder_of
from sqsegv3_ros.data.partial_labels import ClassSet, PartialLabels, RawCoding
from sqsegv3_ros.data.semantic_kitti import POINT_BYTES, ScanFile, find_scans, read_labels, read_scan
from sqsegv3_ros.errors import UserError, require

INVALID = ("raise", "skip")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Root:
    """A data set: a folder in SemanticKITTI's layout, or a bag of labelled clouds.

    Attributes:
        path: Folder with sequences/NN/{velodyne,labels}, or a bag, which counts as sequence 00.
        sequences: Sequences to use; all if not given.
        weight: How often its scans are drawn, relative to the other roots; its number of scans if not given.
        labels: YAML file that says which classes the data set's raw ids are, or one of which classes they are
            (`PartialLabels`); the ids are those of the model's label set if not given.
    """

    path: str
    sequences: list[str] | None = None
    weight: float | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        require(self.weight is None or self.weight > 0, f"data: weight of root {self.path}", "above 0", self.weight)


@dataclass
class Scan:
    """One labelled scan.

    Attributes:
        points: (N, 4) float32: x, y, z in metres in the sensor frame, remission.
        labels: (N,) uint8, uint16 for more than 256 labels: classes, then sets of classes.
        instances: (N,) uint16, 0 for points without an instance.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint16]

    @property
    def nbytes(self) -> int:
        """Memory of the scan in bytes."""
        return self.points.nbytes + self.labels.nbytes + self.instances.nbytes


def read_labelled_scan(file: ScanFile, labels: LabelSet | RawCoding) -> Scan:
    """Read one scan and its labels.

    Args:
        file: Files of the scan.
        labels: Mapping of the raw ids of the label file.

    Returns:
        The scan.

    Raises:
        UserError: The scan is empty or has non-finite values, its labels are missing, do not match its number of
            points, or have ids that the label set does not know.
    """
    points = read_scan(file.path)
    if not len(points):
        raise UserError(f"{file.path}: the scan is empty")
    _require_labels(file)
    raw = read_labels(file.labels_path, len(points))
    broken = int((~np.isfinite(points).all(axis=1)).sum())
    if broken:
        raise UserError(f"{file.path}: {broken} of {len(points)} points have a NaN or infinite value")
    unknown = labels.unknown_ids(raw)
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise UserError(
            f"{file.labels_path}: ids {shown} are not in label set '{labels.name}'; give the data set's own label "
            "configuration with model.labels, or say with `labels` of its root in data.extra which classes they are"
        )
    return Scan(points, labels.to_labels(raw), (raw >> 16).astype(np.uint16))


class ScanStore:
    """The scans of one split.

    Args:
        roots: Data sets to read.
        labels: Label set of the data sets.
        invalid: 'raise' an error for a file that cannot be used, or 'skip' it.
        cache_bytes: Memory for scans; the others are read every time.

    Attributes:
        sets: Sets of classes that partial labels name; the label of set i is C + i.
        points: (C + S,) points of each class and set in the scans in memory.
        skipped: One message per file left out.

    Raises:
        UserError: A file cannot be used (with 'raise'), or no scan is left.
    """

    def __init__(self, roots: Sequence[Root], labels: LabelSet, *, invalid: str, cache_bytes: float) -> None:
        require(invalid in INVALID, "data: invalid", f"one of {', '.join(INVALID)}", invalid)
        self.labels = labels
        self.invalid = invalid
        self.files: list[ScanFile] = []
        self.indices_of_root: list[list[int]] = []
        self.weights: list[float] = []
        partial = [None if root.labels is None else PartialLabels.from_yaml(root.labels) for root in roots]
        self.sets: tuple[ClassSet, ...] = tuple(sorted({s for p in partial if p for s in p.sets(labels)}))
        self.points = np.zeros(len(labels) + len(self.sets), np.int64)
        self.skipped: list[str] = []
        self._coding_of: list[LabelSet | RawCoding] = []
        self._cache: dict[int, Scan] = {}
        self._used_bytes = 0
        self._unreadable: dict[int, str] = {}
        for root, ids in zip(roots, partial, strict=True):
            self._add_root(root, labels if ids is None else ids.coding(labels, self.sets), cache_bytes)
        if not self.files:
            first = f"; the first: {self.skipped[0]}" if self.skipped else ""
            raise UserError(
                f"data: no usable scan in {', '.join(r.path for r in roots)} ({len(self.skipped)} were skipped{first})"
            )

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Scan | None:
        """Read a scan, from memory if it is there. The arrays are shared: do not change them.

        Args:
            index: Number of the scan.

        Returns:
            The scan; None if its file went bad after the check at the start and may be skipped.

        Raises:
            UserError: The file went bad, with `invalid='raise'`.
        """
        if index in self._cache:
            return self._cache[index]
        try:
            return read_labelled_scan(self.files[index], self._coding_of[index])
        except UserError as error:
            if self.invalid == "raise":
                raise
            if index not in self._unreadable:
                _log.warning("skipped: %s", error)
            self._unreadable[index] = str(error)
            return None

    def read_any(self, index: int, rng: np.random.Generator) -> Scan:
        """Read a scan, or a random other one if its file went bad and may be skipped.

        Raises:
            UserError: The file went bad, with `invalid='raise'`, or no scan can be read.
        """
        scan = self.read(index)
        if scan is not None:
            return scan
        for other in rng.permutation(len(self)).tolist():
            scan = self.read(other)
            if scan is not None:
                return scan
        raise UserError(f"data: none of the {len(self)} training scans can be read; {self._unreadable[index]}")

    def replace_labels(self, index: int, labels: npt.NDArray[np.uint8]) -> None:
        """Replace the (N,) labels of a scan that is in memory; the file is written by the caller."""
        if index in self._cache:
            self._cache[index] = replace(self._cache[index], labels=labels)

    def cached(self) -> list[Scan]:
        """The scans in memory."""
        return list(self._cache.values())

    def _add_root(self, root: Root, coding: LabelSet | RawCoding, cache_bytes: float) -> None:
        indices = []
        folder = folder_of(Path(root.path).expanduser(), BagImport(labels=self.labels))
        for file in find_scans(folder, root.sequences):
            index = len(self.files)
            try:
                self._check(file, index, coding, cache_bytes)
            except UserError as error:
                if self.invalid == "raise":
                    raise
                self.skipped.append(str(error))
                continue
            self.files.append(file)
            self._coding_of.append(coding)
            indices.append(index)
        if indices:
            self.indices_of_root.append(indices)
            self.weights.append(float(len(indices)) if root.weight is None else root.weight)

    def _check(self, file: ScanFile, index: int, coding: LabelSet | RawCoding, cache_bytes: float) -> None:
        """Check the contents of scans kept in memory and the file sizes of the others."""
        if self._used_bytes < cache_bytes:
            scan = read_labelled_scan(file, coding)
            self.points += np.bincount(scan.labels, minlength=len(self.points))
            self._cache[index] = scan
            self._used_bytes += scan.nbytes
            return
        _require_labels(file)
        points, words = file.path.stat().st_size / POINT_BYTES, file.labels_path.stat().st_size / 4
        if points != words or not points:
            raise UserError(f"{file.labels_path}: {words:g} labels, but the scan has {points:g} points")


def _require_labels(file: ScanFile) -> None:
    if not file.labels_path.is_file():
        raise UserError(f"{file.path}: no labels for it, expected {file.labels_path}")


def describe(store: ScanStore, title: str) -> str:
    """Describe a split in a few lines: scans, share of each class, absent classes, skipped files."""
    points, skipped = store.points, store.skipped
    names = store.labels.names
    names += tuple("/".join(names[c] for c in members) for members in store.sets)
    total, cached = int(points.sum()), len(store.cached())
    sequences = len({(f.path.parent, f.sequence) for f in store.files})
    shares = (f"{names[c]} {100.0 * int(points[c]) / total:.3g} %" for c in np.argsort(-points) if points[c])
    lines = [
        f"{title}: {len(store)} scans of {sequences} sequences, {total / 1e6:.1f} M points in memory "
        f"({cached} scans), {len(skipped)} files skipped",
    ]
    if total:
        lines.append(f"  classes: {', '.join(shares)}")
    absent = [names[c] for c in store.labels.evaluated if not points[c]]
    if absent and cached == len(store):
        lines.append(f"  absent: {', '.join(absent)}")
    lines += [f"  skipped: {message}" for message in skipped[:5]]
    if len(skipped) > 5:
        lines.append(f"  ... and {len(skipped) - 5} more")
    return "\n".join(lines)
