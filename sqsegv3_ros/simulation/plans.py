# SPDX-License-Identifier: Apache-2.0
"""Random plans of streets by kind of scene, and their lanes."""

from __future__ import annotations

import numpy as np

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.simulation.ground import BAY_M, SURFACES, Plan, SideStreet

SCENES = ("city", "highway", "country", "mixed")
"""Kinds of scenes; 'mixed' draws one of the others for every street."""


def random_plan(scene: str, seed: tuple[int, ...], length: tuple[float, float]) -> Plan:
    """Draw a plan for a street.

    Args:
        scene: Kind of scene, one of `SCENES`.
        seed: Seed.
        length: First and last u, metres.

    Raises:
        UserError: There is no such kind of scene.
    """
    if scene not in SCENES:
        raise UserError(f"no scene '{scene}' (scenes: {', '.join(SCENES)})")
    rng = np.random.default_rng([*seed, 1])
    if scene == "mixed":
        scene = rng.choice(["city", "country", "highway"], p=[0.82, 0.13, 0.05])
    return {"city": _city, "country": _country, "highway": _highway}[scene](rng, length)


def _tone(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(rng.normal(1.0, 0.06, len(SURFACES)).tolist())


def _crossings(
    rng: np.random.Generator, length: tuple[float, float], gap: tuple[float, float], walk: float
) -> tuple[SideStreet, ...]:
    """Draw side streets at random distances: to the left, to the right, or across."""
    found = []
    u = length[0] + rng.uniform(0, gap[1])
    while u < length[1]:
        found.append(
            SideStreet(
                u=u,
                half_width=rng.uniform(2.6, 4.2),
                sidewalk=walk and rng.uniform(1.3, 2.6),
                skew=rng.choice([0.0, 0.0, rng.normal(0, 0.25)]),
                side=rng.choice([-1, 0, 0, 1]),
                radius=rng.uniform(3.0, 7.0),
            )
        )
        u += rng.uniform(*gap)
    return tuple(found)


def _wave(rng: np.random.Generator, height: float, shortest: float, longest: float) -> tuple[float, float, float]:
    """Draw wavelength and phase of a wave, and keep its height."""
    return height, rng.uniform(shortest, longest), rng.uniform(0, 6.28)


def _city(rng: np.random.Generator, length: tuple[float, float]) -> Plan:
    dense = rng.random() < 0.3
    avenue = rng.random() < 0.08
    left, right = (float(rng.choice([0.0, 1.2, BAY_M], p=[0.42, 0.23, 0.35])) for _ in range(2))
    half = rng.uniform(3.0, 4.6) + 0.5 * (left + right) * rng.choice([0.6, 1.0]) + 3.5 * avenue
    walks = rng.uniform(1.8, 4.2 + dense, 2)
    tight = rng.choice([0.0, 1 / 600, 1 / 250, 1 / 140])
    return Plan(
        kind="dense" if dense else "city",
        half_width=half,
        sidewalks=(walks[0], walks[1] if rng.random() < 0.85 else 0.0),
        kerb=rng.uniform(0.02, 0.14),
        median=rng.uniform(1.0, 2.5) if avenue else 0.0,
        lanes=2 if avenue else 1,
        hill=_wave(rng, rng.uniform(0.0, 0.9), 120, 300),
        slope=(rng.normal(0.2, 0.6), rng.normal(0.2, 0.6), rng.uniform(8, 25), rng.uniform(60, 160)),
        bend=_wave(rng, tight, 150, 400),
        bump=0.03,
        tone=_tone(rng),
        crossings=_crossings(rng, length, (45.0, 120.0), 1.0),
        parked=(left, right),
        length=length,
    )


def _country(rng: np.random.Generator, length: tuple[float, float]) -> Plan:
    path = rng.random() < 0.35
    return Plan(
        kind="country",
        half_width=rng.uniform(2.6, 3.8),
        sidewalks=(0.0, rng.uniform(1.6, 2.6) if path else 0.0),
        kerb=rng.choice([0.0, 0.08]),
        ditch=rng.choice([0.0, 0.25, 0.5]),
        hill=_wave(rng, rng.uniform(0.2, 2.0), 150, 400),
        slope=(rng.normal(0.3, 1.8), rng.normal(0.3, 1.8), rng.uniform(6, 30), rng.uniform(60, 200)),
        bend=_wave(rng, rng.choice([1 / 900, 1 / 300, 1 / 130]), 150, 400),
        bump=rng.uniform(0.03, 0.07),
        tone=_tone(rng),
        crossings=_crossings(rng, length, (90.0, 250.0), 0.0),
        length=length,
    )


def _highway(rng: np.random.Generator, length: tuple[float, float]) -> Plan:
    lanes = int(rng.integers(2, 4))
    median = rng.uniform(0.8, 2.0)
    return Plan(
        kind="highway",
        half_width=median + 3.6 * lanes + rng.uniform(1.0, 3.2),
        median=median,
        lanes=lanes,
        hill=_wave(rng, rng.uniform(0.0, 1.5), 300, 600),
        slope=(rng.normal(0.5, 2.5), rng.normal(0.5, 2.5), rng.uniform(8, 20), rng.uniform(100, 300)),
        bend=_wave(rng, rng.choice([1 / 2000, 1 / 700, 1 / 350]), 300, 700),
        bump=0.05,
        tone=_tone(rng),
        length=length,
    )


def lane_center(plan: Plan, direction: int, index: int = 0) -> float | None:
    """Get the v of a lane's middle. Traffic keeps right.

    Args:
        plan: Plan of the street.
        direction: 1 for lanes towards +u, -1 for lanes towards -u.
        index: Number of the lane, from the outermost.

    Returns:
        The v; None for direction -1 if parked cars leave room for one lane only.
    """
    shoulder = 1.5 if plan.kind == "highway" else 0.0
    left, right = (plan.half_width - parked - shoulder for parked in plan.parked)
    if plan.lanes == 1 and not plan.median:
        middle, room = (left - right) / 2, left + right
        if room < 4.8:
            return middle if direction > 0 else None
        return middle - direction * room / 4
    outer = right if direction > 0 else left
    width = (outer - plan.median - 0.3) / plan.lanes
    return -direction * (outer - (index + 0.5) * width)


def ego_lane_center(plan: Plan) -> float:
    """Get the v of the lane in which the sensor's vehicle drives towards +u."""
    lane = lane_center(plan, 1)
    assert lane is not None  # there is always a lane in direction 1
    return lane
