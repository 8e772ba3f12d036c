"""Pools of ready-made meshes: a name and a random generator in, one of the pool out.

Making a tree costs a hundred times what placing it costs, so every process makes each pool once, from a fixed seed, and
streets take copies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from sqsegv3_ros.simulation import buildings, furniture, people, plants, vehicles
from sqsegv3_ros.simulation.meshes import Mesh

HEDGE_M = 2.5  # length of a stretch of hedge or fence
THICKET_M = 8.0


def _house(rng: np.random.Generator) -> Mesh:
    return buildings.house(float(rng.uniform(8, 14)), float(rng.uniform(8, 12)), int(rng.integers(1, 4)), rng)


def _block(rng: np.random.Generator) -> Mesh:
    length, depth = float(rng.uniform(11, 24)), float(rng.uniform(10, 14))
    return buildings.house(length, depth, int(rng.integers(2, 5)), rng, flat=bool(rng.random() < 0.4))


def _hall(rng: np.random.Generator) -> Mesh:
    return buildings.house(
        float(rng.uniform(25, 40)), float(rng.uniform(15, 25)), int(rng.integers(1, 3)), rng, flat=True
    )


_MAKERS: dict[str, tuple[int, Callable[[np.random.Generator], Mesh]]] = {
    "tree": (28, plants.tree),
    "young tree": (10, lambda rng: plants.tree(rng, float(rng.uniform(0.05, 0.1)))),
    "conifer": (8, plants.conifer),
    "bush": (24, plants.bush),
    "small bush": (12, lambda rng: plants.bush(rng, float(rng.uniform(0.4, 1.0)))),
    "low hedge": (
        6,
        lambda rng: plants.hedge(HEDGE_M, float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.7, 1.2)), rng),
    ),
    "high hedge": (
        8,
        lambda rng: plants.hedge(HEDGE_M, float(rng.uniform(0.7, 1.3)), float(rng.uniform(1.4, 2.4)), rng),
    ),
    "thicket": (8, lambda rng: plants.thicket(THICKET_M, 6.0, float(rng.uniform(3.0, 7.0)), rng)),
    "far thicket": (8, lambda rng: plants.thicket(THICKET_M, 6.0, float(rng.uniform(3.0, 7.0)), rng, grain=0.8)),
    "low thicket": (8, lambda rng: plants.thicket(THICKET_M, 3.0, float(rng.uniform(1.0, 2.4)), rng)),
    "house": (36, _house),
    "block": (24, _block),
    "hall": (8, _hall),
    "garage": (8, buildings.garage),
    "shelter": (1, lambda rng: buildings.shelter()),
    "lamp post": (10, furniture.lamp_post),
    "utility pole": (6, furniture.utility_pole),
    "traffic sign": (30, furniture.traffic_sign),
    "direction board": (12, furniture.direction_board),
    "traffic light": (4, furniture.traffic_light),
    "guide post": (1, lambda rng: furniture.guide_post()),
    "bollard": (6, furniture.bollard),
    "clutter": (24, furniture.clutter),
    "person": (40, people.person),
    "bicyclist": (16, people.bicyclist),
    "motorcyclist": (12, people.motorcyclist),
}


@cache
def _pool(name: str) -> tuple[Mesh, ...]:
    count, make = _MAKERS[name]
    rng = np.random.default_rng([2020, sorted(_MAKERS).index(name)])
    return tuple(make(rng) for _ in range(count))


def pick(name: str, rng: np.random.Generator) -> Mesh:
    """One mesh of the named pool."""
    pool = _pool(name)
    return pool[int(rng.integers(len(pool)))]


def pick_within(name: str, length: float, rng: np.random.Generator) -> Mesh | None:
    """One mesh of the named pool that is no longer (in x) than length; None where there is none."""
    fitting = [mesh for mesh in _pool(name) if float(mesh.vertices[:, 0].max()) <= length]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def variant(name: str, number: int) -> Mesh:
    """The mesh of that number in the pool (modulo its size): the same hedge again and again."""
    pool = _pool(name)
    return pool[number % len(pool)]


_ACTORS = {30: "person", 31: "bicyclist", 32: "motorcyclist"}


def actor(label: int, rng: np.random.Generator) -> Mesh:
    """A thing that moves or stands about, by the raw id of the standing class."""
    return pick(_ACTORS[label], rng) if label in _ACTORS else vehicles.vehicle(label, rng)
