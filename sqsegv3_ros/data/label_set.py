# SPDX-License-Identifier: Apache-2.0
"""Label sets: classes with names and colours, and their mapping to the raw ids of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import read_yaml

SEMANTIC_ID_MASK = 0xFFFF  # raw id in the lower 16 bits of a value of a .label file; the upper 16 are the instance


@dataclass(frozen=True)
class LabelClass:
    """A class of a label set.

    Attributes:
        name: Name in the data set.
        color: RGB, 0..255.
        raw_id: The data set's id that predictions of the class are written as.
        ignored: Neither trained nor evaluated.
        frequency: Share of all points; None if unknown.
    """

    name: str
    color: tuple[int, int, int]
    raw_id: int
    ignored: bool = False
    frequency: float | None = None

    def __post_init__(self) -> None:
        if len(self.color) != 3 or not all(0 <= channel <= 255 for channel in self.color):
            raise UserError(f"class '{self.name}': color must be three numbers 0..255 (RGB), found {self.color}")
        if not 0 <= self.raw_id <= SEMANTIC_ID_MASK:
            raise UserError(f"class '{self.name}': raw id must be in 0..65535, found {self.raw_id}")


@dataclass(frozen=True)
class LabelSet:
    """The classes of a model.

    Attributes:
        name: Name of the set.
        classes: Classes by label.
        raw_to_label: Label of each raw id of the data set.
    """

    name: str
    classes: tuple[LabelClass, ...]
    raw_to_label: Mapping[int, int] = field(hash=False)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(f"label set '{self.name}': expected at least 2 classes, found {len(self.classes)}")
        for raw_id, label in self.raw_to_label.items():
            if not 0 <= raw_id <= SEMANTIC_ID_MASK:
                raise UserError(f"label set '{self.name}': raw id {raw_id} is not in 0..65535")
            if not 0 <= label < len(self.classes):
                raise UserError(
                    f"label set '{self.name}': raw id {raw_id} maps to class {label}, "
                    f"but there are {len(self.classes)} classes"
                )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label."""
        return tuple(c.name for c in self.classes)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Smallest unsigned type for all labels."""
        return np.uint8 if len(self.classes) <= 256 else np.uint16

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Labels that are trained and evaluated (not ignored), ascending."""
        return tuple(i for i, c in enumerate(self.classes) if not c.ignored)

    @cached_property
    def colors(self) -> npt.NDArray[np.uint8]:
        """(C, 3) uint8 RGB by label."""
        return np.array([c.color for c in self.classes], dtype=np.uint8)

    @cached_property
    def _raw_to_label_table(self) -> npt.NDArray[np.uint16]:
        table = np.zeros(SEMANTIC_ID_MASK + 1, dtype=np.uint16)
        for raw_id, label in self.raw_to_label.items():
            table[raw_id] = label
        return table

    @cached_property
    def _label_to_raw_table(self) -> npt.NDArray[np.uint32]:
        return np.array([c.raw_id for c in self.classes], dtype=np.uint32)

    def to_labels(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert values of a .label file to labels.

        Args:
            raw: Integers of any type and shape; instance bits are ignored.

        Returns:
            Labels of the same shape, `dtype`. Unknown raw ids become label 0, as in the official release; see
            `unknown_ids`.
        """
        return self._raw_to_label_table[raw & SEMANTIC_ID_MASK].astype(self.dtype)

    def to_raw(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """Convert labels (integers of any type and shape) to raw ids, uint32, as written to .label files.

        Raises:
            UserError: A label is not in the set.
        """
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise UserError(
                f"labels must be in 0..{len(self.classes) - 1} for label set '{self.name}', "
                f"found {int(labels.min())}..{int(labels.max())}"
            )
        return self._label_to_raw_table[labels]

    def unknown_ids(self, raw: npt.NDArray[Any]) -> tuple[int, ...]:
        """Return the raw ids among values of a .label file that the set does not map, ascending."""
        found = np.unique(raw & SEMANTIC_ID_MASK)
        return tuple(int(i) for i in found if int(i) not in self.raw_to_label)

    def index(self, name: str) -> int:
        """Return the label of a class name. Raises UserError if there is no such class."""
        try:
            return self.names.index(name)
        except ValueError:
            names = ", ".join(self.names)
            raise UserError(f"no class '{name}' in label set '{self.name}' (classes: {names})") from None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types; `from_dict` is the inverse."""
        return {
            "name": self.name,
            "classes": [
                {
                    "id": i,
                    "name": c.name,
                    "color": list(c.color),
                    "raw_id": c.raw_id,
                    "ignored": c.ignored,
                    "frequency": c.frequency,
                }
                for i, c in enumerate(self.classes)
            ],
            "raw_to_label": {str(raw): label for raw, label in sorted(self.raw_to_label.items())},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSet:
        """Create from the result of `to_dict`. Raises UserError if an entry is missing or malformed."""
        try:
            classes = tuple(
                LabelClass(c["name"], _color(c["color"]), int(c["raw_id"]), bool(c["ignored"]), c.get("frequency"))
                for c in data["classes"]
            )
            raw_to_label = {int(raw): int(label) for raw, label in data["raw_to_label"].items()}
            return cls(str(data["name"]), classes, raw_to_label)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"label set: missing or malformed entry {error}") from error

    @classmethod
    def from_config(cls, data: Mapping[str, Any], name: str | None = None) -> LabelSet:
        """Create from a data set configuration in the format of SemanticKITTI.

        Args:
            data: Parsed YAML with `labels` (raw id: name), `color_map` (raw id: BGR), `learning_map` (raw id: class),
                `learning_map_inv` (class: raw id) and, optionally, `content` and `learning_ignore`.
            name: Name of the set; None for that in `data`.

        Raises:
            UserError: An entry is missing or contradictory.
        """
        try:
            return cls._from_config(data, name)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"label configuration: missing or malformed entry ({error})") from error

    @classmethod
    def _from_config(cls, data: Mapping[str, Any], name: str | None) -> LabelSet:
        for key in ("labels", "color_map", "learning_map", "learning_map_inv"):
            if not isinstance(data.get(key), Mapping):
                raise UserError(f"label configuration has no mapping '{key}' (entries: {', '.join(map(str, data))})")
        inverse = data["learning_map_inv"]
        ids = sorted(int(i) for i in inverse)
        if ids != list(range(len(ids))):
            raise UserError(f"learning_map_inv must number its classes 0, 1, 2, ... without gaps, found {ids}")
        frequency = [0.0] * len(ids)
        content = data.get("content") or {}
        for raw_id, share in content.items():
            frequency[int(data["learning_map"].get(raw_id, 0))] += float(share)
        ignore = data.get("learning_ignore") or {}
        classes = []
        for i in ids:
            raw_id = inverse[i]
            if raw_id not in data["labels"] or raw_id not in data["color_map"]:
                raise UserError(f"class {i} has raw id {raw_id}, which is missing in labels or color_map")
            blue, green, red = data["color_map"][raw_id]
            classes.append(
                LabelClass(
                    str(data["labels"][raw_id]),
                    (int(red), int(green), int(blue)),
                    int(raw_id),
                    bool(ignore.get(i, False)),
                    frequency[i] if content else None,
                )
            )
        mapping = {int(raw): int(label) for raw, label in data["learning_map"].items()}
        return cls(name or str(data.get("name", "unnamed")), tuple(classes), mapping)

    @classmethod
    def from_yaml(cls, path: str | Path) -> LabelSet:
        """Read a YAML file in the format of SemanticKITTI (`from_config`). Raises UserError if it cannot be used."""
        data = read_yaml(path, "label configuration")
        if not isinstance(data, Mapping):
            raise UserError(f"{path}: expected a YAML mapping, found {type(data).__name__}")
        try:
            return cls.from_config(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _color(values: Sequence[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


# SemanticKITTI: raw id, name, label, RGB, share of the points (semantic-kitti.yaml)
_SEMANTIC_KITTI = (
    (0, "unlabeled", 0, (0, 0, 0), 0.018889854628292943),
    (1, "outlier", 0, (255, 0, 0), 0.0002937197336781505),
    (10, "car", 1, (100, 150, 245), 0.040818519255974316),
    (11, "bicycle", 2, (100, 230, 245), 0.00016609538710764618),
    (13, "bus", 5, (100, 80, 250), 2.7879693665067774e-05),
    (15, "motorcycle", 3, (30, 60, 150), 0.00039838616015114444),
    (16, "on-rails", 5, (0, 0, 255), 0.0),
    (18, "truck", 4, (80, 30, 180), 0.0020633612104619787),
    (20, "other-vehicle", 5, (0, 0, 255), 0.0016218197275284021),
    (30, "person", 6, (255, 30, 30), 0.00017698551338515307),
    (31, "bicyclist", 7, (255, 40, 200), 1.1065903904919655e-08),
    (32, "motorcyclist", 8, (150, 30, 90), 5.532951952459828e-09),
    (40, "road", 9, (255, 0, 255), 0.1987493871255525),
    (44, "parking", 10, (255, 150, 255), 0.014717169549888214),
    (48, "sidewalk", 11, (75, 0, 75), 0.14392298360372),
    (49, "other-ground", 12, (175, 0, 75), 0.0039048553037472045),
    (50, "building", 13, (255, 200, 0), 0.1326861944777486),
    (51, "fence", 14, (255, 120, 50), 0.0723592229456223),
    (52, "other-structure", 0, (255, 150, 0), 0.002395131480328884),
    (60, "lane-marking", 9, (150, 255, 170), 4.7084144280367186e-05),
    (70, "vegetation", 15, (0, 175, 0), 0.26681502148037506),
    (71, "trunk", 16, (135, 60, 0), 0.006035012012626033),
    (72, "terrain", 17, (150, 240, 80), 0.07814222006271769),
    (80, "pole", 18, (255, 240, 150), 0.002855498193863172),
    (81, "traffic-sign", 19, (255, 0, 0), 0.0006155958086189918),
    (99, "other-object", 0, (50, 255, 255), 0.009923127583046915),
    (252, "moving-car", 1, (100, 150, 245), 0.001789309418528068),
    (253, "moving-bicyclist", 7, (255, 40, 200), 0.00012709999297008662),
    (254, "moving-person", 6, (255, 30, 30), 0.00016059776092534436),
    (255, "moving-motorcyclist", 8, (150, 30, 90), 3.745553104802113e-05),
    (256, "moving-on-rails", 5, (0, 0, 255), 0.0),
    (257, "moving-bus", 5, (100, 80, 250), 0.00011351574470342043),
    (258, "moving-truck", 4, (80, 30, 180), 0.00010157861367183268),
    (259, "moving-other-vehicle", 5, (0, 0, 255), 4.3840131989471124e-05),
)
_CLASS_RAW_IDS = (0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81)
# multi-scan task, with moving classes of their own: label by raw id, and raw ids of labels 20 to 25
_MOVING = {252: 20, 253: 21, 254: 22, 255: 23, 256: 24, 257: 24, 258: 25, 259: 24}
_MOVING_RAW_IDS = (252, 253, 254, 255, 259, 258)


def _semantic_kitti(name: str, overrides: Mapping[int, int], raw_ids: Sequence[int]) -> LabelSet:
    raw_to_label = {raw: overrides.get(raw, label) for raw, _, label, _, _ in _SEMANTIC_KITTI}
    share = [0.0] * len(raw_ids)
    for raw, _, _, _, content in _SEMANTIC_KITTI:
        share[raw_to_label[raw]] += content
    rows = {raw: (raw_name, color) for raw, raw_name, _, color, _ in _SEMANTIC_KITTI}
    classes = tuple(
        LabelClass(rows[raw][0], rows[raw][1], raw, ignored=label == 0, frequency=share[label])
        for label, raw in enumerate(raw_ids)
    )
    return LabelSet(name, classes, raw_to_label)


SEMANTIC_KITTI = _semantic_kitti("semantic-kitti", {}, _CLASS_RAW_IDS)
"""Single-scan task of SemanticKITTI: 19 classes and 'unlabeled'."""

SEMANTIC_KITTI_MULTISCAN = _semantic_kitti("semantic-kitti-all", _MOVING, _CLASS_RAW_IDS + _MOVING_RAW_IDS)
"""Multi-scan task of SemanticKITTI: moving cars, persons, ... are separate classes (26 labels)."""
