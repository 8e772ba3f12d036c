"""The points of a scan and their labels go in, changed ones come out; before projection, in numpy.

Each change has a probability and a range from which its strength is drawn. Everything is off by default, as in the
official release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import ProjectionConfig

Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

FAR_M = 50.0
"""Distance at which `far_dropout` is stated; the loss grows in proportion to the range."""


@dataclass(frozen=True)
class Vary:
    """A change that happens with `probability`, its strength drawn evenly from `low` to `high`."""

    probability: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"augmentation: a probability must lie in 0..1, found {self.probability}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise UserError(f"augmentation: low must be at most high and both finite, found {self.low} and {self.high}")

    def draw(self, rng: np.random.Generator) -> float | None:
        """The strength, or None where the change does not happen this time."""
        happens, strength = rng.random(), rng.random()
        return self.low + (self.high - self.low) * strength if happens < self.probability else None


@dataclass(frozen=True)
class Augmentation:
    """The changes, in the order in which they are made.

    mix_sector_deg: a sector of this width is taken from another scan, as in PolarMix. paste_objects: this many objects
    of rare classes are put onto the ground (rounded). yaw_deg: turn about the vertical axis. flip_probability: mirror
    left and right. scale: factor of all coordinates. shift_m: move the sensor sideways, in a random direction.
    lift_m: move all points up. jitter_m: standard deviation of a shift of every point along its ray.
    sector_dropout_deg: a sector of this width is lost. beam_dropout: share of the rows lost. point_dropout: share of
    the points lost. far_dropout: share of the points lost at 50 m, in proportion to the range elsewhere.
    remission_scale, remission_shift: factor and summand of the remission. remission_drop_probability: all remission
    becomes 0. fov_shift_deg: upper and lower edge of the field of view are each moved, so that rows mean other angles.
    fov_up_shift_deg, fov_down_shift_deg: one of them is moved further, up where positive, as for sensors that look
    higher or lower than the model's.
    """

    mix_sector_deg: Vary = field(default_factory=Vary)
    paste_objects: Vary = field(default_factory=Vary)
    yaw_deg: Vary = field(default_factory=Vary)
    flip_probability: float = 0.0
    scale: Vary = field(default_factory=Vary)
    shift_m: Vary = field(default_factory=Vary)
    lift_m: Vary = field(default_factory=Vary)
    jitter_m: Vary = field(default_factory=Vary)
    sector_dropout_deg: Vary = field(default_factory=Vary)
    beam_dropout: Vary = field(default_factory=Vary)
    point_dropout: Vary = field(default_factory=Vary)
    far_dropout: Vary = field(default_factory=Vary)
    remission_scale: Vary = field(default_factory=Vary)
    remission_shift: Vary = field(default_factory=Vary)
    remission_drop_probability: float = 0.0
    fov_shift_deg: Vary = field(default_factory=Vary)
    fov_up_shift_deg: Vary = field(default_factory=Vary)
    fov_down_shift_deg: Vary = field(default_factory=Vary)

    def __post_init__(self) -> None:
        for name in ("flip_probability", "remission_drop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name} must lie in 0..1, found {getattr(self, name)}")
        for name in ("point_dropout", "far_dropout", "beam_dropout"):
            vary = getattr(self, name)
            if not 0 <= vary.low <= vary.high <= 1:
                raise UserError(f"augmentation: {name} is a share of the points, 0..1, found {vary.low}..{vary.high}")
        if self.scale.probability and self.scale.low <= 0:
            raise UserError(f"augmentation: scale must be above 0, found {self.scale.low}")


def move_scene(points: Points, labels: Labels, config: Augmentation, rng: np.random.Generator) -> tuple[Points, Labels]:
    """Turn, mirror, scale and shift a whole scan. The points given are not changed; (N, 4) and (N,) come out."""
    points = points.copy()
    yaw = config.yaw_deg.draw(rng)
    if yaw is not None:
        points[:, :2] = _turned(points[:, :2], math.radians(yaw))
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
    return points, labels


def disturb_points(
    points: Points, labels: Labels, config: Augmentation, projection: ProjectionConfig, rng: np.random.Generator
) -> tuple[Points, Labels]:
    """Jitter points, lose some, change the remission: what needs no look at the rest of the scan.

    points: (N, 4), changed in place. projection: gives the rows that beam dropout loses. Fewer points may come out.
    """
    jitter = config.jitter_m.draw(rng)
    distance = np.sqrt(np.einsum("ij,ij->i", points[:, :3], points[:, :3]))
    if jitter is not None:  # along the ray: the beam's direction is known far better than the range
        along = np.float32(jitter) * rng.standard_normal(len(points), dtype=np.float32)
        points[:, :3] *= (1.0 + along / np.maximum(distance, 0.1))[:, None]
    kept = _kept(points, distance, config, projection, rng)
    if kept is not None:
        points, labels = points[kept], labels[kept]
    factor, summand = config.remission_scale.draw(rng), config.remission_shift.draw(rng)
    if factor is not None:
        points[:, 3] *= np.float32(factor)
    if summand is not None:
        points[:, 3] += np.float32(summand)
    if rng.random() < config.remission_drop_probability:
        points[:, 3] = 0.0
    return points, labels


def vary_field_of_view(
    projection: ProjectionConfig, config: Augmentation, rng: np.random.Generator
) -> ProjectionConfig:
    """The projection with both edges of its field of view moved."""
    up, down = config.fov_shift_deg.draw(rng) or 0.0, config.fov_shift_deg.draw(rng) or 0.0
    up += config.fov_up_shift_deg.draw(rng) or 0.0
    down += config.fov_down_shift_deg.draw(rng) or 0.0
    if not up and not down:
        return projection
    return replace(projection, fov_up_deg=projection.fov_up_deg + up, fov_down_deg=projection.fov_down_deg + down)


def mix_sectors(
    points: Points,
    labels: Labels,
    other: Callable[[], tuple[Points, Labels]],
    config: Augmentation,
    rng: np.random.Generator,
) -> tuple[Points, Labels]:
    """Replace a sector of a scan by the same sector of another one (PolarMix, Xiao et al. 2022).

    other: gives the other scan; called only where mixing happens.
    """
    width = config.mix_sector_deg.draw(rng)
    start = rng.uniform(-math.pi, math.pi)
    if width is None:
        return points, labels
    other_points, other_labels = other()
    inside = in_sector(points, start, math.radians(width))
    other_inside = in_sector(other_points, start, math.radians(width))
    return (
        np.concatenate((points[~inside], other_points[other_inside])),
        np.concatenate((labels[~inside], other_labels[other_inside])),
    )


def in_sector(points: Points, start: float, width: float) -> npt.NDArray[np.bool_]:
    """(N,) whether a point's azimuth lies within `width` counter-clockwise of `start`, in radians."""
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    return np.mod(azimuth - np.float32(start), np.float32(2 * math.pi)) < width


