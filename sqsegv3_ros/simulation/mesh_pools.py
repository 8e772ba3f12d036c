# SPDX-License-Identifier: Apache-2.0
"""Pools of ready-made meshes.

Building a tree takes a hundred times longer than placing it, so every process builds each pool once, from a fixed seed,
and streets use copies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from sqsegv3_ros.simulation import buildings, furniture, people, plants, vehicles
from sqsegv3_ros.simulation.meshes import Mesh

HEDGE_M = 2.5  # length of a section of hedge or fence
THICKET_M = 8.0


def _house(rng: np.random.Generator) -> Mesh:
    return buildings.house(rng.uniform(8, 14), rng.uniform(8, 12), int(rng.integers(1, 4)), rng)


def _block(rng: np.random.Generator) -> Mesh:
    length, depth = rng.uniform(11, 24), rng.uniform(10, 14)
    return buildings.house(length, depth, int(rng.integers(2, 5)), rng, flat=rng.random() < 0.4)


def _hall(rng: np.random.Generator) -> Mesh:
    return buildings.house(rng.uniform(25, 40), rng.uniform(15, 25), int(rng.integers(1, 3)), rng, flat=True)


_BUILDERS: dict[str, tuple[int, Callable[[np.random.Generator], Mesh]]] = {
    "tree": (28, plants.tree),
    "young tree": (10, lambda rng: plants.tree(rng, rng.uniform(0.05, 0.1))),
    "conifer": (8, plants.conifer),
    "bush": (24, plants.bush),
    "small bush": (12, lambda rng: plants.bush(rng, rng.uniform(0.4, 1.0))),
    "low hedge": (6, lambda rng: plants.hedge(HEDGE_M, rng.uniform(0.5, 0.9), rng.uniform(0.7, 1.2), rng)),
    "high hedge": (8, lambda rng: plants.hedge(HEDGE_M, rng.uniform(0.7, 1.3), rng.uniform(1.4, 2.4), rng)),
    "thicket": (8, lambda rng: plants.thicket(THICKET_M, 6.0, rng.uniform(3.0, 7.0), rng)),
    "far thicket": (8, lambda rng: plants.thicket(THICKET_M, 6.0, rng.uniform(3.0, 7.0), rng, grain=0.8)),
    "low thicket": (8, lambda rng: plants.thicket(THICKET_M, 3.0, rng.uniform(1.0, 2.4), rng)),
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
    count, build = _BUILDERS[name]
    rng = np.random.default_rng([2020, sorted(_BUILDERS).index(name)])
    return tuple(build(rng) for _ in range(count))


def pick(name: str, rng: np.random.Generator) -> Mesh:
    """Pick a random mesh of a pool."""
    pool = _pool(name)
    return pool[rng.integers(len(pool))]


def pick_fitting(name: str, length: float, rng: np.random.Generator) -> Mesh | None:
    """Pick a random mesh of a pool that is at most `length` long (in x); None if there is none."""
    fitting = [mesh for mesh in _pool(name) if float(mesh.vertices[:, 0].max()) <= length]
    return fitting[rng.integers(len(fitting))] if fitting else None


def pick_variant(name: str, number: int) -> Mesh:
    """Pick the mesh with a number, modulo the size of the pool, to repeat the same hedge."""
    pool = _pool(name)
    return pool[number % len(pool)]


_PEOPLE = {30: "person", 31: "bicyclist", 32: "motorcyclist"}


def pick_object(label: int, rng: np.random.Generator) -> Mesh:
    """Pick a random vehicle or person by the raw id of its stationary class."""
    return pick(_PEOPLE[label], rng) if label in _PEOPLE else vehicles.pick_vehicle(label, rng)
