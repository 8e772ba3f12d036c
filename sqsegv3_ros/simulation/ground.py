# SPDX-License-Identifier: Apache-2.0
"""The plan of a street and its ground: height, surface and world position at any street coordinates.

Street coordinates (u, v) are metres along the street and to its left. The street is laid out straight and then bent:
(u, v) is the point v metres beside the point u of the centre line. Side streets, kerbs and lots stay simple this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.materials import ASPHALT, GRASS, PAVING

Array = npt.NDArray[np.float64]

TILE_M = 50.0  # length of a tile
HALF_DEPTH_M = 72.0  # extent of the ground to either side
BAY_M = 2.2  # depth of a parking bay along the kerb
CELL_M = 0.25  # cell size of the raster of painted surfaces

# surfaces: raw SemanticKITTI id, material, albedo
ROAD, MARKING, PARKING, SIDEWALK, TERRAIN, OTHER_GROUND, COBBLES = range(7)
SURFACES = (
    (40, ASPHALT, 0.29),
    (60, ASPHALT, 0.48),
    (44, PAVING, 0.32),
    (48, PAVING, 0.32),
    (72, GRASS, 0.37),
    (49, ASPHALT, 0.32),
    (48, PAVING, 0.35),
)
PARKING_BAY = PARKING + 100  # in a raster: parking along the kerb, on the road
KEEP = 255  # in a raster: not painted


@dataclass(frozen=True)
class SideStreet:
    """A street that meets the main street.

    Attributes:
        u: Where its middle meets the centre line of the main street.
        half_width: Half of its width.
        sidewalk: Width of its sidewalks.
        skew: Slant, metres of u per metre of v.
        side: +1 for the left side only, -1 for the right side only, 0 for both.
        radius: Radius of the rounded corners.
    """

    u: float
    half_width: float
    sidewalk: float
    skew: float
    side: int
    radius: float

    def middle(self, v: Array | float) -> Array | float:
        """Get the u of its middle at v."""
        return self.u + self.skew * v


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shape of a street. Lengths in metres.

    Attributes:
        kind: 'city', 'dense', 'highway' or 'country'.
        half_width: Half of the width of the road.
        sidewalks: Widths left and right, 0 for none.
        kerb: Height of the kerb.
        median: Half width of the strip between the carriageways, 0 for none.
        lanes: Lanes per direction.
        ditch: Depth of the ditches.
        hill: Height, wavelength and phase of the relief along u.
        slope: Rise to the left and to the right, width of the slopes, their wavelength along u.
        bend: Largest curvature, its wavelength and phase.
        bump: Height of the bumps beside the road.
        tone: Albedo factor of each surface.
        crossings: Side streets.
        parked: Width of the road that parked cars occupy, left and right; `BAY_M` for bays.
        length: First and last u.
    """

    kind: str
    half_width: float
    sidewalks: tuple[float, float] = (0.0, 0.0)
    kerb: float = 0.0
    median: float = 0.0
    lanes: int = 1
    ditch: float = 0.0
    hill: tuple[float, float, float]
    slope: tuple[float, float, float, float]
    bend: tuple[float, float, float]
    bump: float
    tone: tuple[float, ...]
    crossings: tuple[SideStreet, ...] = ()
    parked: tuple[float, float] = (0.0, 0.0)
    length: tuple[float, float]

    def sidewalk(self, side: int) -> float:
        """Get the width of the sidewalk on a side (+1 left, -1 right)."""
        return self.sidewalks[0] if side > 0 else self.sidewalks[1]

    @cached_property
    def center_line(self) -> tuple[Array, Array, Array, Array]:
        """Centre line at every metre: u, world x, world y, heading."""
        u = np.arange(np.floor(self.length[0]), self.length[1] + 1.0)
        strongest, wave, phase = self.bend
        bend = strongest * np.sin(2 * np.pi * u / wave + phase) * (0.6 + 0.4 * np.sin(2 * np.pi * u / (2.7 * wave)))
        angle = np.concatenate([[0.0], np.cumsum(0.5 * (bend[1:] + bend[:-1]))])
        between = 0.5 * (angle[1:] + angle[:-1])
        x, y = (np.concatenate([[0.0], np.cumsum(step)]) for step in (np.cos(between), np.sin(between)))
        return u, x, y, angle


