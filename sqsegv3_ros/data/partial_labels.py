# SPDX-License-Identifier: Apache-2.0
"""Partial labels: raw ids of another data set as classes of a label set, or as sets of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import SEMANTIC_ID_MASK, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import read_yaml

ClassSet = tuple[int, ...]
"""Labels of two or more classes, ascending."""


@dataclass(frozen=True)
class PartialLabels:
    """What the raw ids of a data set say about the classes of a label set.

    Attributes:
        name: Name of the data set.
        classes: Class names by raw id: one if the id is that class, several if it is one of them, none if the id says
            nothing.
    """

    name: str
    classes: Mapping[int, tuple[str, ...]] = field(hash=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PartialLabels:
        """Read a YAML file with `name` and `classes`: class name, list of class names or [] by raw id.

        Raises:
            UserError: The file cannot be read or is malformed.
        """
        data = read_yaml(path, "file of partial labels")
        entries = data.get("classes") if isinstance(data, Mapping) else None
        if not isinstance(entries, Mapping):
            raise UserError(f"partial labels {path}: expected a mapping 'classes' from raw ids to class names")
        classes = {}
        for raw_id, value in entries.items():
            names = [value] if isinstance(value, str) else value
            valid_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if not (isinstance(raw_id, int) and 0 <= raw_id <= SEMANTIC_ID_MASK and valid_names):
                raise UserError(
                    f"partial labels {path}: expected a raw id 0..65535 and a class name, a list of them or [], "
                    f"found {raw_id}: {value}"
                )
            classes[raw_id] = tuple(names)
        return cls(str(data.get("name", Path(path).stem)), classes)

    def sets(self, labels: LabelSet) -> set[ClassSet]:
        """Return the sets of classes. Raises UserError if a class is not in the label set."""
        return {members for members in self._labels(labels).values() if len(members) > 1}

    def coding(self, labels: LabelSet, sets: Sequence[ClassSet]) -> RawCoding:
        """Make the mapping of raw ids to labels.

        Args:
            labels: The label set.
            sets: All sets of classes, in the order of their labels.
        """
        label_of = {members: len(labels) + number for number, members in enumerate(sets)}
        by_raw_id = {
            raw_id: (label_of[members] if len(members) > 1 else members[0] if members else 0)
            for raw_id, members in self._labels(labels).items()
        }
        return RawCoding(self.name, by_raw_id, np.uint8 if len(labels) + len(sets) <= 256 else np.uint16)

    def _labels(self, labels: LabelSet) -> dict[int, ClassSet]:
        return {raw_id: tuple(sorted({labels.index(name) for name in names})) for raw_id, names in self.classes.items()}


class RawCoding:
    """Mapping of the raw ids of a data set to labels: those of classes, then those of sets of classes.

    Args:
        name: Name of the data set.
        by_raw_id: Label by raw id.
        dtype: Type of the labels.
    """

    def __init__(self, name: str, by_raw_id: Mapping[int, int], dtype: type[np.unsignedinteger[Any]]) -> None:
        self.name = name
        self._known = np.zeros(SEMANTIC_ID_MASK + 1, dtype=bool)
        self._table = np.zeros(SEMANTIC_ID_MASK + 1, dtype=dtype)
        for raw_id, label in by_raw_id.items():
            self._known[raw_id] = True
            self._table[raw_id] = label

    def to_labels(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert values of a .label file to labels; instance bits are ignored."""
        return self._table[raw & SEMANTIC_ID_MASK]

    def unknown_ids(self, raw: npt.NDArray[Any]) -> tuple[int, ...]:
        """Return the raw ids among values of a .label file that the mapping lacks, ascending."""
        found = np.unique(raw & SEMANTIC_ID_MASK)
        return tuple(int(i) for i in found[~self._known[found]])
