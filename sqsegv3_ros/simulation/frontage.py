# SPDX-License-Identifier: Apache-2.0
"""Frontages: the lines along streets on which lots and furniture are placed.

A frontage is on the outer edge of the sidewalk. Its own frame has s along it and o away from the street; traffic on the
near lane comes from +s. Everything along any side of any street is placed in that frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqsegv3_ros.simulation.ground import HALF_DEPTH_M, TILE_M, Plan
from sqsegv3_ros.simulation.mesh_pools import pick
from sqsegv3_ros.simulation.meshes import Mesh
from sqsegv3_ros.simulation.tiles import TileBuilder

Range = tuple[float, float]
CORNER_DEPTH_M = 17.0  # corner lots belong to the main street; the lots of the side street begin behind them


@dataclass(frozen=True)
class Frontage:
    """A line along one side of a street; o > 0 is on its left.

    Attributes:
        u: Street coordinate of its start.
        v: Street coordinate of its start.
        yaw: Direction relative to the main street.
        length: Length in metres.
        walk: Width of the sidewalk.
        main: Whether it is on the main street.
        parked: Width of the road that parked cars occupy.
        builder: Tile under construction.
    """

    u: float
    v: float
    yaw: float
    length: float
    walk: float
    main: bool
    parked: float
    builder: TileBuilder

    def at(self, s: float, o: float) -> tuple[float, float]:
        """Convert (s, o) to (u, v)."""
        c, d = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        return self.u + s * c - o * d, self.v + s * d + o * c

    def add(self, mesh: Mesh, s: float, o: float, yaw: float = 0.0) -> None:
        """Place a mesh at (s, o), rotated by yaw from the direction of s, unless it is beyond the ground."""
        u, v = self.at(s, o)
        if abs(v) < HALF_DEPTH_M - 1.0:
            self.builder.add(mesh, u, v, self.yaw + yaw)

    def scatter(
        self, rng: np.random.Generator, number: float, shares: dict[str, float], s: Range, o: Range, turn: float = 0.0
    ) -> None:
        """Place about `number` meshes at random places.

        Args:
            rng: Source of random numbers.
            number: Mean number of meshes.
            shares: Share of each pool of meshes.
            s: Range along the frontage.
            o: Range away from the street.
            turn: Largest yaw.
        """
        names, weights = list(shares), list(shares.values())
        for _ in range(rng.poisson(number)):
            mesh = pick(rng.choice(names, p=weights) if len(names) > 1 else names[0], rng)
            self.add(mesh, rng.uniform(*s), rng.uniform(*o), rng.uniform(0, turn) if turn else 0.0)

    def paint(self, s: Range, o: Range, surface: int) -> None:
        """Paint a rectangle of the ground with a surface."""
        (u0, v0), (u1, v1) = self.at(s[0], o[0]), self.at(s[1], o[1])
        self.builder.paint((u0, u1), (v0, v1), surface)


def _clear_stretches(plan: Plan, side: int, start: float, end: float, at: float) -> list[tuple[float, float]]:
    """Parts of start..end (in u) without a side street on that side."""
    stretches = [(start, end)]
    for street in plan.crossings:
        if street.side and street.side != side:
            continue
        middle = float(street.middle(side * at))
        half = (street.half_width + street.sidewalk) * float(np.hypot(1.0, street.skew)) + 0.5
        pieces = [p for a, b in stretches for p in ((a, min(b, middle - half)), (max(a, middle + half), b))]
        stretches = [(a, b) for a, b in pieces if a < b]
    return [(a, b) for a, b in stretches if b - a > 3.0]


def frontages(plan: Plan, builder: TileBuilder) -> list[Frontage]:
    """Get the frontages of a tile: both sides of the main street and of each side street that begins in it."""
    found = []
    start, end = builder.tile * TILE_M, (builder.tile + 1) * TILE_M
    for side in (1, -1):
        walk = plan.sidewalk(side)
        verge = 1.3 if plan.kind in ("city", "dense") and not walk else 0.0
        v = side * (plan.half_width + walk + verge)
        parked = plan.parked[0] if side > 0 else plan.parked[1]
        for a, b in _clear_stretches(plan, side, start, end, abs(v) + 6.0):
            start_u, yaw = (a, 0.0) if side > 0 else (b, np.pi)
            found.append(Frontage(start_u, v, yaw, b - a, walk, True, parked, builder))
    for street in plan.crossings:
        if not start <= street.u < end:
            continue
        lean = float(np.arctan(street.skew))
        half = (street.half_width + street.sidewalk) * float(np.hypot(1.0, street.skew))
        for side in (1, -1):
            if street.side and street.side != side:
                continue
            near = plan.half_width + plan.sidewalk(side) + CORNER_DEPTH_M
            length = (HALF_DEPTH_M - 2.0 - near) * float(np.hypot(1.0, street.skew))
            for away in (1, -1):
                # o points to +u (away = 1) when s runs towards -v, and to -u when it runs towards +v
                v = side * (HALF_DEPTH_M - 2.0 if away * side > 0 else near)
                u = float(street.middle(v)) + away * half
                yaw = -away * np.pi / 2 - lean
                found.append(Frontage(u, v, yaw, length, street.sidewalk, False, 1.2, builder))
    return found
