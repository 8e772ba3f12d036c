# SPDX-License-Identifier: Apache-2.0
"""Furnishing of country roads and motorways: verges, guard rails, fields, woods and farms along a frontage."""

from __future__ import annotations

import numpy as np

from sqsegv3_ros.simulation.buildings import fence
from sqsegv3_ros.simulation.frontage import Frontage
from sqsegv3_ros.simulation.furniture import gantry
from sqsegv3_ros.simulation.ground import OTHER_GROUND, TERRAIN
from sqsegv3_ros.simulation.mesh_pools import HEDGE_M, THICKET_M, pick, pick_object, pick_variant
from sqsegv3_ros.simulation.tiles import TileBuilder
from sqsegv3_ros.simulation.town_streets import boundary, garden_lot
from sqsegv3_ros.simulation.vehicles import CAR, OTHER_VEHICLE, TRUCK


def _along(
    front: Frontage, name: str, gap: float, low: float, high: float, rng: np.random.Generator, yaw: float = np.pi
) -> None:
    s = rng.uniform(0, gap)
    while s < front.length:
        front.add(pick(name, rng), s, rng.uniform(low, high), yaw + rng.normal(0, 0.05))
        s += gap * rng.uniform(0.6, 1.4)


def _rail(front: Frontage, start: float, end: float, o: float) -> None:
    """Place a guard rail at depth o, facing the road."""
    stretch = fence("guard rail", HEDGE_M, 0.75, 0.35)
    for s in np.arange(start, end - HEDGE_M * 0.99, HEDGE_M):
        front.add(stretch, float(s), o)


def _wild(front: Frontage, o: float, name: str, share: float, rng: np.random.Generator) -> None:
    """Place wild growth along the whole frontage from depth o on, with gaps."""
    for s in np.arange(0.0, front.length - THICKET_M * 0.5, THICKET_M):
        if rng.random() < share:
            front.add(pick_variant(name, int(rng.integers(8))), float(s), o + rng.normal(0, 0.5))


def furnish_country(front: Frontage, style: int, rng: np.random.Generator) -> None:
    """Furnish one frontage in the country.

    Args:
        front: The frontage.
        style: Number that selects the surroundings; it stays the same over several tiles, so that an alley continues.
        rng: Source of random numbers.
    """
    _along(front, "guide post", 25.0, 0.8, 1.2, rng)
    _along(front, "traffic sign" if rng.random() < 0.7 else "direction board", 120.0, 0.8, 1.6, rng)
    if rng.random() < 0.5:
        _along(front, "utility pole", 40.0, 2.5, 4.0, rng)
    kind = (0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 5)[style % 12]
    if kind == 0:  # alley
        _along(front, "tree", 9.0, 2.5, 3.0, rng)
        _wild(front, 26.0, "far thicket", 0.5, rng)
    elif kind == 1:  # wood
        o = rng.uniform(1.5, 6.0)
        _wild(front, o, "thicket", 0.95, rng)
        _wild(front, o + 6.0, "thicket", 0.9, rng)
        _along(front, "tree", 6.0, o + 1, o + 12, rng)
    elif kind == 2:  # hedge bank
        _wild(front, rng.uniform(1.0, 3.0), "low thicket", 0.9, rng)
        _along(front, "tree", 14.0, 3.0, 12.0, rng)
    elif kind == 3:  # pasture behind a fence
        boundary(front, 0.0, front.length, rng.uniform(2.0, 4.0), rng)
        _along(front, "bush", 10.0, 4.0, 30.0, rng)
        _wild(front, 34.0, "far thicket", 0.7, rng)
    elif kind == 4:  # open field
        _wild(front, 38.0, "far thicket", 0.35, rng)
        _along(front, "bush", 25.0, 3.0, 12.0, rng)
        if rng.random() < 0.3:
            _rail(front, 2.0, front.length - 2.0, 0.7)
    elif front.length > 20:  # farm or hamlet
        s = 0.0
        while s < front.length - 16:
            if rng.random() < 0.7:
                garden_lot(front, s, 20.0, rng)
            s += 22.0
    if rng.random() < 0.12 and front.length > 15:  # lay-by
        front.paint((2.0, 14.0), (0.0, 5.0), OTHER_GROUND if rng.random() < 0.7 else TERRAIN)
        front.add(pick_object(rng.choice([CAR, TRUCK, OTHER_VEHICLE]), rng), 8.0, 2.5, np.pi)


def furnish_highway(front: Frontage, style: int, rng: np.random.Generator) -> None:
    """Furnish one side of a motorway. Arguments as in `furnish_country`."""
    _along(front, "guide post", 50.0, 0.6, 0.8, rng)
    _along(front, "direction board" if rng.random() < 0.5 else "traffic sign", 90.0, 1.5, 3.0, rng)
    kind = (0, 0, 0, 1, 1, 1, 2, 3)[style % 8]
    if kind != 3:
        _rail(front, 0.0, front.length, 0.8)
    if kind == 0:
        _wild(front, rng.uniform(4.0, 9.0), "thicket", 0.85, rng)
        _wild(front, 16.0, "far thicket", 0.7, rng)
    elif kind == 1:
        _along(front, "bush", 7.0, 4.0, 16.0, rng)
        _along(front, "tree", 16.0, 7.0, 25.0, rng)
        _wild(front, 28.0, "far thicket", 0.6, rng)
    elif kind == 2:  # noise barrier
        wall = fence("wall", HEDGE_M, float(2.0 + style % 5 * 0.6), 0.4)
        for s in np.arange(0.0, front.length - HEDGE_M, HEDGE_M):
            front.add(wall, float(s), 4.0)
        _wild(front, 6.0, "thicket", 0.6, rng)
    else:
        _wild(front, rng.uniform(10, 20), "low thicket", 0.5, rng)
        _along(front, "tree", 25.0, 12.0, 40.0, rng)


def furnish_median(builder: TileBuilder, rng: np.random.Generator) -> None:
    """Place guard rails, bushes or trees between the carriageways, and sometimes a sign gantry."""
    plan = builder.plan
    start = builder.tile * 50.0
    if plan.kind == "highway":
        for v, yaw in ((plan.median - 0.3, np.pi), (-plan.median + 0.3, 0.0)):
            stretch = fence("guard rail", HEDGE_M, 0.75, 0.35)
            for u in np.arange(start, start + 50.0, HEDGE_M):
                # the rail faces -y in its own frame: away from the median
                builder.add(stretch, float(u) + (HEDGE_M if yaw else 0.0), v, yaw)
        if rng.random() < 0.15:
            builder.add(gantry(plan.half_width + 1.5), start + 25.0, 0.0, 0.0)
        return
    clear = plan.crossings
    for u in np.arange(start + 3.0, start + 50.0, 9.0):
        if any(abs(u - s.u) < s.half_width + s.radius for s in clear):
            continue
        builder.add(pick(rng.choice(["tree", "bush", "lamp post"]), rng), float(u), 0.0, 0.0)
