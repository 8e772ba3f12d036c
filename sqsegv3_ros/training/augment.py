# SPDX-License-Identifier: Apache-2.0
"""Augmentation of labelled points before projection, in numpy.

Each change has a probability and a range of magnitudes. All are off by default, as in the official release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import require
from sqsegv3_ros.inference.range_image import ProjectionConfig

Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

FAR_M = 50.0
"""Range to which `far_dropout` refers; the share grows in proportion to the range."""


@dataclass(frozen=True)
class RandomMagnitude:
    """A change applied with some probability, its magnitude drawn uniformly from a range.

    Attributes:
        probability: Probability that the change is applied, 0..1.
        low: Smallest magnitude.
        high: Largest magnitude.
    """

    probability: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, "augmentation: probability", "in 0..1", self.probability)
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        require(
            finite and self.low <= self.high, "augmentation: low and high", "finite, low <= high", (self.low, self.high)
        )

    def draw(self, rng: np.random.Generator) -> float | None:
        """Draw the magnitude; None if the change is not applied this time."""
        applied, magnitude = rng.random(), rng.random()
        return self.low + (self.high - self.low) * magnitude if applied < self.probability else None


@dataclass(frozen=True)
class Augmentation:
    """Augmentation settings.

    `transform_scene`, `mix_scans`, `ObjectBank.paste`, `perturb_points` and `perturb_field_of_view` apply them, in this
    order.

    Attributes:
        mix_sector_deg: Replace a sector of this width by that of another scan, as in PolarMix.
        mix_bands: Divide the field of view into this many bands of elevation (rounded) and replace every second one by
            that of another scan, as in LaserMix; not applied to scans with a mixed sector.
        paste_objects: Paste this many objects of rare classes onto the ground (rounded).
        yaw_deg: Rotate about the vertical axis.
        flip_probability: Probability of a left-right flip.
        scale: Scale all coordinates by this factor.
        shift_m: Shift the sensor horizontally in a random direction.
        lift_m: Shift all points up.
        material_scale: Scale the remission of each class by its own factor, 1 / magnitude to magnitude, so that the
            network does not rely on the materials of simulated scans.
        jitter_m: Standard deviation of the noise along the ray of each point.
        sector_dropout_deg: Drop a sector of this width.
        beam_dropout: Share of the rows to drop.
        point_dropout: Share of the points to drop.
        far_dropout: Share of the points to drop at 50 m, in proportion to the range elsewhere.
        remission_scale: Scale the remission by this factor.
        remission_shift: Add this to the remission.
        remission_drop_probability: Probability that all remission is set to 0.
        fov_shift_deg: Shift the upper and the lower edge of the field of view, each by its own draw.
        fov_up_shift_deg: Shift the upper edge further, up if positive, for sensors that look higher or lower.
        fov_down_shift_deg: Shift the lower edge further, up if positive.
    """

    mix_sector_deg: RandomMagnitude = field(default_factory=RandomMagnitude)
    mix_bands: RandomMagnitude = field(default_factory=RandomMagnitude)
    paste_objects: RandomMagnitude = field(default_factory=RandomMagnitude)
    yaw_deg: RandomMagnitude = field(default_factory=RandomMagnitude)
    flip_probability: float = 0.0
    scale: RandomMagnitude = field(default_factory=RandomMagnitude)
    shift_m: RandomMagnitude = field(default_factory=RandomMagnitude)
    lift_m: RandomMagnitude = field(default_factory=RandomMagnitude)
    material_scale: RandomMagnitude = field(default_factory=RandomMagnitude)
    jitter_m: RandomMagnitude = field(default_factory=RandomMagnitude)
    sector_dropout_deg: RandomMagnitude = field(default_factory=RandomMagnitude)
    beam_dropout: RandomMagnitude = field(default_factory=RandomMagnitude)
    point_dropout: RandomMagnitude = field(default_factory=RandomMagnitude)
    far_dropout: RandomMagnitude = field(default_factory=RandomMagnitude)
    remission_scale: RandomMagnitude = field(default_factory=RandomMagnitude)
    remission_shift: RandomMagnitude = field(default_factory=RandomMagnitude)
    remission_drop_probability: float = 0.0
    fov_shift_deg: RandomMagnitude = field(default_factory=RandomMagnitude)
    fov_up_shift_deg: RandomMagnitude = field(default_factory=RandomMagnitude)
    fov_down_shift_deg: RandomMagnitude = field(default_factory=RandomMagnitude)

    def __post_init__(self) -> None:
        for name in ("flip_probability", "remission_drop_probability"):
            require(0 <= getattr(self, name) <= 1, f"augmentation: {name}", "in 0..1", getattr(self, name))
        for name in ("point_dropout", "far_dropout", "beam_dropout"):
            low, high = getattr(self, name).low, getattr(self, name).high
            require(0 <= low <= high <= 1, f"augmentation: {name}", "a share of the points, 0..1", (low, high))
        materials = self.material_scale
        require(
            not materials.probability or materials.low >= 1, "augmentation: material_scale", "1 or more", materials.low
        )
        require(not self.scale.probability or self.scale.low > 0, "augmentation: scale", "above 0", self.scale.low)


def transform_scene(
    points: Points, labels: Labels, config: Augmentation, rng: np.random.Generator
) -> tuple[Points, Labels]:
    """Rotate, flip, scale and shift a whole scan, and change its materials.

    Args:
        points: (N, 4), not changed.
        labels: (N,).
        config: Augmentation settings.
        rng: Random generator.

    Returns:
        New points (N, 4) and the labels (N,).
    """
    points = points.copy()
    yaw = config.yaw_deg.draw(rng)
    if yaw is not None:
        points[:, :2] = rotated(points[:, :2], math.radians(yaw))
    if rng.random() < config.flip_probability:
        points[:, 1] *= -1.0
    scale = config.scale.draw(rng)
    if scale is not None:
        points[:, :3] *= np.float32(scale)
    shift = config.shift_m.draw(rng)
    direction = rng.uniform(-math.pi, math.pi)
    if shift is not None:
        points[:, :2] += np.array((shift * math.cos(direction), shift * math.sin(direction)), np.float32)
    lift = config.lift_m.draw(rng)
    if lift is not None:
        points[:, 2] += np.float32(lift)
    if config.material_scale.probability:  # draws nothing otherwise, so that older recipes give the same scans
        spread = config.material_scale.draw(rng)
        factors = (spread or 1.0) ** rng.uniform(-1.0, 1.0, int(labels.max(initial=0)) + 1)
        points[:, 3] *= factors.astype(np.float32)[labels]
    return points, labels


def perturb_points(
    points: Points, labels: Labels, config: Augmentation, projection: ProjectionConfig, rng: np.random.Generator
) -> tuple[Points, Labels]:
    """Jitter points, drop some of them and change the remission.

    Args:
        points: (N, 4), changed in place.
        labels: (N,).
        config: Augmentation settings.
        projection: Projection whose image rows beam dropout drops.
        rng: Random generator.

    Returns:
        Remaining points (M, 4) and labels (M,).
    """
    jitter = config.jitter_m.draw(rng)
    distance = np.sqrt(np.einsum("ij,ij->i", points[:, :3], points[:, :3]))
    if jitter is not None:  # along the ray: a sensor measures the direction far better than the range
        along = np.float32(jitter) * rng.standard_normal(len(points), dtype=np.float32)
        points[:, :3] *= (1.0 + along / np.maximum(distance, 0.1))[:, None]
    keep = _keep_mask(points, distance, config, projection, rng)
    if keep is not None:
        points, labels = points[keep], labels[keep]
    factor, summand = config.remission_scale.draw(rng), config.remission_shift.draw(rng)
    if factor is not None:
        points[:, 3] *= np.float32(factor)
    if summand is not None:
        points[:, 3] += np.float32(summand)
    if rng.random() < config.remission_drop_probability:
        points[:, 3] = 0.0
    return points, labels


def perturb_field_of_view(
    projection: ProjectionConfig, config: Augmentation, rng: np.random.Generator
) -> ProjectionConfig:
    """Shift both edges of the field of view of a projection."""
    up, down = config.fov_shift_deg.draw(rng) or 0.0, config.fov_shift_deg.draw(rng) or 0.0
    up += config.fov_up_shift_deg.draw(rng) or 0.0
    down += config.fov_down_shift_deg.draw(rng) or 0.0
    if not up and not down:
        return projection
    return replace(projection, fov_up_deg=projection.fov_up_deg + up, fov_down_deg=projection.fov_down_deg + down)


def mix_scans(
    points: Points,
    labels: Labels,
    other: Callable[[], tuple[Points, Labels]],
    config: Augmentation,
    projection: ProjectionConfig,
    rng: np.random.Generator,
) -> tuple[Points, Labels]:
    """Replace a sector (PolarMix, Xiao et al. 2022) or bands (LaserMix, Kong et al. 2023) by those of another scan.

    Args:
        points: (N, 4).
        labels: (N,).
        other: Reads the other scan; called only if the scans are mixed.
        config: Augmentation settings.
        projection: Projection whose field of view the bands divide.
        rng: Random generator.

    Returns:
        Points (M, 4) and labels (M,).
    """
    width = config.mix_sector_deg.draw(rng)
    start = rng.uniform(-math.pi, math.pi)
    # draws nothing if it is off, so that older recipes give the same scans
    bands = config.mix_bands.draw(rng) if config.mix_bands.probability and width is None else None
    if width is None and bands is None:
        return points, labels
    other_points, other_labels = other()
    if width is not None:
        inside, other_inside = (in_sector(p, start, math.radians(width)) for p in (points, other_points))
    else:
        count, first = max(2, round(bands or 0)), int(rng.integers(2))
        inside, other_inside = (in_bands(p, count, first, projection) for p in (points, other_points))
    return (
        np.concatenate((points[~inside], other_points[other_inside])),
        np.concatenate((labels[~inside], other_labels[other_inside])),
    )


def in_bands(points: Points, count: int, first: int, projection: ProjectionConfig) -> npt.NDArray[np.bool_]:
    """Find the points (N, 4) in every second of `count` bands of elevation, from band `first` down."""
    distance = np.sqrt(np.einsum("ij,ij->i", points[:, :3], points[:, :3]))
    return _rows(points, distance, projection) * count // projection.height % 2 == first


def in_sector(points: Points, start: float, width: float) -> npt.NDArray[np.bool_]:
    """Find the points of a sector.

    Args:
        points: (N, 4).
        start: Azimuth of the right edge, radians.
        width: Width counter-clockwise from there, radians.

    Returns:
        (N,) bool.
    """
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    return np.mod(azimuth - np.float32(start), np.float32(2 * math.pi)) < width


def rotated(xy: npt.NDArray[np.float32], angle: float) -> npt.NDArray[np.float32]:
    """Rotate points (N, 2) counter-clockwise by an angle in radians."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return np.stack((cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]), axis=1)


