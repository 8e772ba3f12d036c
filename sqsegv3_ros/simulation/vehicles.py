# SPDX-License-Identifier: Apache-2.0
"""Meshes of road vehicles, on the ground about the origin, x forward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sqsegv3_ros.simulation.materials import CLOTH, GLASS, METAL, PAINT, RETRO, RUBBER
from sqsegv3_ros.simulation.meshes import Mesh, box, extrude, hoop, merge_meshes, quad, rectangle, tube, wheel

CAR, BICYCLE, BUS, MOTORCYCLE, TRUCK, OTHER_VEHICLE = 10, 11, 13, 15, 18, 20
MOVING = {10: 252, 13: 257, 15: 255, 18: 258, 20: 259, 30: 254, 31: 253, 32: 255}
"""Raw id of a moving object by that of a stationary one (a moving motorcycle has a rider)."""


@dataclass(frozen=True)
class CarBody:
    """Dimensions of a car in metres; positions along x as shares of the length, 0 at the tail, 1 at the nose.

    Attributes:
        length: Length.
        width: Width.
        height: Height.
        belt: Height of the lower edge of the windows.
        hood: Height of the hood's front edge.
        rear_belt: Position at which the rear window meets the body.
        roof_rear: Position of the rear edge of the roof.
        roof_front: Position of the front edge of the roof.
        windscreen: Position at which the windscreen meets the hood.
    """

    length: float
    width: float
    height: float
    belt: float
    hood: float
    rear_belt: float
    roof_rear: float
    roof_front: float
    windscreen: float


CAR_BODIES = (
    CarBody(3.6, 1.62, 1.50, 0.92, 0.78, 0.02, 0.10, 0.58, 0.80),  # small
    CarBody(4.05, 1.72, 1.46, 0.92, 0.75, 0.03, 0.14, 0.55, 0.77),  # hatchback
    CarBody(4.25, 1.78, 1.48, 0.93, 0.76, 0.04, 0.16, 0.55, 0.76),
    CarBody(4.55, 1.78, 1.44, 0.94, 0.74, 0.17, 0.30, 0.57, 0.76),  # saloon
    CarBody(4.8, 1.84, 1.46, 0.95, 0.75, 0.16, 0.29, 0.57, 0.75),
    CarBody(4.65, 1.80, 1.48, 0.94, 0.75, 0.02, 0.09, 0.56, 0.75),  # estate
    CarBody(4.8, 1.84, 1.50, 0.95, 0.76, 0.02, 0.10, 0.57, 0.74),
    CarBody(4.4, 1.82, 1.68, 1.05, 0.92, 0.02, 0.08, 0.56, 0.74),  # SUV
    CarBody(4.7, 1.90, 1.75, 1.10, 0.98, 0.02, 0.08, 0.57, 0.75),
    CarBody(4.4, 1.80, 1.65, 1.00, 0.86, 0.01, 0.06, 0.64, 0.86),  # people carrier
    CarBody(4.9, 1.92, 1.95, 1.15, 1.00, 0.01, 0.03, 0.76, 0.92),  # van
    CarBody(5.3, 1.98, 2.40, 1.35, 1.10, 0.01, 0.02, 0.78, 0.90),  # transporter
    CarBody(4.0, 1.70, 1.28, 0.85, 0.68, 0.20, 0.34, 0.52, 0.70),  # coupe
)


def _greenhouse(body: CarBody, label: int, closed_rear: bool, paint: float) -> Mesh:
    """Build windows, pillars and roof; vans have sheet metal behind the front doors."""
    shares = (body.rear_belt, body.roof_rear, body.roof_front, body.windscreen)
    low, high, z0, z1 = body.width * 0.465, body.width * 0.37 + 0.06 * (body.height > 1.8), body.belt, body.height
    rear, roof_rear, roof_front, front = ((share - 0.5) * body.length for share in shares)
    belt = [(rear, low, z0), (front, low, z0), (front, -low, z0), (rear, -low, z0)]
    roof = [(roof_rear, high, z1), (roof_front, high, z1), (roof_front, -high, z1), (roof_rear, -high, z1)]
    coat, glass, seat = (label, PAINT, paint), (label, GLASS, 0.1), (label, CLOTH, 0.12)
    parts = [quad(roof, *coat)]
    for i in range(4):
        j = (i + 1) % 4
        if not closed_rear or i in (1, 3):
            parts.append(quad([belt[i], belt[j], roof[j], roof[i]], *(coat if closed_rear and i == 3 else glass)))
        else:  # only the front part of the side is glass
            a, b = (np.add(p[i], (0.68 if i == 0 else 0.32) * np.subtract(p[j], p[i])) for p in (belt, roof))
            first, second = np.array([belt[i], a, b, roof[i]]), np.array([a, belt[j], roof[j], b])
            parts += [quad(first, *(coat if i == 0 else glass)), quad(second, *(glass if i == 0 else coat))]
    parts += [tube(start, end, 0.045, *coat, sides=4) for start, end in zip(belt, roof, strict=True)]
    middle = 0.5 * (roof_rear + roof_front)
    for side in (1, -1):
        parts.append(tube((middle, side * low, z0), (middle, side * high, z1), 0.05, *coat, sides=4))
        parts.append(tube((roof_rear, side * high, z1), (roof_front, side * high, z1), 0.05, *coat, sides=4))
    parts.append(box((rear * 0.5, front * 0.3), (-low * 0.8, low * 0.8), (z0 - 0.1, z0 + 0.12), *seat))
    for x in (0.05 * body.length, -0.16 * body.length):
        for y in (0.36, -0.36):
            parts.append(box((x - 0.06, x + 0.06), (y - 0.2, y + 0.2), (z0, z0 + 0.3), *seat))
    return merge_meshes(parts)


def car(body: CarBody, paint: float = 0.2) -> Mesh:
    """Build a car; paint is the albedo of its coat, 0 (black) to about 0.5 (white)."""
    half, half_width = body.length / 2, body.width / 2
    hood, tail = (body.windscreen - 0.5) * body.length, (body.rear_belt - 0.5) * body.length
    profile = [(-half + 0.12, 0.22), (-half, 0.45), (-half + 0.02, body.belt - 0.14), (tail, body.belt)]
    profile += [(hood, body.belt), (half - 0.22, body.hood), (half - 0.02, 0.62), (half, 0.42), (half - 0.1, 0.2)]
    widths = np.array([0.92, 1.0, 0.98, 0.94, 0.94, 0.9, 0.9, 0.94, 0.88]) * half_width
    parts = [extrude(profile, list(widths), CAR, PAINT, paint)]
    parts.append(_greenhouse(body, CAR, closed_rear=body.height > 2.2, paint=paint))
    radius = 0.30 + 0.05 * (body.height > 1.6)
    for x in (0.305 * body.length, -0.285 * body.length):
        for side in (1, -1):
            parts.append(wheel(x, side * (half_width - 0.1), radius, 0.22, CAR, RUBBER, 0.06))
    for x in (half + 0.015, -half - 0.015):
        parts.append(quad(rectangle(x, (-0.26, 0.26), (0.42, 0.53)), CAR, RETRO, 0.6))
        for side in (1, -1):
            y = (side * 0.58 * half_width, side * 0.9 * half_width)
            lamp = rectangle(x - 0.06 * np.sign(x), y, (body.hood - 0.16, body.hood - 0.03))
            parts.append(quad(lamp, CAR, RETRO, 0.5))
    return merge_meshes(parts)


def _wheels(places: list[float], half_width: float, radius: float, label: int) -> list[Mesh]:
    return [wheel(x, s * (half_width - 0.16), radius, 0.3, label, RUBBER, 0.08) for x in places for s in (1, -1)]


def truck(rng: np.random.Generator) -> Mesh:
    """Build a truck of 6 to 10 m with a closed body, a tipper, or a flat bed."""
    length, width = rng.uniform(5.8, 10.0), rng.uniform(2.2, 2.5)
    cab, high = rng.uniform(1.6, 2.2), rng.uniform(2.4, 3.0)
    front, rear, w = length / 2, -length / 2, width / 2
    paint, load = (float(v) for v in rng.uniform(0.2, 0.5, 2))
    parts = [box((front - cab, front), (-w, w), (0.55, high), TRUCK, PAINT, paint)]
    parts.append(quad(rectangle(front + 0.02, (-w + 0.1, w - 0.1), (1.5, high - 0.3)), TRUCK, GLASS, 0.1))
    parts.append(box((rear, front - cab), (-0.5, 0.5), (0.5, 0.95), TRUCK, METAL, 0.2))
    back = front - cab - 0.15
    kind = rng.integers(3)
    if kind == 0:
        parts.append(box((rear, back), (-w, w), (0.95, rng.uniform(3.0, 3.8)), TRUCK, PAINT, load))
    else:
        rim = 1.15 + (rng.uniform(0.3, 0.9) if kind == 1 else 0.35)
        parts.append(box((rear, back), (-w, w), (0.95, 1.15), TRUCK, METAL, load))
        fore = rim + 0.7 * (kind == 2)
        walls = [((rear, back), (-w, -w + 0.06), fore), ((rear, back), (w - 0.06, w), fore)]
        walls += [((rear, rear + 0.06), (-w, w), rim), ((back - 0.06, back), (-w, w), fore)]
        parts += [box(x, y, (1.15, top), TRUCK, METAL, load) for x, y, top in walls]
    return merge_meshes([*parts, *_wheels([front - 1.0, rear + 1.0, rear + 2.1], w, 0.48, TRUCK)])


def bus(rng: np.random.Generator) -> Mesh:
    """Build a city bus of 10 to 13 m with a band of windows."""
    length, w, high = rng.uniform(10.0, 13.0), 1.27, rng.uniform(2.9, 3.2)
    half, paint = length / 2, rng.uniform(0.3, 0.5)
    parts = [
        box((-half, half), (-w, w), (0.35, 1.2), BUS, PAINT, paint),
        box((-half, half), (-w, w), (2.3, high), BUS, PAINT, paint),
    ]
    for x0, x1 in zip(np.linspace(-half, half - 1.35, 9), np.linspace(-half + 1.2, half - 0.15, 9), strict=True):
        for y in (w, -w):
            parts.append(quad(rectangle((x0, x1), y, (1.2, 2.3)), BUS, GLASS, 0.25))
            parts.append(tube((x1 + 0.07, y, 1.2), (x1 + 0.07, y, 2.3), 0.08, BUS, PAINT, paint, sides=4))
    for x in (-half, half):
        parts.append(quad(rectangle(x, (-w, w), (1.2, 2.3)), BUS, GLASS, 0.2))
    parts.append(box((-half + 0.3, half - 1.5), (-0.9, 0.9), (0.6, 1.45), BUS, CLOTH, 0.2))
    return merge_meshes([*parts, *_wheels([half - 2.6, -half + 3.1], w, 0.48, BUS)])


def other_vehicle(rng: np.random.Generator) -> Mesh:
    """Build a caravan, a trailer, a tractor or a camper: the data set's other-vehicle."""
    kind = rng.integers(4)
    paint = rng.uniform(0.3, 0.5)
    if kind == 0:  # caravan
        half, w, high = rng.uniform(2.2, 3.0), 1.1, rng.uniform(2.3, 2.6)
        profile = [(-half, 0.5), (-half - 0.1, 1.4), (-half + 0.2, high)]
        profile += [(half - 0.5, high), (half, 1.3), (half - 0.1, 0.5)]
        parts = [extrude(profile, w, OTHER_VEHICLE, PAINT, paint), *_wheels([-0.1], w, 0.32, OTHER_VEHICLE)]
        parts.append(tube((half, 0, 0.5), (half + 1.2, 0, 0.45), 0.06, OTHER_VEHICLE, METAL, 0.2, sides=4))
    elif kind == 1:  # trailer
        half, w = rng.uniform(1.1, 2.4), rng.uniform(0.7, 1.05)
        parts = [box((-half, half), (-w, w), (0.5, rng.uniform(0.9, 2.0)), OTHER_VEHICLE, METAL, paint)]
        parts += _wheels([-0.1], w + 0.3, 0.3, OTHER_VEHICLE)
        parts.append(tube((half, 0, 0.5), (half + 1.1, 0, 0.45), 0.05, OTHER_VEHICLE, METAL, 0.2, sides=4))
    elif kind == 2:  # tractor
        parts = [box((0.0, 1.9), (-0.4, 0.4), (0.7, 1.5), OTHER_VEHICLE, PAINT, paint)]
        parts.append(box((-1.3, 0.1), (-0.7, 0.7), (0.8, 1.3), OTHER_VEHICLE, PAINT, paint))
        for x in (-1.2, 0.0):
            for y in (-0.65, 0.65):
                parts.append(tube((x, y, 1.3), (x, y, 2.6), 0.05, OTHER_VEHICLE, METAL, 0.2, sides=4))
        parts.append(box((-1.3, 0.1), (-0.75, 0.75), (2.6, 2.68), OTHER_VEHICLE, PAINT, paint))
        parts += [wheel(-0.9, s * 0.85, 0.78, 0.45, OTHER_VEHICLE, RUBBER, 0.1) for s in (1, -1)]
        parts += [wheel(1.5, s * 0.8, 0.45, 0.3, OTHER_VEHICLE, RUBBER, 0.1) for s in (1, -1)]
    else:  # camper
        half, w, high = rng.uniform(2.8, 3.6), 1.12, rng.uniform(2.7, 3.1)
        profile = [(-half, 0.4), (-half, high), (half - 1.4, high), (half - 0.6, 1.9), (half - 0.1, 1.1), (half, 0.4)]
        parts = [extrude(profile, w, OTHER_VEHICLE, PAINT, paint)]
        parts += _wheels([half - 1.0, -half + 1.3], w, 0.36, OTHER_VEHICLE)
    return merge_meshes(parts)


