# SPDX-License-Identifier: Apache-2.0
"""Synthetic scan with labels: a street seen by a sensor with 64 beams, the same every time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError

POINTS = 125_000
SENSOR_HEIGHT_M = 1.73
BEAMS = 64
_MAX_RANGE_M = 80.0
_RETURNS = 0.95  # share of the rays; the sky and dark surfaces give none


# classes of SemanticKITTI's label set
CAR, ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, POLE = 1, 9, 11, 13, 15, 17, 18


def synthetic_scan(points: int = POINTS, seed: int = 0) -> npt.NDArray[np.float32]:
    """The points of `synthetic_scene`."""
    return synthetic_scene(points, seed)[0]


def synthetic_scene(points: int = POINTS, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """(N, 4) float32 x, y, z in metres in the sensor frame, remission 0..1, and (N,) uint8 labels of SemanticKITTI.

    Exactly `points` of them, beam by beam: ground, house fronts with recesses, poles, parked cars, distant trees. The
    image has surfaces, edges and occluded points like a real one, but less noise.
    """
    if points < 1:
        raise UserError(f"a scan needs at least 1 point, found {points}")
    generator = np.random.default_rng(seed)
    rays = math.ceil(points / _RETURNS)
    columns = math.ceil(rays / BEAMS)
    beam = np.repeat(np.arange(BEAMS), columns)[:rays]
    azimuth = math.pi - 2 * math.pi * (np.tile(np.arange(columns), BEAMS)[:rays] + 0.5) / columns
    # real beams wobble against the image's rows and columns, so that some pixels stay empty and others get two points
    azimuth = azimuth + generator.normal(0, 0.35 * 2 * math.pi / 2048, rays)
    elevation = np.radians(2.0 - 26.8 * beam / (BEAMS - 1)) + generator.normal(0, 5e-4, rays)
    direction = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1
    )
    distance, label = _first_hit(direction)
    distance += generator.normal(0, 0.015, rays)
    keep = np.sort(np.argsort(distance + 1e3 * (generator.random(rays) > _RETURNS), kind="stable")[:points])
    remission = np.clip(0.05 + 0.03 * label + generator.normal(0, 0.05, rays), 0, 1)
    scan = np.concatenate([direction * distance[:, None], remission[:, None]], 1)
    return np.ascontiguousarray(scan[keep], np.float32), label[keep]


def _first_hit(direction: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """(R, 3) unit vectors -> distance of the first hit, metres, and its label."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(direction[:, 2] < 0, SENSOR_HEIGHT_M / -direction[:, 2], np.inf)
        hits = [ground, _fronts(direction), _boxes(direction, _parked_cars()), _boxes(direction, _poles())]
    first, nearest = np.argmin(hits, 0), np.minimum(np.min(hits, 0), _MAX_RANGE_M)
    aside = np.abs(nearest * direction[:, 1])
    on_ground = np.where(aside < 3.2, ROAD, np.where(aside < 6.0, SIDEWALK, TERRAIN))
    label = np.where(nearest < _MAX_RANGE_M, np.choose(first, [on_ground, BUILDING, CAR, POLE]), VEGETATION)
    return nearest, label.astype(np.uint8)


def _fronts(direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """House fronts on both sides: 8 m away, every other 9 m recessed to 13 m."""
    near = 8.0 / np.abs(direction[:, 1])
    recessed = np.floor(near * direction[:, 0] / 9.0) % 2 == 1
    return np.where(recessed, 13.0 / np.abs(direction[:, 1]), near)


def _parked_cars() -> npt.NDArray[np.float64]:
    """(B, 6) boxes: lower corner, upper corner."""
    cars = []
    for i, x in enumerate(np.arange(-40, 41, 8.0)):
        y = 3.4 if i % 3 else -4.6
        cars.append([x - 2.2, y, -SENSOR_HEIGHT_M, x + 2.2, y + 1.7, -SENSOR_HEIGHT_M + 1.45])
    return np.array(cars)


def _poles() -> npt.NDArray[np.float64]:
    return np.array(
        [[x - 0.1, y - 0.1, -SENSOR_HEIGHT_M, x + 0.1, y + 0.1, 4.0] for x in np.arange(-36, 37, 12.0) for y in (-6, 6)]
    )


def _boxes(direction: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance at which rays from the origin enter the nearest box; infinite if they miss all."""
    nearest = np.full(len(direction), np.inf)
    for box in boxes:
        first, second = box[:3] / direction, box[3:] / direction
        enter = np.minimum(first, second).max(1)
        leave = np.maximum(first, second).min(1)
        nearest = np.minimum(nearest, np.where((enter < leave) & (enter > 0), enter, np.inf))
    return nearest
