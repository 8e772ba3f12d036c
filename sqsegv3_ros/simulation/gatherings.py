# SPDX-License-Identifier: Apache-2.0
"""People who stay: groups on the sidewalk, café terraces, front gardens with somebody in them, racks of bicycles.

Most people on streets are partly hidden: by each other, a hedge, a planter or a parked car. A network that has only
seen people walking alone, from head to foot, does not find them.
"""

from __future__ import annotations

import numpy as np

from sqsegv3_ros.simulation.buildings import FENCE_KINDS, fence
from sqsegv3_ros.simulation.frontage import Frontage
from sqsegv3_ros.simulation.furniture import OTHER_OBJECT
from sqsegv3_ros.simulation.materials import METAL, WALL, WOOD
from sqsegv3_ros.simulation.mesh_pools import HEDGE_M, pick, pick_object, pick_variant
from sqsegv3_ros.simulation.meshes import Mesh, box, merge_meshes, tube
from sqsegv3_ros.simulation.vehicles import BICYCLE

_ROOM_M = 8.0  # along the frontage, for one gathering
_PER_M = (0.0, 0.015, 0.05)  # gatherings along quiet, normal and busy frontages
_SHARES = (0.3, 0.4, 0.3)  # of such frontages


def add_gatherings(front: Frontage, rng: np.random.Generator) -> None:
    """Place gatherings along a frontage in a town, more on busy ones.

    Args:
        front: The frontage.
        rng: Source of random numbers.
    """
    if front.walk < 1.0 or front.length < 2 * _ROOM_M:
        return
    density = rng.choice(_PER_M, p=_SHARES)
    for _ in range(rng.poisson(density * front.length)):
        place = (_group, _terrace, _garden, _rack)[rng.integers(4)]
        place(front, rng.uniform(0.0, front.length - _ROOM_M), rng)


def _group(front: Frontage, s: float, rng: np.random.Generator) -> None:
    """Two to eight people in a circle, or side by side as at a stop."""
    count = int(rng.integers(2, 9))
    o = rng.uniform(min(1.3 - front.walk, 0.0), 0.8)  # not on the road
    in_line = rng.random() < 0.4
    for k in range(count):
        if in_line:
            front.add(pick("person", rng), s + k * rng.uniform(0.5, 0.9), o + rng.normal(0, 0.2), rng.uniform(0, 6.28))
            continue
        angle, radius = 6.28 * k / count, 0.35 + 0.12 * count + rng.normal(0, 0.1)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        front.add(pick("person", rng), s + 2.0 + x, o + y, angle + np.pi + rng.normal(0, 0.5))


def _terrace(front: Frontage, s: float, rng: np.random.Generator) -> None:
    """Tables of a café, mostly behind a row of planters, a low fence or a hedge; people sit and stand at them."""
    near = rng.uniform(-0.8 * front.walk, 0.0)
    length = rng.uniform(4.0, _ROOM_M)
    if rng.random() < 0.75:
        _low_screen(front, (s, s + length), near, rng)
    albedo = rng.uniform(0.15, 0.5)
    for at in np.arange(s + 0.8, s + length - 0.5, rng.uniform(1.6, 2.4)):
        o = near + rng.uniform(0.8, 2.2)
        front.add(_table(rng, albedo), at, o)
        for k in range(int(rng.integers(1, 5))):
            angle = 1.57 * k + rng.normal(0, 0.2)
            front.add(pick("person", rng), at + 0.75 * np.cos(angle), o + 0.75 * np.sin(angle), angle + np.pi)
        if rng.random() < 0.15:
            front.add(_parasol(rng), at, o)


def _garden(front: Frontage, s: float, rng: np.random.Generator) -> None:
    """One to four people behind a fence or hedge."""
    near = rng.uniform(-0.3, 0.6)
    _low_screen(front, (s, s + _ROOM_M), near, rng)
    for _ in range(int(rng.integers(1, 5))):
        front.add(pick("person", rng), s + rng.uniform(0, _ROOM_M), near + rng.uniform(0.5, 2.5), rng.uniform(0, 6.28))


def _rack(front: Frontage, s: float, rng: np.random.Generator) -> None:
    """Three to nine bicycles side by side, sometimes somebody among them."""
    o, yaw = rng.uniform(-0.8 * front.walk, -0.3), np.pi / 2 + rng.choice([0.0, 0.6]) + rng.normal(0, 0.05)
    for k in range(int(rng.integers(3, 10))):
        if rng.random() < 0.8:
            bicycle = pick_object(BICYCLE, rng).tilted(roll=rng.normal(0, 0.08))
            front.add(bicycle, s + 0.7 * k, o, yaw + rng.choice([0.0, np.pi]))
        elif rng.random() < 0.4:
            front.add(pick("person", rng), s + 0.7 * k, o + rng.uniform(-0.8, 0.8), rng.uniform(0, 6.28))


def _low_screen(front: Frontage, s: tuple[float, float], o: float, rng: np.random.Generator) -> None:
    """What hides legs: planters, a fence or wall of 0.6 to 1.2 m, a low hedge."""
    kind, shape = rng.choice(["planters", "fence", "hedge"], p=[0.4, 0.35, 0.25]), int(rng.integers(100))
    section = fence(rng.choice(FENCE_KINDS), HEDGE_M, rng.uniform(0.6, 1.2), rng.uniform(0.2, 0.5))
    if kind == "hedge":
        section = pick_variant("low hedge", shape)
    if kind != "planters":
        for at in np.arange(s[0], s[1] - HEDGE_M / 2, HEDGE_M):
            front.add(section, float(at), o)
        return
    long, high, albedo = rng.uniform([0.8, 0.4, 0.1], [2.0, 0.9, 0.5])
    gap = rng.choice([0.0, 0.3])
    planted = rng.random() < 0.7
    for at in np.arange(s[0], s[1] - long / 2, long + gap):
        front.add(box((0, long), (-0.25, 0.25), (0, high), OTHER_OBJECT, WALL, albedo), float(at), o)
        if planted:
            plant = pick("small bush", rng).transformed(z=high - 0.15, scale=rng.uniform(0.4, 0.7))
            front.add(plant, float(at) + long / 2, o, rng.uniform(0, 6.28))


def _table(rng: np.random.Generator, albedo: float) -> Mesh:
    half = rng.uniform(0.3, 0.5)
    top = box((-half, half), (-half, half), (0.7, 0.74), OTHER_OBJECT, WOOD, albedo)
    return merge_meshes([top, tube((0, 0, 0), (0, 0, 0.7), 0.04, OTHER_OBJECT, METAL, albedo, 5)])


def _parasol(rng: np.random.Generator) -> Mesh:
    half, albedo = rng.uniform(1.0, 1.6), rng.uniform(0.2, 0.6)
    pole = tube((0, 0, 0), (0, 0, 2.4), 0.03, OTHER_OBJECT, METAL, 0.3, 5)
    roof = tube((0, 0, 2.15), (0, 0, 2.5), (half, 0.05), OTHER_OBJECT, WOOD, albedo, 8)
    return merge_meshes([pole, roof])
