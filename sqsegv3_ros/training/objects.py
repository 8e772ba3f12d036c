# SPDX-License-Identifier: Apache-2.0
"""Objects of rare classes, collected from scans with instance ids and pasted into other scans."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.training.augment import Labels, Points, rotated

MIN_POINTS = 30
GROUND_RADIUS_M = 1.0
GROUND_POINTS = 5
OBSTACLE_HEIGHT_M = 0.4  # points higher above the ground block a place
ATTEMPTS = 8
MAX_RANGE_M = 40.0


class ObjectBank:
    """Objects by class, drawn class first so that rare classes are pasted as often as the others.

    Args:
        classes: Labels whose instances are collected.
        ground: Labels of the ground on which objects stand.
        per_class: Largest number of objects per class.
    """

    def __init__(self, classes: Sequence[int], ground: Sequence[int], per_class: int = 500) -> None:
        self.classes = tuple(classes)
        self.ground = np.array(sorted(ground))
        self.per_class = per_class
        self.objects: dict[int, list[Points]] = {}

    def add(self, points: Points, labels: Labels, instances: npt.NDArray[np.uint16]) -> None:
        """Collect the objects of one scan: points of one class that share an instance id other than 0."""
        for label in self.classes:
            of_class = np.flatnonzero((labels == label) & (instances > 0))
            samples = self.objects.get(label, [])
            for instance in np.unique(instances[of_class]):
                chosen = points[of_class[instances[of_class] == instance]]
                near = len(chosen) >= MIN_POINTS and np.hypot(*np.median(chosen[:, :2], axis=0)) <= MAX_RANGE_M
                if near and len(samples) < self.per_class:
                    samples.append(chosen)
            if samples:
                self.objects[label] = samples

    def paste(
        self,
        points: Points,
        labels: Labels,
        count: int,
        rng: np.random.Generator,
        window: tuple[float, float] | None = None,
    ) -> tuple[Points, Labels]:
        """Paste objects onto free ground, at their recorded distance so that their point density stays right.

        The projection resolves occlusion. An object for which no free place is found is left out.

        Args:
            points: (N, 4).
            labels: (N,).
            count: Number of objects.
            rng: Random generator.
            window: Start and width of the sector to paste into, radians; None for the whole scan.

        Returns:
            Points (M, 4) and labels (M,).
        """
        present = sorted(self.objects)
        if not present:
            return points, labels
        for _ in range(count):
            label = present[rng.integers(len(present))]
            samples = self.objects[label]
            chosen = samples[rng.integers(len(samples))]
            placed = self._place(chosen, points, labels, rng, window)
            if placed is not None:
                points = np.concatenate((points, placed))
                labels = np.concatenate((labels, np.full(len(placed), label, dtype=labels.dtype)))
        return points, labels

    def _place(
        self,
        chosen: Points,
        points: Points,
        labels: Labels,
        rng: np.random.Generator,
        window: tuple[float, float] | None,
    ) -> Points | None:
        centre = chosen[:, :2].mean(axis=0)
        radius = float(np.hypot(*(chosen[:, :2] - centre).T).max())
        own_azimuth = math.atan2(centre[1], centre[0])
        start, width = window or (-math.pi, 2 * math.pi)
        for _ in range(ATTEMPTS):
            turn = start + width * rng.random() - own_azimuth
            x, y = rotated(centre[None], turn)[0]
            reach = max(radius, GROUND_RADIUS_M)
            near = np.flatnonzero((np.abs(points[:, 0] - x) < reach) & (np.abs(points[:, 1] - y) < reach))
            on_ground = near[np.isin(labels[near], self.ground)]
            if len(on_ground) < GROUND_POINTS:
                continue
            height = float(np.median(points[on_ground, 2]))
            if np.any(points[near, 2] > height + OBSTACLE_HEIGHT_M):
                continue
            placed = chosen.copy()
            placed[:, :2] = rotated(placed[:, :2], turn)
            placed[:, 2] += np.float32(height - chosen[:, 2].min())
            return placed
        return None