def _keep_mask(
    points: Points,
    distance: npt.NDArray[np.float32],
    config: Augmentation,
    projection: ProjectionConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_] | None:
    """Draw which points (N,) survive the dropouts; None if all do."""
    sector, start = config.sector_dropout_deg.draw(rng), rng.uniform(-math.pi, math.pi)
    beams = config.beam_dropout.draw(rng)
    share = config.point_dropout.draw(rng)
    far = config.far_dropout.draw(rng)
    masks = []
    if sector is not None:
        masks.append(~in_sector(points, start, math.radians(sector)))
    if beams is not None:
        dropped_rows = rng.random(projection.height) < beams
        masks.append(~dropped_rows[_rows(points, distance, projection)])
    if share is not None or far is not None:
        probability = np.float32(share or 0.0) + np.float32((far or 0.0) / FAR_M) * distance
        masks.append(rng.random(len(points), dtype=np.float32) >= probability)
    return np.logical_and.reduce(masks) if masks else None


def _rows(points: Points, distance: npt.NDArray[np.float32], projection: ProjectionConfig) -> npt.NDArray[np.int64]:
    elevation = np.degrees(np.arcsin(np.clip(points[:, 2] / np.maximum(distance, 1e-6), -1.0, 1.0)))
    span = projection.fov_up_deg - projection.fov_down_deg
    row = (projection.fov_up_deg - elevation) / span * projection.height
    return np.clip(row, 0, projection.height - 1).astype(np.int64)