def bicycle(label: int = BICYCLE) -> Mesh:
    """Build a bicycle, 1.75 m long."""

    def bar(a: tuple[float, float, float], b: tuple[float, float, float], radius: float = 0.022) -> Mesh:
        return tube(a, b, radius, label, METAL, 0.5, sides=4)

    hub_r, hub_f, crank = (-0.52, 0.0, 0.34), (0.54, 0.0, 0.34), (-0.08, 0.0, 0.28)
    seat, head = (-0.22, 0.0, 0.88), (0.38, 0.0, 0.88)
    bars = [(crank, seat), (seat, head), (crank, head), (hub_r, crank), (hub_r, seat), (hub_f, (0.34, 0.0, 1.02))]
    parts = [bar(a, b) for a, b in bars]
    parts += [hoop(x, 0.34, 0.045, label, RUBBER, 0.4) for x in (-0.52, 0.54)]
    parts.append(bar((0.36, -0.29, 1.04), (0.36, 0.29, 1.04)))
    parts.append(box((-0.36, -0.1), (-0.07, 0.07), (0.9, 0.96), label, RUBBER, 0.2))
    parts.append(box((-0.75, -0.3), (-0.06, 0.06), (0.7, 0.74), label, METAL, 0.3))
    return merge_meshes(parts)


