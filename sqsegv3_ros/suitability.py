"""Does a scan look like those that the model learned from? Points go in, remarks on what does not fit come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.projection import Normalization, ProjectionConfig

_EVERY = 16  # points looked at: enough for percentiles, too few to cost anything
_MIN_POINTS = 200


def remarks(
    points: npt.NDArray[np.float32],
    rings: npt.NDArray[Any] | None,
    projection: ProjectionConfig,
    normalization: Normalization,
) -> tuple[str, ...]:
    """What about a scan does not fit, a sentence each that names what was found, expected, and the setting to look at.

    points: (N, 4) x, y, z in metres, remission after scaling. rings: (N,) ring numbers where the cloud has them.
    """
    sample = points[::_EVERY]
    distance = np.sqrt((sample[:, :3].astype(np.float64) ** 2).sum(1))
    good = np.isfinite(distance) & (distance > 0)
    if good.sum() < _MIN_POINTS:
        return ()
    found = [_intensity(sample[good, 3], normalization), _field_of_view(sample[good, 2] / distance[good], projection)]
    if rings is not None and projection.needs_rings:
        found.append(_rings(rings, projection))
    return tuple(remark for remark in found if remark)


def _intensity(remission: npt.NDArray[np.float32], normalization: Normalization) -> str:
    mean, std = normalization.means[4], normalization.stds[4]
    remission = remission[np.isfinite(remission)]
    if not len(remission):
        return "no intensity is finite; check intensity_field"
    typical = float(np.median(remission))
    if typical > mean + 5 * std:
        return (
            f"intensity does not fit: its median is {typical:.3g}, the model learned from about {mean:g} +- {std:g}; "
            "set intensity_scale (1/255 = 0.00392 for drivers that give 0..255)"
        )
    if float(np.percentile(remission, 99)) < mean / 10:
        return (
            f"intensity does not fit: it hardly exceeds {np.percentile(remission, 99):.3g}, "
            f"the model learned from about {mean:g} +- {std:g}; set intensity_scale or intensity_field"
        )
    return ""


def _field_of_view(sine: npt.NDArray[np.float64], projection: ProjectionConfig) -> str:
    elevation = np.degrees(np.arcsin(np.clip(sine, -1, 1)))
    low, high = np.percentile(elevation, [1, 99])
    margin = 1.0
    outside = np.mean((elevation > projection.fov_up_deg + margin) | (elevation < projection.fov_down_deg - margin))
    span = projection.fov_up_deg - projection.fov_down_deg
    if outside > 0.05:
        return (
            f"field of view does not fit: {100 * outside:.0f} % of the points lie outside "
            f"{projection.fov_down_deg:g}..{projection.fov_up_deg:g} deg (found {low:.1f}..{high:.1f}); "
            "set projection.fov_up_deg and projection.fov_down_deg"
        )
    if high - low < 0.5 * span and not projection.needs_rings:
        return (
            f"field of view does not fit: the points fill {low:.1f}..{high:.1f} deg of "
            f"{projection.fov_down_deg:g}..{projection.fov_up_deg:g}; "
            "set projection.fov_up_deg and projection.fov_down_deg"
        )
    return ""


def _rings(rings: npt.NDArray[Any], projection: ProjectionConfig) -> str:
    expected = projection.ring_count or projection.height
    highest = int(rings.max(initial=-1))
    if highest >= expected or highest < expected // 2:
        return f"rings do not fit: the highest is {highest}, expected {expected - 1}; set projection.ring_count"
    return ""