def _turned(xy: npt.NDArray[np.float32], angle: float) -> npt.NDArray[np.float32]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return np.stack((cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]), axis=1)


def _kept(
    points: Points,
    distance: npt.NDArray[np.float32],
    config: Augmentation,
    projection: ProjectionConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_] | None:
    """(N,) which points remain, or None where all do."""
    sector, start = config.sector_dropout_deg.draw(rng), rng.uniform(-math.pi, math.pi)
    beams = config.beam_dropout.draw(rng)
    share = config.point_dropout.draw(rng)
    far = config.far_dropout.draw(rng)
    kept = None
    if sector is not None:
        kept = ~in_sector(points, start, math.radians(sector))
    if beams is not None:
        lost = rng.random(projection.height) < beams
        hit = lost[_rows(points, distance, projection)]
        kept = ~hit if kept is None else kept & ~hit
    if share is not None or far is not None:
        probability = np.float32(share or 0.0) + np.float32((far or 0.0) / FAR_M) * distance
        stays = rng.random(len(points), dtype=np.float32) >= probability
        kept = stays if kept is None else kept & stays
    return kept


def _rows(points: Points, distance: npt.NDArray[np.float32], projection: ProjectionConfig) -> npt.NDArray[np.int64]:
    elevation = np.degrees(np.arcsin(np.clip(points[:, 2] / np.maximum(distance, 1e-6), -1.0, 1.0)))
    span = projection.fov_up_deg - projection.fov_down_deg
    row = (projection.fov_up_deg - elevation) / span * projection.height
    return np.clip(row, 0, projection.height - 1).astype(np.int64)
