"""Folders in SemanticKITTI's layout and bags go in; checked scans with labels come out, cached while there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.labelled_bag import folder_of
from sqsegv3_ros.data.semantic_kitti import POINT_BYTES, ScanFile, find_scans, read_labels, read_scan
from sqsegv3_ros.errors import UserError

INVALID = ("raise", "skip")


@dataclass(frozen=True)
class Root:
    """A folder with sequences/NN/{velodyne,labels}, or a bag of labelled clouds, which is read as sequence 00.

    sequences: which of its sequences; all of them where None. weight: how often its scans are drawn, relative to the
    other roots; None: as often as it has scans.
    """

    path: str
    sequences: list[str] | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise UserError(f"data: the weight of root {self.path} must be above 0, found {self.weight}")


@dataclass
class Scan:
    """One labelled scan.

    points: (N, 4) float32 x, y, z in metres in the sensor frame, remission. labels: (N,) uint8 (uint16 for large label
    sets). instances: (N,) uint16, 0 where a point belongs to no object.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint16]

    @property
    def nbytes(self) -> int:
        """Memory that the scan takes."""
        return self.points.nbytes + self.labels.nbytes + self.instances.nbytes


@dataclass
class Found:
    """What the check of a split found. points: by label. skipped: the message about each file left out."""

    scans: int = 0
    sequences: int = 0
    cached: int = 0
    points: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: list[str] = field(default_factory=list)


def read_labelled_scan(file: ScanFile, labels: LabelSet) -> Scan:
    """Read one scan and its labels.

    Raises UserError naming the file: missing labels, counts that differ, coordinates that are not finite, ids that the
    label set does not know.
    """
    points = read_scan(file.path)
    if not len(points):
        raise UserError(f"{file.path}: the scan is empty")
    if not file.labels_path.is_file():
        raise UserError(f"{file.path}: no labels for it, expected {file.labels_path}")
    raw = read_labels(file.labels_path, len(points))
    broken = int((~np.isfinite(points).all(axis=1)).sum())
    if broken:
        raise UserError(f"{file.path}: {broken} of {len(points)} points have a NaN or infinite value")
    unknown = labels.unknown_ids(raw)
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise UserError(
            f"{file.labels_path}: ids {shown} are not in label set '{labels.name}'; give the data set's own label "
            "configuration with model.labels"
        )
    return Scan(points, labels.to_labels(raw), (raw >> 16).astype(np.uint16))


class ScanStore:
    """The scans of one split.

    roots: where they come from. labels: the label set. invalid: 'raise' on a file that cannot be used, or 'skip' it
    with a count. cache_bytes: memory for scans; what does not fit is read again every time. Raises UserError where
    nothing is found or, with 'raise', naming the first bad file.
    """

    def __init__(self, roots: Sequence[Root], labels: LabelSet, *, invalid: str, cache_bytes: float) -> None:
        if invalid not in INVALID:
            raise UserError(f"data: invalid must be one of {', '.join(INVALID)}, found '{invalid}'")
        self.labels = labels
        self.invalid = invalid
        self.files: list[ScanFile] = []
        self.of_root: list[list[int]] = []
        self.weights: list[float] = []
        self.found = Found(points=np.zeros(len(labels), np.int64))
        self._cache: dict[int, Scan] = {}
        self._used = 0
        for root in roots:
            self._add_root(root, cache_bytes)
        if not self.files:
            first = f"; the first: {self.found.skipped[0]}" if self.found.skipped else ""
            raise UserError(
                f"data: no usable scan in {', '.join(r.path for r in roots)} "
                f"({len(self.found.skipped)} were skipped{first})"
            )
        self.found.scans, self.found.cached = len(self.files), len(self._cache)
        self.found.sequences = len({(f.path.parent, f.sequence) for f in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Scan:
        """A scan by its number. Not to be changed: others get the same arrays."""
        scan = self._cache.get(index)
        return read_labelled_scan(self.files[index], self.labels) if scan is None else scan

    def cached(self) -> list[Scan]:
        """The scans that are in memory."""
        return list(self._cache.values())

    def _add_root(self, root: Root, cache_bytes: float) -> None:
        numbers = []
        folder = folder_of(Path(root.path).expanduser(), self.labels)
        for file in find_scans(folder, root.sequences):
            number = len(self.files)
            try:
                self._check(file, number, cache_bytes)
            except UserError as error:
                if self.invalid == "raise":
                    raise
                self.found.skipped.append(str(error))
                continue
            self.files.append(file)
            numbers.append(number)
        if numbers:
            self.of_root.append(numbers)
            self.weights.append(float(len(numbers)) if root.weight is None else root.weight)

    def _check(self, file: ScanFile, number: int, cache_bytes: float) -> None:
        """Check the contents of what is kept in memory, the sizes of the rest (read in full when it is used)."""
        if self._used < cache_bytes:
            scan = read_labelled_scan(file, self.labels)
            self.found.points += np.bincount(scan.labels, minlength=len(self.labels))
            self._cache[number] = scan
            self._used += scan.nbytes
            return
        if not file.labels_path.is_file():
            raise UserError(f"{file.path}: no labels for it, expected {file.labels_path}")
        points, words = file.path.stat().st_size / POINT_BYTES, file.labels_path.stat().st_size / 4
        if points != words or not points:
            raise UserError(f"{file.labels_path}: {words:g} labels, but the scan has {points:g} points")


def describe(found: Found, labels: LabelSet, what: str) -> str:
    """The lines about a split that are printed before training starts."""
    total = int(found.points.sum())
    lines = [
        f"{what}: {found.scans} scans of {found.sequences} sequences, {total / 1e6:.1f} M points in memory "
        f"({found.cached} scans), {len(found.skipped)} files skipped"
    ]
    shares = [
        f"{labels.names[c]} {100.0 * int(found.points[c]) / max(total, 1):.3g} %"
        for c in np.argsort(-found.points)
        if found.points[c]
    ]
    lines.append(f"  classes: {', '.join(shares)}")
    absent = [labels.names[c] for c in labels.evaluated if not found.points[c]]
    if absent and found.cached == found.scans:
        lines.append(f"  not among them: {', '.join(absent)}")
    lines += [f"  skipped: {message}" for message in found.skipped[:5]]
    if len(found.skipped) > 5:
        lines.append(f"  ... and {len(found.skipped) - 5} more")
    return "\n".join(lines)
