# SPDX-License-Identifier: Apache-2.0
"""Input checks: whether a scan resembles those that the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.pointcloud2 import CloudSettings

# Every 17th point is enough for percentiles and costs little. Odd, so that a cloud with the returns of 16, 32, 64 or
# 128 lasers in turn shows all of them.
_EVERY = 17
_MIN_POINTS = 200
_LEVEL = Extrinsics()
_AS_STORED = CloudSettings()
# (intensity_scale, intensity_exponent) for 0..1, 0..255, calibrated reflectivity (100: white wall) and 0..65535
_USUAL_SCALES = ((1.0, 1.0), (1 / 255, 1.0), (0.085, 0.5), (1 / 65535, 1.0))
_EDGE_DEG = 1.0  # outside the field of view by this much, a point still fits into the edge row
_OUTSIDE = 0.05  # share of points outside above which a warning is due
_HEIGHT_M = 0.35  # the ground of streets rarely deviates more


@dataclass(frozen=True)
class Expected:
    """What the model expects of a scan.

    Attributes:
        projection: How points become an image.
        normalization: Statistics of the training data.
        extrinsics: Of the sensor.
        model_height_m: Height of the sensor of the training data, metres; None if unknown.
        cloud: How the cloud's intensity became the remission.
    """

    projection: ProjectionConfig
    normalization: Normalization
    extrinsics: Extrinsics = _LEVEL
    model_height_m: float | None = None
    cloud: CloudSettings = _AS_STORED


def check_input(
    points: npt.NDArray[np.float32],
    rings: npt.NDArray[Any] | None,
    expected: Expected,
    mask: Tensor | None = None,
) -> tuple[str, ...]:
    """Check a scan against what the model expects.

    Args:
        points: (N, 4) x, y, z in metres in the sensor frame, remission after scaling.
        rings: (N,) ring numbers, if the cloud has them.
        expected: What the model expects.
        mask: (H, W) bool, the pixels of the image that have a point.

    Returns:
        A sentence for each mismatch: what was found, what was expected, which setting to look at.
    """
    projection = expected.projection
    sample = expected.extrinsics.level(torch.from_numpy(points[::_EVERY].copy())).numpy()
    xyz = sample[:, :3].astype(np.float64)
    distance = np.sqrt((xyz**2).sum(1))
    good = np.isfinite(distance) & (distance > 0)
    if good.sum() < _MIN_POINTS:
        return ()
    elevation = np.degrees(np.arcsin(np.clip(xyz[good, 2] / distance[good], -1, 1)))
    found = [_intensity(sample[good, 3], expected), _field_of_view(elevation, projection)]
    if rings is not None and (projection.needs_rings or projection.ring_count):
        found.append(_rings(rings[::_EVERY][good], elevation, projection))
    elif not found[-1]:
        found.append(_beams(elevation, projection))
    if mask is not None:
        found.append(_columns(mask))
    found.append(_height(xyz[good], expected))
    return tuple(warning for warning in found if warning)


def _intensity(remission: npt.NDArray[np.float32], expected: Expected) -> str:
    mean, std = expected.normalization.means[4], expected.normalization.stds[4]
    remission = remission[np.isfinite(remission)]
    if not len(remission):
        return "no intensity is finite; check intensity_fields"
    typical, high = np.percentile(remission, [50, 99])
    found = _misfit(typical, high, mean, std)
    if not found:
        return ""
    help_text = _suggested_scale(remission, expected) or "set intensity_scale, intensity_exponent or intensity_fields"
    return f"intensity does not fit: {found}, the model was trained with about {mean:g} +- {std:g}; {help_text}"


def _misfit(typical: float, high: float, mean: float, std: float) -> str:
    """Describe how a remission with this median and 99th percentile differs from the training data."""
    if typical > mean + 3 * std:
        return f"its median is {typical:.3g}"
    return f"it hardly exceeds {high:.3g}" if high < mean / 3 else ""


def _suggested_scale(remission: npt.NDArray[np.float32], expected: Expected) -> str:
    """The common scale with which the intensity fits best, if any fits."""
    mean, std = expected.normalization.means[4], expected.normalization.stds[4]
    cloud = expected.cloud
    intensity = (np.maximum(remission, 0) / cloud.intensity_scale) ** (1 / cloud.intensity_exponent)
    percentiles = np.percentile(intensity, [50, 99])
    distances: dict[tuple[float, float], float] = {}
    for scale, exponent in _USUAL_SCALES:
        typical, high = scale * percentiles**exponent
        if not _misfit(typical, high, mean, std):
            distances[scale, exponent] = abs(typical - mean)
    if not distances:
        return ""
    scale, exponent = min(distances, key=lambda pair: distances[pair])
    return f"values reach {intensity.max():.3g}, set intensity_scale: {scale:.6g} and intensity_exponent: {exponent:g}"


def _field_of_view(elevation: npt.NDArray[np.float64], projection: ProjectionConfig) -> str:
    up, down = projection.fov_up_deg, projection.fov_down_deg
    low, high = np.percentile(elevation, [1, 99])
    outside = np.mean((elevation > up + _EDGE_DEG) | (elevation < down - _EDGE_DEG))
    if outside > _OUTSIDE:
        found = f"{100 * outside:.0f} % of the points are outside {down:g}..{up:g} deg (found {low:.1f}..{high:.1f})"
    elif high - low < 0.35 * (up - down):  # less than what is left of it in an open field
        found = f"the points fill {low:.1f}..{high:.1f} deg of {down:g}..{up:g}"
    else:
        return ""
    return f"field of view does not fit: {found}; set projection.fov_up_deg and projection.fov_down_deg"


def _rings(rings: npt.NDArray[Any], elevation: npt.NDArray[np.float64], projection: ProjectionConfig) -> str:
    expected = projection.ring_count or projection.height
    rings = rings.astype(np.int64)
    if np.mean((rings < 0) | (rings >= expected)) > 0.01:
        return f"rings do not fit: found {rings.min()}..{rings.max()}, expected 0..{expected - 1}; {_RING_HELP}"
    seen = len(np.unique(rings))
    low, high = np.percentile(elevation, [1, 99])
    # beams without a return, such as those into the sky, say nothing about the sensor
    if seen < 0.55 * expected and high - low > 0.52 * (projection.fov_up_deg - projection.fov_down_deg):
        return f"rings do not fit: found {seen} of {expected} over the whole field of view; {_RING_HELP}"
    if projection.needs_rings and seen > 2:
        upwards = float(np.corrcoef(rings, elevation)[0, 1])
        if projection.rows == "ring_from_top":
            upwards = -upwards
        if upwards < 0.5:
            order = "the other way round" if upwards < -0.5 else "not by elevation"
            return f"rings do not fit: they are numbered {order}; set projection.rows"
    return ""


_RING_HELP = "set projection.ring_count, and the field of view with it"


def _beams(elevation: npt.NDArray[np.float64], projection: ProjectionConfig) -> str:
    """Too few beams leave rows empty between them; for clouds without ring numbers."""
    if projection.needs_rings:
        return ""
    bounds = (projection.fov_down_deg, projection.fov_up_deg)
    count, _ = np.histogram(elevation, projection.height, bounds)
    used = np.flatnonzero(count > 0.1 * count.sum() / projection.height)
    if len(used) < 2:
        return ""
    seen = np.abs(np.arange(used[0], used[-1] + 1)[:, None] - used).min(1) <= projection.fill_rows
    if seen.mean() > 0.6:
        return ""
    return (
        f"beams do not fit: {100 * (1 - seen.mean()):.0f} % of the image's rows between them are empty; "
        "set projection.height or projection.fill_rows"
    )


def _columns(mask: Tensor) -> str:
    """In an image with more columns than the sensor, few pixels with a point have a neighbour with one."""
    left, right = mask[:, :-1], mask[:, 1:]
    share = float((left & right).sum() / left.sum().clamp_min(1))
    if share > 0.4:
        return ""
    return (
        f"columns do not fit: only {100 * share:.0f} % of the pixels with a point have one beside them; "
        "set projection.width to no more than the columns of one turn of the sensor"
    )


def _height(xyz: npt.NDArray[np.float64], expected: Expected) -> str:
    ground = ground_height(xyz) if expected.model_height_m else None
    if ground is None or expected.model_height_m is None:
        return ""
    height, source = expected.model_height_m, "the model was trained with"
    if expected.extrinsics.height_m not in (None, height):
        height, source = expected.extrinsics.height_m, "the extrinsics say"
    if abs(ground - height) <= _HEIGHT_M:
        return ""
    return (
        f"height does not fit: the ground appears {ground:.1f} m below the sensor, {source} {height:g} m; "
        "set extrinsics.height_m, or correct the transform to base_frame"
    )


def ground_height(xyz: npt.NDArray[np.float64]) -> float | None:
    """Estimate the height of a sensor above the ground, which is where most points below it are.

    Args:
        xyz: (N, 3) points of a sample of one scan, metres in a level frame.

    Returns:
        Metres; None if too few points are below, or at too many heights.
    """
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    # neither the vehicle itself nor what stands in the way of nearly level beams
    below = xyz[(distance > 3) & (distance < 20) & (xyz[:, 2] < -0.1 * distance), 2]
    if len(below) < _MIN_POINTS // 2:
        return None
    count, edges = np.histogram(below, np.arange(-6.0, 0.0, 0.1))
    in_three_bins = np.convolve(count, [1, 1, 1], "same")
    fullest = int(in_three_bins.argmax())
    if in_three_bins[fullest] < 0.3 * len(below):
        return None
    return -float(np.median(below[np.abs(below - edges[fullest : fullest + 2].mean()) < 0.15]))