def motorcycle(label: int = MOTORCYCLE, scooter: bool = False) -> Mesh:
    """Build a motorcycle of 2.1 m, or a scooter of 1.8 m."""
    reach = 0.62 if scooter else 0.72
    radius = 0.24 if scooter else 0.32
    parts = [wheel(x, 0.0, radius, 0.14, label, RUBBER, 0.1) for x in (-reach, reach)]
    parts.append(box((-0.35, 0.35), (-0.16, 0.16), (0.28 if scooter else 0.32, 0.7), label, METAL, 0.25))
    parts.append(box((-0.85, 0.02), (-0.15, 0.15), (0.66, 0.82), label, RUBBER, 0.15))
    parts.append(extrude([(0.0, 0.68), (0.05, 0.96), (0.4, 0.98), (0.45, 0.7)], 0.17, label, PAINT, 0.3))
    parts.append(tube((reach, 0, radius), (reach - 0.28, 0, 1.02), 0.07, label, METAL, 0.3, sides=5))
    parts.append(tube((reach - 0.3, -0.36, 1.05), (reach - 0.3, 0.36, 1.05), 0.03, label, METAL, 0.25, sides=4))
    parts.append(box((reach - 0.3, reach - 0.1), (-0.17, 0.17), (0.76, 1.12), label, PAINT, 0.3))
    return merge_meshes(parts)


