# SPDX-License-Identifier: Apache-2.0
"""The point filter: which points of a labelled scan go into a filtered cloud.

`~/output/filtered` and `~/output/obstacles` are two of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError, require

if TYPE_CHECKING:
    from sqsegv3_ros.inference.extrinsics import Extrinsics

HEIGHT_LIMIT_M = 1000.0  # no LiDAR sees that far: a band to here has no limit
GROUND_CLASSES = (
    "road",
    "parking",
    "sidewalk",
    "other-ground",
    "terrain",
    "drivable",
    "drivable_flat",
    "non_drivable_flat",
)
"""Classes of the shipped models and label maps that are ground."""

Box = tuple[float, float, float, float, float, float]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FilterConfig:
    """What a point filter keeps.

    Attributes:
        keep_classes: Names of the classes to keep; empty: all.
        remove_classes: Names of the classes to remove.
        min_confidence: Points with a lower confidence are removed.
        class_min_confidence: The same by class, instead of `min_confidence`.
        ego_box: x, y, z of two opposite corners of a box around the robot, metres in the cloud's frame; points inside
            are removed. A box without volume removes nothing.
        min_height_m: Lower end of the height band that is kept, metres above the ground.
        max_height_m: Upper end.
    """

    keep_classes: tuple[str, ...] = ()
    remove_classes: tuple[str, ...] = ()
    min_confidence: float = 0.0
    class_min_confidence: Mapping[str, float] = field(default_factory=dict)
    ego_box: Box = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    min_height_m: float = -HEIGHT_LIMIT_M
    max_height_m: float = HEIGHT_LIMIT_M

    def __post_init__(self) -> None:
        for name, value in [("", self.min_confidence), *self.class_min_confidence.items()]:
            require(0 <= value <= 1, f"min_confidence{f' of {name}' if name else ''}", "in 0..1", value)
        require(len(self.ego_box) == 6, "ego_box", "6 numbers (x, y, z of two opposite corners)", list(self.ego_box))
        if not self.min_height_m < self.max_height_m:
            raise UserError(
                f"min_height_m must be less than max_height_m, found {self.min_height_m:g} and {self.max_height_m:g}"
            )

    @property
    def needs_height(self) -> bool:
        """Whether a height band is set, which needs the sensor's height."""
        return self.min_height_m > -HEIGHT_LIMIT_M or self.max_height_m < HEIGHT_LIMIT_M


def ground_classes(labels: LabelSet) -> list[str]:
    """List the classes of a label set that are ground, by their names."""
    return [name for name in labels.names if name in GROUND_CLASSES]


def parse_class_min_confidence(entries: Collection[str]) -> dict[str, float]:
    """Parse entries such as 'person: 0.3'; empty ones are left out.

    Raises:
        UserError: An entry is not a class and a number.
    """
    result: dict[str, float] = {}
    for entry in filter(None, entries):
        name, _, text = entry.rpartition(":")
        try:
            result[name.strip()] = float(text)
        except ValueError:
            name = ""
        if not name.strip():
            raise UserError(f"class_min_confidence: expected entries such as 'person: 0.3', found '{entry}'")
    return result


class PointFilter:
    """A filter for the classes of a model. Points without a position (NaN, infinite, at the origin) are removed.

    Args:
        config: What to keep.
        labels: The classes.

    Raises:
        UserError: A class is not in the label set.
    """

    def __init__(self, config: FilterConfig, labels: LabelSet) -> None:
        self.config = config
        kept = _labels_of(config.keep_classes, labels) if config.keep_classes else range(len(labels))
        removed = _labels_of(config.remove_classes, labels)
        self._keep = np.isin(np.arange(len(labels)), np.setdiff1d(list(kept), removed))
        self._min_confidence = np.full(len(labels), config.min_confidence, np.float32)
        by_class = config.class_min_confidence
        self._min_confidence[_labels_of(by_class, labels)] = list(by_class.values())
        corners = np.array(config.ego_box, np.float32).reshape(2, 3)
        self._box = (corners.min(0), corners.max(0)) if (corners[0] != corners[1]).all() else None

    def mask(
        self,
        points: npt.NDArray[np.float32],
        labels: npt.NDArray[np.integer],
        confidences: npt.NDArray[np.float32],
        extrinsics: Extrinsics,
    ) -> Mask:
        """Select the points to keep.

        Args:
            points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
            labels: (N,) labels.
            confidences: (N,) confidences, 0..1.
            extrinsics: Rotation to level and the sensor's height, for the height band.

        Returns:
            (N,) bool.

        Raises:
            UserError: A height band is set, and the sensor's height is not known.
        """
        x, y, z = xyz = np.ascontiguousarray(points[:, :3].T)
        keep: Mask = self._keep.take(labels)
        if self._min_confidence.any():
            keep &= confidences >= self._min_confidence.take(labels)
        # the sum is NaN or infinite if a coordinate is, and 0 only at the origin
        size = np.abs(x) + np.abs(y) + np.abs(z)
        keep &= (size > 0) & (size < np.inf)
        if self._box is not None:
            inside = [(c >= low) & (c <= high) for c, low, high in zip(xyz, *self._box, strict=True)]
            keep &= ~(inside[0] & inside[1] & inside[2])
        if self.config.needs_height:
            height = self._heights(xyz, extrinsics)
            keep &= (height >= self.config.min_height_m) & (height <= self.config.max_height_m)
        return keep

    def _heights(self, xyz: npt.NDArray[np.float32], extrinsics: Extrinsics) -> npt.NDArray[np.float32]:
        """(N,) heights above the ground, metres, of (3, N) points in the sensor frame."""
        if not extrinsics.height_m:
            raise UserError("a height band needs the sensor's height above the ground, which is not known")
        return np.array(extrinsics.rotation[2], np.float32) @ xyz + np.float32(extrinsics.height_m)


def _labels_of(names: Collection[str], labels: LabelSet) -> list[int]:
    for name in names:
        if name not in labels.names:
            similar = difflib.get_close_matches(name, labels.names, n=1)
            suggestion = f"; did you mean '{similar[0]}'?" if similar else ""
            raise UserError(f"no class '{name}' in label set '{labels.name}'{suggestion} ({', '.join(labels.names)})")
    return [labels.index(name) for name in names]
