# SPDX-License-Identifier: Apache-2.0
"""Meshes of vegetation: trees, bushes, hedges and thickets.

In LiDAR scans foliage resembles a rough surface rather than a cloud: it consists of uneven sheets and clumps with
single leaves around them, and a few rays pass through (material 'leaf').
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.materials import BARK, LEAF
from sqsegv3_ros.simulation.meshes import Mesh, grid_faces, merge_meshes, quad, rectangle, tube, uniform_mesh

VEGETATION, TRUNK = 70, 71

_GOLDEN = (1 + 5**0.5) / 2
_ICOSAHEDRON = np.array(
    [[0, y, z * _GOLDEN] for y in (1, -1) for z in (1, -1)]
    + [[x, y * _GOLDEN, 0] for x in (1, -1) for y in (1, -1)]
    + [[x * _GOLDEN, 0, z] for x in (1, -1) for z in (1, -1)]
) / np.hypot(1, _GOLDEN)  # fmt: skip


def _icosahedron_faces() -> npt.NDArray[np.int32]:
    """The 20 triples of adjacent corners."""
    apart = np.linalg.norm(_ICOSAHEDRON[:, None] - _ICOSAHEDRON, axis=2)
    near = (apart > 0) & (apart < 1.1)
    triples = [
        (i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]
    ]
    return np.array(triples, dtype=np.int32)


_FACES = _icosahedron_faces()


def _shade(rng: np.random.Generator) -> float:
    return rng.uniform(0.29, 0.45)


def leaves(centers: npt.NDArray[np.floating], size: float, albedo: float, rng: np.random.Generator) -> Mesh:
    """Build one randomly oriented triangle of about `size` at each of (L, 3) centers."""
    count = len(centers)
    corners = rng.normal(0.0, size * 0.55, (count, 3, 3)) + np.asarray(centers)[:, None]
    return uniform_mesh(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), VEGETATION, LEAF, albedo)


def clumps(centers: npt.NDArray[np.floating], radius: float, albedo: float, rng: np.random.Generator) -> Mesh:
    """Build an uneven ball of about `radius` at each of (K, 3) centers, with some leaves that stick out."""
    count = len(centers)
    size = radius * rng.uniform(0.45, 1.4, (count, 1, 1)) * rng.normal(1.0, 0.32, (count, 12, 1))
    corners = centers[:, None] + size * _ICOSAHEDRON * [1.0, 1.0, 0.85]
    faces = (12 * np.arange(count)[:, None, None] + _FACES).reshape(-1, 3)
    balls = uniform_mesh(corners.reshape(-1, 3), faces, VEGETATION, LEAF, albedo)
    out = rng.normal(size=(4 * count, 3))
    out *= radius * rng.uniform(0.8, 1.3, (4 * count, 1)) / np.linalg.norm(out, axis=1, keepdims=True)
    return merge_meshes([balls, leaves(np.repeat(centers, 4, axis=0) + out, 0.45 * radius, albedo, rng)])


def sheet(points: npt.NDArray[np.floating], gaps: float, albedo: float, rng: np.random.Generator) -> Mesh:
    """Build the surface through an (R, C, 3) grid of points; a share `gaps` of its triangles is missing."""
    faces = grid_faces(*points.shape[:2])
    return uniform_mesh(points.reshape(-1, 3), faces[rng.random(len(faces)) >= gaps], VEGETATION, LEAF, albedo)


def crown(radii: tuple[float, float, float], height: float, rng: np.random.Generator) -> Mesh:
    """Build an ellipsoid of clumps about (0, 0, height)."""
    size = (radii[0] * radii[1] * radii[2]) ** (1 / 3)
    count = int(np.clip(7 * size, 7, 22))
    places = rng.normal(size=(count, 3))
    places *= rng.uniform(0.35, 0.9, (count, 1)) / np.linalg.norm(places, axis=1, keepdims=True)
    return clumps(places * radii + [0, 0, height], 0.36 * size, _shade(rng), rng)


def tree(rng: np.random.Generator, trunk_radius: float | None = None) -> Mesh:
    """Build a broad-leaved or columnar tree of 4 to 10 m: trunk with boughs, crown. Its foot is at the origin."""
    radius = rng.uniform(0.08, 0.22) if trunk_radius is None else trunk_radius
    clear = rng.uniform(0.9, 3.0)  # height of the lowest leaves
    spread = float(rng.uniform(1.2, 2.2) + 6 * radius)
    tall = rng.uniform(1.6, 3.2)
    lean = rng.normal(0.0, 0.12, 2)
    top = (float(lean[0]), float(lean[1]), clear + tall)
    bark = rng.uniform(0.22, 0.5)
    parts = [tube((0, 0, -0.3), top, (radius, radius * 0.6), TRUNK, BARK, bark, sides=7)]
    for _ in range(rng.integers(1, 4)):
        angle, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
        start = clear * rng.uniform(0.7, 1.0)
        end = (spread * 0.5 * np.cos(angle), spread * 0.5 * np.sin(angle), start + rise)
        foot = (lean[0] * 0.6, lean[1] * 0.6, start)
        parts.append(tube(foot, end, (radius * 0.45, 0.03), TRUNK, BARK, bark, sides=5))
    parts.append(crown((spread, spread, tall), clear + tall * 0.9, rng))
    return merge_meshes(parts)


def conifer(rng: np.random.Generator) -> Mesh:
    """Build a spruce whose branches begin near the ground."""
    width, height = rng.uniform(0.9, 2.0), rng.uniform(5.0, 9.0)
    shade = _shade(rng)
    parts = [tube((0, 0, -0.3), (0, 0, height), (0.14, 0.04), TRUNK, BARK, 0.33, sides=6)]
    start = rng.uniform(0.1, 0.9)
    for low in np.arange(start, height, 0.55):  # whorls: uneven skirts about the trunk
        reach = width * (1 - 0.9 * low / height)
        angle = np.linspace(0, 2 * np.pi, 9)
        out = reach * rng.uniform(0.7, 1.15, 9)
        out[-1] = out[0]
        rim = np.stack([out * np.cos(angle), out * np.sin(angle), low - 0.2 + rng.normal(0, 0.1, 9)], axis=1)
        apex = np.tile([0.0, 0.0, low + 0.75], (9, 1))
        parts.append(sheet(np.stack([rim, apex]), 0.08, shade, rng))
    return merge_meshes(parts)


def bush(rng: np.random.Generator, size: float | None = None) -> Mesh:
    """Build a bush, 0.6 to 2.5 m wide if no size is given."""
    across = rng.uniform(0.6, 2.5) if size is None else size
    height = across * rng.uniform(0.5, 0.95)
    count = rng.integers(5, 10)
    places = rng.uniform(-1, 1, (count, 3)) * [across * 0.32, across * 0.32, height * 0.3] + [0, 0, height * 0.48]
    return clumps(places, 0.33 * (across + height) / 2, _shade(rng), rng)


def hedge(length: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    """Build a clipped hedge along x from 0 to length, about y = 0."""
    x = np.linspace(0, length, int(length / 0.31) + 1)
    up = np.linspace(0, height, int(height / 0.33) + 2)
    over = np.linspace(-width / 2, width / 2, 4)
    # its cross-section: up the front, over the top, down the back
    y = np.concatenate([np.full(len(up), -width / 2), over[1:-1], np.full(len(up), width / 2)])
    z = np.concatenate([up - 0.25 * (up == 0), np.full(2, height), (up - 0.25 * (up == 0))[::-1]])
    grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], z[:, None]), axis=-1).copy()
    grid[..., 1:] += rng.normal(0, 0.12, grid[..., 1:].shape)
    shade = _shade(rng)
    side = rng.choice([-1.0, 1.0], 30)
    places = [rng.uniform(0, length, 30), side * (width / 2 + 0.03), rng.uniform(0.1, height + 0.1, 30)]
    surface = sheet(grid, 0.02, shade, rng)
    twigs = leaves(np.stack(places, axis=1), 0.13, shade, rng)
    ends = [rectangle(x, (-width / 2, width / 2), (0, height)) for x in (0.02, length - 0.02)]
    return merge_meshes([surface, twigs, quad(ends, VEGETATION, LEAF, shade)])


def thicket(length: float, depth: float, height: float, rng: np.random.Generator, grain: float = 0.5) -> Mesh:
    """Build wild growth: the edge of a wood, an overgrown bank.

    Args:
        length: Extent along x, from 0.
        depth: Extent along y, from the ground at y = 0 to `height` at y = depth.
        height: Height at the back.
        rng: Source of random numbers.
        grain: Size of the triangles.
    """
    columns, rows = int(length / grain) + 1, int(1.3 * height / grain) + 2
    shade = _shade(rng)
    parts = []
    for layer in range(2):
        t = np.linspace(0, 1, rows)[:, None]
        x = np.broadcast_to(np.linspace(-0.2, length + 0.2, columns), (rows, columns))
        wave = 0.5 + 0.5 * np.sin(x * rng.uniform(0.5, 1.1) + rng.uniform(0, 6)) * np.sin(0.31 * x + rng.uniform(0, 6))
        steep = rng.uniform(0.25, 0.6)
        y = depth * (0.25 * wave * (1 - t) + steep * (1 - np.cos(t * np.pi / 2)) + 0.35 * layer)
        z = height * (0.55 + 0.45 * wave) * np.sin(t * np.pi / 2) * (1 + 0.25 * layer) - 0.3 * (t == 0)
        grid = np.stack([x, y, z], axis=-1)
        grid += rng.normal(0, 0.55 * grain, grid.shape) * (t > 0)[..., None]
        swell = rng.normal(0, 1, (rows // 3 + 2, columns // 3 + 2)).repeat(3, axis=0).repeat(3, axis=1)[:rows, :columns]
        grid[..., 1] += 0.8 * grain * swell
        parts.append(sheet(grid, 0.08 + 0.05 * layer, shade, rng))
    count = int(10 * length * height / 20)
    stray = [rng.uniform(low, high, count) for low, high in ((0, length), (0, depth * 0.5), (0.1, height))]
    parts.append(leaves(np.stack(stray, axis=1), 0.6 * grain, shade, rng))
    for _ in range(int(length / 5)):
        at, back = rng.uniform(0, length), depth * rng.uniform(0.0, 0.8)
        foot, top = (at, back, -0.5), (at + rng.normal(0, 0.3), back, height + 2)
        parts.append(tube(foot, top, (0.12, 0.07), TRUNK, BARK, 0.35, sides=5))
    return merge_meshes(parts)