def heading(plan: Plan, u: Array) -> Array:
    """Compute the direction of the street at u, radians counter-clockwise from world x."""
    at, _, _, angle = plan.center_line
    return np.interp(u, at, angle)


def steepest(plan: Plan) -> float:
    """Compute an upper bound of the street's grade and the road's camber, metres per metre."""
    high, wave, _ = plan.hill
    return 2 * np.pi * high / wave * (1 + 0.3 / 0.37) + 0.03


def to_world(plan: Plan, u: Array, v: Array) -> tuple[Array, Array]:
    """Convert street coordinates to world x, y in metres."""
    at, x, y, _ = plan.center_line
    angle = heading(plan, u)
    return np.interp(u, at, x) - v * np.sin(angle), np.interp(u, at, y) + v * np.cos(angle)


def _round_union(a: Array, b: Array, radius: float) -> Array:
    """Signed distance of the union of two shapes with the inner corner rounded."""
    return np.maximum(np.minimum(a, b), radius) - np.hypot(np.maximum(radius - a, 0), np.maximum(radius - b, 0))


def edge_distance(plan: Plan, u: Array, v: Array) -> tuple[Array, Array]:
    """Compute the distance to the nearest road edge, negative on the road, and the width of its sidewalk, metres."""
    u, v = np.atleast_1d(u), np.atleast_1d(v)
    distance = np.abs(v) - plan.half_width
    walk = np.where(v > 0, plan.sidewalks[0], plan.sidewalks[1])
    for street in plan.crossings:
        near = np.abs(u - street.middle(v)) < 40.0
        if street.side:
            near &= v * street.side > -0.5
        if not near.any():
            continue
        across = np.abs(u[near] - street.middle(v[near])) / np.hypot(1.0, street.skew) - street.half_width
        old = distance[near]
        walk[near] = np.where(across < old, street.sidewalk, walk[near])
        distance[near] = _round_union(old, across, street.radius)
    return distance, walk