@lru_cache(maxsize=1)
def _vehicle_pool() -> dict[int, tuple[Mesh, ...]]:
    """A fixed set of vehicles of every class, built once; streets use copies."""
    rng = np.random.default_rng(19)
    coats = (0.0, 0.14, 0.3, 0.5, 0.7)
    builders = ((TRUCK, truck), (BUS, bus), (OTHER_VEHICLE, other_vehicle))
    pool = {label: tuple(build(rng) for _ in range(12)) for label, build in builders}
    pool[CAR] = tuple(car(body, coat) for body in CAR_BODIES for coat in coats)
    pool[BICYCLE] = (bicycle(),)
    pool[MOTORCYCLE] = (motorcycle(), motorcycle(scooter=True))
    return pool


def pick_vehicle(label: int, rng: np.random.Generator) -> Mesh:
    """Pick a random vehicle by the raw id of its stationary class, slightly scaled."""
    choices = _vehicle_pool()[label]
    if label == CAR:  # dark coats are the most frequent, vans and coupes the rarest
        weights = np.array([1.2, 2, 2, 1.5, 1.2, 2, 1.5, 1, 0.8, 1, 0.5, 0.5, 0.3])
        body = rng.choice(len(CAR_BODIES), p=weights / weights.sum())
        coat = rng.choice(5, p=[0.3, 0.25, 0.2, 0.15, 0.1])
        chosen = choices[body * 5 + coat]
    else:
        chosen = choices[rng.integers(len(choices))]
    return chosen.transformed(scale=rng.uniform(0.97, 1.04))
