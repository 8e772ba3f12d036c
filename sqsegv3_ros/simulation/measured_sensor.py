# SPDX-License-Identifier: Apache-2.0
"""Model of a sensor measured from its own clouds: beams, columns, limits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.simulation.sensors import SensorModel

Cloud = tuple[npt.NDArray[np.float32], npt.NDArray[Any] | None]
"""Points (N, 3 or more) in metres in the sensor frame, and their (N,) rings if known."""

MAX_BEAMS = 256
EVEN_BEAMS = 64  # assumed if neither rings nor elevations tell the beams apart
NEAR_M = 1.5  # nearer points blur elevations, because beams have different origins
_BIN_DEG = 0.05
_POINTS_OF_BEAM = 40
_COLUMNS = (128, 4096)


def measure_sensor(clouds: Sequence[Cloud], height_m: float) -> SensorModel:
    """Measure a spinning LiDAR.

    Beams are the rings if the clouds have them, else the peaks of the elevations, else 64 even ones.

    Args:
        clouds: Some clouds of different places.
        height_m: Height of the sensor above the ground, metres.

    Returns:
        A model named 'measured'; what clouds do not tell (noise, beam offsets) is that of common sensors.

    Raises:
        UserError: The clouds have too few points.
    """
    parts = [_polar(points) for points, _ in clouds]
    elevation, distance = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    if len(elevation) < 1000:
        raise UserError(f"the clouds have {len(elevation)} usable points; expected those of a spinning LiDAR")
    beams = _ring_elevations(clouds)
    if beams is None:
        beams = _peaks(elevation[distance > NEAR_M])
    if beams is None:
        low, high = np.percentile(elevation, [0.5, 99.5])
        beams = np.linspace(low, high, EVEN_BEAMS)
        columns = int(max(len(part[0]) for part in parts) / EVEN_BEAMS)
    else:
        columns = _columns([(part[0], part[1]) for part in parts], beams)
    return SensorModel(
        "measured",
        tuple(np.round(np.sort(beams)[::-1], 3).tolist()),
        columns=int(np.clip(columns, *_COLUMNS)),
        max_range_m=float(np.clip(np.percentile(distance, 99.9), 40.0, 120.0).round(1)),
        min_range_m=float(np.clip(np.percentile(distance, 0.1), 0.3, 2.0).round(1)),
        mount_height_m=height_m,
        range_noise_m=0.012,
        reach_m=75.0,
    )


def _polar(points: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Elevation and azimuth in degrees and range in metres of the usable points."""
    xyz = points[:, :3].astype(np.float64)
    distance = np.sqrt((xyz**2).sum(axis=1))
    usable = np.isfinite(distance) & (distance > 0.1)
    xyz, distance = xyz[usable], distance[usable]
    return np.degrees(np.arcsin(xyz[:, 2] / distance)), np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])), distance


def _ring_elevations(clouds: Sequence[Cloud]) -> npt.NDArray[np.float64] | None:
    """Median elevation of every ring; None if the clouds have no rings, or more than a LiDAR has."""
    if any(rings is None for _, rings in clouds):
        return None
    elevation, ring = [], []
    for points, rings in clouds:
        distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
        far = np.isfinite(distance) & (distance > NEAR_M)
        elevation.append(np.degrees(np.arcsin(points[far, 2] / distance[far])))
        ring.append(np.asarray(rings)[far].astype(np.int64))
    angles, numbers = np.concatenate(elevation), np.concatenate(ring)
    known, counts = np.unique(numbers, return_counts=True)
    known = known[counts >= _POINTS_OF_BEAM]
    if not 2 <= len(known) <= MAX_BEAMS:
        return None
    return np.array([np.median(angles[numbers == number]) for number in known])


def _peaks(elevation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Peaks of the histogram of elevations; None unless they stand out, as those of single beams do."""
    if not len(elevation):
        return None
    low, high = np.percentile(elevation, [0.05, 99.95])
    edges = np.arange(low - 3 * _BIN_DEG, high + 4 * _BIN_DEG, _BIN_DEG)
    counts = np.histogram(elevation, edges)[0].astype(np.float64)
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], "same")
    top = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1
    top = top[smooth[top] > 0.04 * smooth.max()]
    if not 4 <= len(top) <= MAX_BEAMS:
        return None
    valleys = np.array([smooth[a:b].min() for a, b in pairwise(top)])
    beside = np.minimum(smooth[top[:-1]], smooth[top[1:]])
    if np.median(valleys / beside) > 0.3:
        return None
    return 0.5 * (edges[top] + edges[top + 1])


def _columns(parts: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], beams: npt.NDArray[np.float64]) -> int:
    """Firings per revolution: the usual distance in azimuth of neighbours in the beam with most points."""
    spacing = np.diff(np.sort(beams)).min() if len(beams) > 1 else 1.0
    found = []
    for elevation, azimuth in parts:
        counts = [np.count_nonzero(np.abs(elevation - beam) < spacing / 4) for beam in beams]
        chosen = np.abs(elevation - beams[int(np.argmax(counts))]) < spacing / 4
        steps = np.diff(np.sort(azimuth[chosen]))
        steps = steps[steps > 360.0 / (2 * _COLUMNS[1])]  # not the same firing
        if len(steps):
            found.append(360.0 / float(np.median(steps)))
    return round(float(np.median(found))) if found else _COLUMNS[0]