def _smooth(x: Array) -> Array:
    t = np.clip(x, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def height(plan: Plan, u: Array, v: Array) -> Array:
    """Compute the height of the ground in metres: hills, camber, kerbs, ditches, banks and bumps."""
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    edge, walk = edge_distance(plan, u, v)
    high, wave, phase = plan.hill
    z = high * np.sin(2 * np.pi * u / wave + phase) + 0.3 * high * np.sin(2 * np.pi * u / (0.37 * wave) + 2 * phase)
    z = z + 0.02 * np.minimum(-np.minimum(edge, 0.0), 4.0)
    if plan.median:
        z = z + 0.12 * _smooth((plan.median - np.abs(v)) / 0.05)
    beyond = np.maximum(edge - walk, 0.0)
    z = z + np.where(walk > 0, plan.kerb * _smooth(edge / 0.05) + 0.02 * np.clip(edge, 0, walk), 0.0)
    left, right, reach, swing = plan.slope
    rise = np.where(v > 0, left, right) * (0.7 + 0.3 * np.sin(2 * np.pi * u / swing + np.sign(v)))
    z = z + rise * _smooth((beyond - 0.5) / reach)
    if plan.ditch:
        z = z - plan.ditch * np.exp(-(((beyond - 2.2) / 0.8) ** 2)) * (walk == 0)
    bumps = np.sin(1.31 * u + 0.7 * np.sin(0.37 * v)) * np.sin(1.13 * v + 0.9 * np.sin(0.29 * u))
    bumps = bumps + 0.8 * np.sin(0.43 * u + 1.9) * np.sin(0.51 * v) + 0.5 * np.sin(2.3 * u + 1.7 * v)
    return z + plan.bump * bumps * _smooth(beyond / 1.5)


def _marking(plan: Plan, u: Array, v: Array, edge: Array) -> npt.NDArray[np.bool_]:
    """Whether there is a lane marking."""
    across = np.abs(v)
    clear = np.ones(u.shape, dtype=bool)
    for street in plan.crossings:
        clear &= np.abs(u - street.middle(v)) > street.half_width + street.radius
    lane = (plan.half_width - plan.median) / plan.lanes
    painted = np.zeros(u.shape, dtype=bool)
    dashed = np.mod(u, 9.0) < 3.5
    for i in range(plan.lanes):
        middle = plan.median + i * lane
        if i == 0 and plan.median:
            painted |= np.abs(across - middle - 0.3) < 0.07
        else:
            painted |= (np.abs(across - middle) < 0.06) & dashed
    if plan.kind in ("highway", "country"):
        painted |= np.abs(edge + 0.35) < 0.07
    return painted & clear & (edge < 0)


def surface_at(plan: Plan, u: Array, v: Array, painted: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Get the surface number at each (u, v).

    Args:
        plan: Plan of the street.
        u: Street coordinates.
        v: Street coordinates.
        painted: Painted surface there, `KEEP` for none.
    """
    edge, walk = edge_distance(plan, u, v)
    surface = np.full(u.shape, TERRAIN, dtype=np.uint8)
    surface[edge < walk] = SIDEWALK
    surface[edge < 0] = ROAD
    lot = (painted != KEEP) & (edge >= walk) & (painted != PARKING_BAY)
    surface[lot] = painted[lot]
    surface[(painted == PARKING_BAY) & (edge < -0.02) & (np.abs(v) > plan.half_width - BAY_M)] = PARKING
    if plan.median:
        surface[(np.abs(v) < plan.median) & (edge < -1)] = TERRAIN
    surface[_marking(plan, u, v, edge)] = MARKING
    return surface


def albedo_at(plan: Plan, u: Array, v: Array, surface: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Compute the albedo of the ground: by surface, with worn and patched areas."""
    base = np.array([s[2] for s in SURFACES]) * np.array(plan.tone)
    wear = 1 + 0.05 * np.sin(0.31 * u + 1.3 * np.sin(0.17 * v)) * np.sin(0.8 * v) + 0.04 * np.sin(0.07 * u + 0.23 * v)
    return (base[surface] * wear).astype(np.float32)


def grid_lines(plan: Plan, tile: int) -> tuple[Array, Array]:
    """Get the u and v lines of a tile's ground mesh: dense at kerbs, sparse in the fields."""
    out = [0.0]
    step = 0.8
    while out[-1] < HALF_DEPTH_M:
        out.append(out[-1] + step)
        step = min(step * 1.12, 5.0)
    v = [0.0]
    for side in (1, -1):
        w, walk = plan.half_width, plan.sidewalk(side)
        lines = [w * 0.5, w - 1.0, w - 0.02, w, w + 0.025, w + 0.06]
        lines += [w + walk * s for s in (0.5, 1.0)] if walk else [w + 0.6]
        if plan.median:
            lines += [plan.median, plan.median - 0.06, plan.median + 0.05]
        lines += [max(lines) + o for o in out[1:]]
        v += [side * line for line in lines if line < HALF_DEPTH_M] + [side * HALF_DEPTH_M]
    u0, u1 = tile * TILE_M, (tile + 1) * TILE_M
    u = list(np.linspace(u0, u1, int(TILE_M) + 1))
    for street in plan.crossings:
        if abs(street.skew) < 0.02:
            for s in (1, -1):
                u += [street.u + s * (street.half_width + o) for o in (-0.02, 0.025, 0.06)]
        u += [street.u + s * (street.half_width + o) for s in (1, -1) for o in (0.5, 1.5, 2.5)]
    lines_u = np.array([x for x in u if u0 <= x <= u1])
    return np.unique(np.round(lines_u, 3)), np.unique(np.round(v, 3))
