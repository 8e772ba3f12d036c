"""Vegetation: sizes and a random generator in, ragged crowns, hedges, bushes and trunks of small leaves out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.materials import BARK, LEAF
from sqsegv3_ros.simulation.meshes import Mesh, box, merged, mesh, tube

VEGETATION, TRUNK = 70, 71


def leaves(centers: npt.NDArray[np.floating], size: float, albedo: float, rng: np.random.Generator) -> Mesh:
    """(L, 3) places -> one triangle of about that size at each, turned at random."""
    count = len(centers)
    corners = rng.normal(0.0, size * 0.55, (count, 3, 3)) + np.asarray(centers)[:, None]
    return mesh(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), VEGETATION, LEAF, albedo)


def crown(radii: tuple[float, float, float], height: float, leaf: float, rng: np.random.Generator) -> Mesh:
    """An ellipsoid of leaves about (0, 0, height), denser towards its outside and in clumps."""
    area = 4 * np.pi * (radii[0] * radii[1] * radii[2]) ** (2 / 3)
    count = int(np.clip(0.9 * area / (leaf * leaf), 30, 500))
    clumps = rng.normal(size=(max(count // 14, 4), 3))
    clumps *= (rng.uniform(0.45, 1.0, (len(clumps), 1))) / np.linalg.norm(clumps, axis=1, keepdims=True)
    places = clumps[rng.integers(len(clumps), size=count)] + rng.normal(0.0, 0.2, (count, 3))
    return leaves(places * radii + [0, 0, height], leaf, float(rng.uniform(0.32, 0.42)), rng)


def tree(rng: np.random.Generator, trunk_radius: float | None = None) -> Mesh:
    """A broad-leaved or columnar tree: trunk with boughs, crown. 4 to 10 m high; foot at the origin."""
    radius = float(rng.uniform(0.09, 0.28)) if trunk_radius is None else trunk_radius
    clear = float(rng.uniform(1.6, 3.4))  # height of the lowest leaves
    spread = float(rng.uniform(1.2, 2.2) + 6 * radius)
    tall = float(rng.uniform(1.6, 3.2))
    lean = rng.normal(0.0, 0.12, 2)
    top = (float(lean[0]), float(lean[1]), clear + tall)
    bark = float(rng.uniform(0.25, 0.48))
    parts = [tube((0, 0, -0.3), top, (radius, radius * 0.6), TRUNK, BARK, bark, sides=7)]
    for _ in range(int(rng.integers(1, 4))):
        angle, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
        start = clear * rng.uniform(0.7, 1.0)
        end = (spread * 0.5 * np.cos(angle), spread * 0.5 * np.sin(angle), start + rise)
        parts.append(
            tube((lean[0] * 0.6, lean[1] * 0.6, start), end, (radius * 0.45, 0.03), TRUNK, BARK, bark, sides=5)
        )
    parts.append(crown((spread, spread, tall), clear + tall * 0.9, 0.46, rng))
    return merged(parts)


def conifer(rng: np.random.Generator) -> Mesh:
    """A spruce whose branches begin near the ground."""
    width, height = float(rng.uniform(1.0, 2.2)), float(rng.uniform(5.0, 9.0))
    level = rng.uniform(0.0, 1.0, 420) ** 1.5
    angle = rng.uniform(0, 2 * np.pi, len(level))
    reach = width * (1 - 0.85 * level) * rng.uniform(0.35, 1.05, len(level))
    places = np.stack([reach * np.cos(angle), reach * np.sin(angle), 0.25 + level * height], axis=1)
    trunk = tube((0, 0, -0.3), (0, 0, height), (0.14, 0.04), TRUNK, BARK, 0.33, sides=6)
    return merged([trunk, leaves(places, 0.4, float(rng.uniform(0.3, 0.4)), rng)])


def bush(rng: np.random.Generator, size: float | None = None) -> Mesh:
    """A bush on the ground, 0.6 to 2.5 m across."""
    across = float(rng.uniform(0.6, 2.5)) if size is None else size
    height = across * float(rng.uniform(0.55, 1.0))
    area = 2.2 * across * height
    leaf = float(np.clip(0.14 * across, 0.14, 0.3))
    count = int(np.clip(2.6 * area / leaf**2, 40, 320))
    places = rng.normal(size=(count, 3))
    places *= rng.uniform(0.4, 1.0, (count, 1)) / np.linalg.norm(places, axis=1, keepdims=True)
    places = places * [across / 2, across / 2, height / 2] + [0, 0, height / 2]
    return leaves(places, leaf, float(rng.uniform(0.3, 0.42)), rng)


def hedge(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """A clipped hedge along x from 0 to length, about y = 0: leaves before a dense heart."""
    surface = length * (2 * height + width) + 2 * width * height
    leaf = 0.25
    count = int(0.65 * surface / leaf**2)
    side = rng.random(count) * (2 * height + width)
    x = rng.uniform(0, length, count)
    on_top = side > 2 * height
    left = (side < height) & ~on_top
    y = np.where(on_top, rng.uniform(-0.5, 0.5, count) * width, np.where(left, 0.5, -0.5) * width)
    z = np.where(on_top, height, np.mod(side, height))
    places = np.stack([x, y, z], axis=1) + rng.normal(0, 0.06, (count, 3))
    heart = box(
        (0.1, length - 0.1), (-width / 2 + 0.12, width / 2 - 0.12), (-0.3, height - 0.12), VEGETATION, LEAF, 0.33
    )
    return merged([leaves(places, leaf, float(rng.uniform(0.3, 0.42)), rng), heart])


def thicket(length: float, depth: float, height: float, rng: np.random.Generator, leaf: float = 0.42) -> Mesh:
    """Wild growth along x from 0 to length and y from 0 to depth: the edge of a wood, a grown bank."""
    count = int(np.clip(2.0 * length * height / leaf**2, 40, 2600))
    u = rng.uniform(0, length, count)
    back = rng.uniform(0, 1, count) ** 1.6
    wave = 0.5 + 0.5 * np.sin(u * rng.uniform(0.4, 0.9) + rng.uniform(0, 6)) * np.sin(u * 0.23)
    top = height * (0.45 + 0.55 * wave) * (0.35 + 0.65 * np.sqrt(back))
    places = np.stack([u, depth * (0.2 * wave + 0.8 * back), rng.uniform(0, 1, count) ** 0.9 * top], axis=1)
    parts = [leaves(places, leaf, float(rng.uniform(0.3, 0.42)), rng)]
    for _ in range(int(length / 5)):
        x, y = rng.uniform(0, length), depth * rng.uniform(0.3, 1.0)
        parts.append(
            tube((x, y, -0.5), (x + rng.normal(0, 0.3), y, height + 2), (0.12, 0.07), TRUNK, BARK, 0.35, sides=5)
        )
    return merged(parts)
