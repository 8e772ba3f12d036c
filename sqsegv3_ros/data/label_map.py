# SPDX-License-Identifier: Apache-2.0
"""Label maps: YAML files that fold, rename, recolour or drop the classes of a model; docs/outputs.md has the format."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelClass, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import expand_home, read_yaml, share_folders

_KEYS = ("name", "color", "from", "optional")


@dataclass(frozen=True, eq=False)
class FoldedLabels:
    """A label map applied to a label set.

    Attributes:
        labels: The new classes. Their raw ids are those of their first members, so that .label files with folded labels
            are still files of the data set.
        table: (C,) new label by label of the original set.
    """

    labels: LabelSet
    table: npt.NDArray[Any]

    def fold(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert labels of the original set (integers of any shape) to new ones.

        Raises:
            UserError: A label is not in the original set.
        """
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.table):
            raise UserError(
                f"labels must be in 0..{len(self.table) - 1} for label map '{self.labels.name}', found "
                f"{int(labels.min())}..{int(labels.max())}"
            )
        return self.table[labels]


@dataclass(frozen=True)
class MappedClass:
    """A class of a label map.

    Attributes:
        name: Its name.
        color: RGB, 0..255; None for that of the first member.
        members: Classes that are folded into it.
        optional: Further members, which a model may lack.
    """

    name: str
    color: tuple[int, int, int] | None
    members: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelMap:
    """New classes made of those of a model.

    Attributes:
        name: Name of the map.
        classes: The new classes by label. The first is that of points without a label.
        dropped: Classes whose points become unlabeled.
    """

    name: str
    classes: tuple[MappedClass, ...]
    dropped: tuple[str, ...] = ()

    def apply(self, labels: LabelSet) -> FoldedLabels:
        """Apply the map to a label set.

        Args:
            labels: The classes of a model or data set.

        Raises:
            UserError: A class is unknown, folded twice or not mentioned, or the class of unlabeled points is not in the
                first one.
        """
        table = np.full(len(labels), -1, np.int64)
        names, where = list(labels.names), f"label map '{self.name}' for label set '{labels.name}'"
        folded: dict[str, str] = {}  # new class by old one
        groups = [(into.name, label, into.members, into.optional) for label, into in enumerate(self.classes)]
        members: list[list[int]] = [[] for _ in self.classes]
        for into, label, required, optional in [*groups, ("drop", 0, self.dropped, ())]:
            for name in (*required, *optional):
                if name in folded:
                    raise UserError(f"{where}: class '{name}' is folded twice, into '{folded[name]}' and '{into}'")
                folded[name] = into
                if name not in names:
                    if name in optional:
                        continue
                    raise UserError(f"{where}: {into}: unknown class '{name}'{_suggestion(name, names)}")
                table[names.index(name)] = label
                members[label].append(names.index(name))
        missing = [name for name, new in zip(names, table, strict=True) if new < 0]
        if missing:
            raise UserError(
                f"{where}: unmapped classes {', '.join(missing)}; add each to the `from` of a class or to `drop`"
            )
        if table[0] != 0:
            raise UserError(
                f"{where}: class '{names[0]}', which points without a label have, must be in the first class "
                f"'{self.classes[0].name}', found in '{folded[names[0]]}'"
            )
        classes = tuple(self._class(label, labels, members[label]) for label in range(len(self.classes)))
        raw_to_label = {raw: int(table[label]) for raw, label in labels.raw_to_label.items()}
        target = LabelSet(self.name, classes, raw_to_label)
        return FoldedLabels(target, table.astype(target.dtype))

    def _class(self, label: int, labels: LabelSet, members: list[int]) -> LabelClass:
        """Make a class of its members. Without any, it is never predicted and not evaluated."""
        mapped, originals = self.classes[label], [labels.classes[member] for member in members]
        shares = [c.frequency for c in originals if c.frequency is not None]
        return LabelClass(
            mapped.name,
            mapped.color or (originals[0].color if originals else (0, 0, 0)),
            originals[0].raw_id if originals else 0,
            ignored=label == 0 or all(c.ignored for c in originals),
            frequency=sum(shares) if shares and len(shares) == len(originals) else None,
        )

    @classmethod
    def from_dict(cls, data: Any, name: str) -> LabelMap:
        """Create from parsed YAML.

        Args:
            data: A mapping with `classes`, a list of mappings with `name` and, optionally, `color` (RGB), `from` (names
                of classes; default: the class of that name) and `optional`; and, optionally, `drop`, names of classes.
            name: Name of the map.

        Raises:
            UserError: An entry is missing or malformed.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("classes"), list):
            raise UserError(
                "expected a mapping with a list `classes`, such as classes: [{name: car, from: [car, truck]}]"
            )
        for key in data:
            _require_key(key, ("classes", "drop"), "label map")
        classes = tuple(_mapped_class(entry) for entry in data["classes"])
        names = [c.name for c in classes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise UserError(f"two classes have the name '{twice[0]}'; fold all members into one")
        return cls(name, classes, _names(data.get("drop", []), "drop"))

    @classmethod
    def from_yaml(cls, path: Path) -> LabelMap:
        """Read a file; its stem is the map's name. Raises UserError, naming the file, if it cannot be used."""
        data = read_yaml(path, "label map")
        try:
            return cls.from_dict(data, path.stem)
        except UserError as error:
            raise UserError(f"label map {path}: {error}") from error


def shipped_label_maps() -> dict[str, Path]:
    """Find the label maps of the package, by name."""
    folders = (folder / "config" / "label_maps" for folder in share_folders())
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_label_map(given: str) -> LabelMap:
    """Load a label map.

    Args:
        given: A path, or the name of a shipped one.

    Raises:
        UserError: No label map has this name, or the file cannot be used.
    """
    shipped = shipped_label_maps()
    if given in shipped:
        return LabelMap.from_yaml(shipped[given])
    path = expand_home(given)
    if not path.is_file() and not path.suffix and "/" not in given:
        raise UserError(f"label map '{given}' not found{_suggestion(given, list(shipped), 'shipped label maps')}")
    return LabelMap.from_yaml(path)


def _mapped_class(entry: Any) -> MappedClass:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise UserError(f"classes: expected a mapping with a `name`, found {entry!r}")
    name = entry["name"]
    for key in entry:
        _require_key(key, _KEYS, f"class '{name}'")
    color = entry.get("color")
    if color is not None:
        if not isinstance(color, list) or len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
            raise UserError(f"class '{name}': color must be three numbers 0..255 (RGB), found {color!r}")
        color = (color[0], color[1], color[2])
    members = _names(entry.get("from", [name]), f"class '{name}': from")
    return MappedClass(name, color, members, _names(entry.get("optional", []), f"class '{name}': optional"))


def _names(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{what} must be a list of class names, found {values!r}")
    return tuple(values)


def _require_key(key: Any, allowed: Collection[str], what: str) -> None:
    if key not in allowed:
        raise UserError(f"{what}: unknown key '{key}'{_suggestion(str(key), list(allowed), 'keys')}")


def _suggestion(name: str, known: list[str], kind: str = "classes") -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean '{similar[0]}'?" if similar else "") + f" ({kind}: {', '.join(known) or 'none'})"
