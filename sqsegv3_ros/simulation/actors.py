# SPDX-License-Identifier: Apache-2.0
"""Moving traffic: vehicles, riders and pedestrians at any time.

Every lane has an endless row of equidistant slots that move at the lane's speed; a random number seeded by the slot's
number decides what is in it. So traffic is reproducible at any time, and only the part in sight is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqsegv3_ros.simulation.ground import Plan
from sqsegv3_ros.simulation.mesh_pools import pick_object
from sqsegv3_ros.simulation.meshes import Mesh
from sqsegv3_ros.simulation.plans import lane_center
from sqsegv3_ros.simulation.vehicles import BUS, CAR, MOVING, OTHER_VEHICLE, TRUCK

PERSON, BICYCLIST, MOTORCYCLIST = 30, 31, 32
_TRAFFIC = ((CAR, 0.80), (TRUCK, 0.05), (BUS, 0.03), (OTHER_VEHICLE, 0.04), (MOTORCYCLIST, 0.04), (BICYCLIST, 0.04))


@dataclass(frozen=True)
class Lane:
    """A line of traffic along the street.

    Attributes:
        v: Lateral position of its middle.
        direction: +1 towards +u, -1 towards -u.
        speed: Speed in m/s.
        gap: Metres between slots.
        share: Share of occupied slots.
        kinds: Raw ids of its members with their weights.
        sway: Largest distance of members from the middle, metres.
    """

    v: float
    direction: int
    speed: float
    gap: float
    share: float
    kinds: tuple[tuple[int, float], ...]
    sway: float


def traffic_lanes(plan: Plan, seed: tuple[int, ...], ego_speed: float) -> list[Lane]:
    """Draw the lanes, cycle ways and sidewalks of a street. The ego vehicle's own lane moves at its speed."""
    rng = np.random.default_rng([*seed, 5])
    busy = rng.uniform(0.05, 0.5)
    fast = {"highway": 25.0, "country": 18.0}.get(plan.kind, 9.0)
    lanes = []
    gap = 35.0 if plan.kind == "highway" else 22.0
    for i in range(plan.lanes):
        for direction in (1, -1):
            v = lane_center(plan, direction, i)
            if v is not None:
                other = fast * rng.uniform(0.7, 1.2) * (1 + 0.2 * i)
                speed = ego_speed if direction > 0 and i == 0 else other
                lanes.append(Lane(v, direction, speed, gap, busy, _TRAFFIC, 0.2))
    if plan.kind in ("city", "dense"):
        for direction in (1, -1):
            edge = plan.half_width - plan.parked[int(direction > 0)] - 0.4
            riders = ((BICYCLIST, 0.85), (MOTORCYCLIST, 0.15))
            lanes.append(Lane(-direction * edge, direction, 4.5, 30.0, 0.25, riders, 0.2))
    for side in (1, -1):
        walk = plan.sidewalk(side)
        if walk:
            v = side * (plan.half_width + walk / 2)
            for direction in (1, -1):
                lanes.append(Lane(v, direction, 1.35, 14.0, 0.15, ((PERSON, 0.94), (BICYCLIST, 0.06)), walk * 0.3))
    return lanes


@dataclass(frozen=True)
class Actor:
    """A moving object.

    Attributes:
        mesh: Its mesh, with the raw id of the moving class and an instance.
        u: Street coordinate at the middle of the sweep.
        v: Street coordinate.
        yaw: Direction relative to the street.
        speed: Speed along +u in m/s.
    """

    mesh: Mesh
    u: float
    v: float
    yaw: float
    speed: float


def actors_at(
    plan: Plan, seed: tuple[int, ...], lanes: list[Lane], time: float, ego: tuple[float, float], sight_m: float
) -> list[Actor]:
    """Get everything that moves within sight of the ego vehicle at a time.

    Args:
        plan: Plan of the street.
        seed: Seed of the street.
        lanes: Lanes of the street.
        time: Time in seconds.
        ego: (u, v) of the ego vehicle.
        sight_m: Largest distance along the street.
    """
    found = []
    for number, lane in enumerate(lanes):
        drift = lane.direction * lane.speed * time
        first = int(np.floor((ego[0] - sight_m - drift) / lane.gap))
        last = int(np.ceil((ego[0] + sight_m - drift) / lane.gap))
        for k in range(first, last + 1):
            rng = np.random.default_rng([*seed, 6, number, k + 1_000_000])
            if rng.random() > lane.share:
                continue
            kinds = [kind for kind, _ in lane.kinds]
            weights = np.array([share for _, share in lane.kinds])
            label = rng.choice(kinds, p=weights / weights.sum())
            u = k * lane.gap + rng.uniform(0.0, 0.35) * lane.gap + drift
            v = lane.v + rng.uniform(-1, 1) * lane.sway
            large = label in (CAR, TRUCK, BUS, OTHER_VEHICLE)
            if abs(u - ego[0]) < (9.5 if large else 3.0) and abs(v - ego[1]) < (2.3 if large else 1.7):
                continue
            mesh = pick_object(label, rng).with_label(MOVING[label], 60001 + (number * 613 + k) % 5000)
            yaw = (0.0 if lane.direction > 0 else np.pi) + rng.normal(0, 0.02)
            found.append(Actor(mesh, u, v, yaw, lane.direction * lane.speed))
    return found
