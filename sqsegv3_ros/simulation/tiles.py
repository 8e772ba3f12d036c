# SPDX-License-Identifier: Apache-2.0
"""Tiles of a street: 50 m long pieces with their objects and their ground, in world coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.ground import (
    CELL_M,
    HALF_DEPTH_M,
    KEEP,
    TILE_M,
    Plan,
    grid_lines,
    heading,
    height,
    to_world,
)
from sqsegv3_ros.simulation.materials import ASPHALT
from sqsegv3_ros.simulation.meshes import Mesh, grid_faces, merge_meshes, uniform_mesh

THINGS = (10, 11, 13, 15, 18, 20, 30, 31, 32)
"""Raw ids of the classes with instances."""


@dataclass(frozen=True)
class Tile:
    """One piece of a street.

    Attributes:
        number: Position along the street, in tiles.
        objects: Everything that stands on the ground.
        ground: The ground, with neither class nor albedo: both depend on the street coordinates.
        ground_uv: (G, 2) float64 street coordinates (u, v) of the ground's vertices.
        surfaces: (rows, columns) uint8 raster of the painted surfaces, `KEEP` where nothing is painted.
    """

    number: int
    objects: Mesh
    ground: Mesh
    ground_uv: npt.NDArray[np.float64]
    surfaces: npt.NDArray[np.uint8]


class TileBuilder:
    """Collects objects and painted surfaces of a tile. Positions are (u, v) in metres, yaw is relative to the street.

    Args:
        plan: Plan of the street.
        tile: Number of the tile.
    """

    def __init__(self, plan: Plan, tile: int) -> None:
        self.plan = plan
        self.tile = tile
        self.surfaces = np.full((int(TILE_M / CELL_M), int(2 * HALF_DEPTH_M / CELL_M)), KEEP, dtype=np.uint8)
        self._meshes: list[Mesh] = []
        self._anchors: list[tuple[float, float, float]] = []
        self._things = 0

    def add(self, mesh: Mesh, u: float, v: float, yaw: float) -> None:
        """Place a mesh on the ground at (u, v). Things get an instance number of their own."""
        if mesh.label[0] in THINGS:
            self._things += 1
            mesh = mesh.with_label(int(mesh.label[0]), 1 + (self.tile * 251 + self._things) % 60000)
        self._meshes.append(mesh)
        self._anchors.append((u, v, yaw))

    def paint(self, u: tuple[float, float], v: tuple[float, float], surface: int) -> None:
        """Paint a rectangle of the ground with a surface."""
        u0 = self.tile * TILE_M
        rows = sorted(int(np.clip((x - u0) / CELL_M, 0, self.surfaces.shape[0])) for x in u)
        columns = sorted(int(np.clip((y + HALF_DEPTH_M) / CELL_M, 0, self.surfaces.shape[1])) for y in v)
        self.surfaces[rows[0] : rows[1], columns[0] : columns[1]] = surface

    def build(self) -> Tile:
        """Build the tile with its ground."""
        lines_u, lines_v = grid_lines(self.plan, self.tile)
        u, v = (grid.ravel() for grid in np.meshgrid(lines_u, lines_v, indexing="ij"))
        x, y = to_world(self.plan, u, v)
        vertices = np.stack([x, y, height(self.plan, u, v)], axis=1)
        faces = grid_faces(len(lines_u), len(lines_v))[:, [0, 2, 1]]
        ground = uniform_mesh(vertices, faces, 0, ASPHALT, 0.0)
        objects = place_meshes(self.plan, self._meshes, self._anchors)
        return Tile(self.tile, objects, ground, np.stack([u, v], axis=1), self.surfaces)


def place_meshes(plan: Plan, meshes: Sequence[Mesh], anchors: npt.ArrayLike) -> Mesh:
    """Merge meshes into one in world coordinates, each on the ground at its anchor.

    Args:
        plan: Plan of the street.
        meshes: Meshes in local coordinates.
        anchors: (M, 3) u, v in metres and yaw relative to the street.
    """
    merged = merge_meshes(meshes)
    u, v, yaw = np.array(anchors, dtype=np.float64).reshape(-1, 3).T
    angle = yaw + heading(plan, u)
    pose = np.stack([*to_world(plan, u, v), height(plan, u, v), np.cos(angle), np.sin(angle)])
    x, y, z, c, s = np.repeat(pose, [len(mesh.vertices) for mesh in meshes], axis=1)
    local = merged.vertices.T
    world = np.stack([x + (c * local[0] - s * local[1]), y + (s * local[0] + c * local[1]), z + local[2]], axis=1)
    return replace(merged, vertices=world.astype(np.float32))
