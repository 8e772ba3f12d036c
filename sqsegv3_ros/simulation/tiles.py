"""Tiles of a street: 50 m long pieces with their objects and their ground, in world coordinates."""

from __future__ import annotations

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
from sqsegv3_ros.simulation.meshes import Floats, Mesh, merge_meshes

THINGS = (10, 11, 13, 15, 18, 20, 30, 31, 32)
"""Raw ids of the classes with instances."""


@dataclass(frozen=True)
class Tile:
    """One piece of a street.

    Attributes:
        number: Position along the street, in tiles.
        objects: Everything that stands on the ground.
        ground_vertices: (G, 3) float32 vertices of the ground mesh.
        ground_faces: (H, 3) int32 faces of the ground mesh.
        ground_uv: (G, 2) float64 street coordinates (u, v) of the ground mesh's vertices.
        surfaces: (rows, columns) uint8 raster of the painted surfaces, `KEEP` where nothing is painted.
    """

    number: int
    objects: Mesh
    ground_vertices: Floats
    ground_faces: npt.NDArray[np.int32]
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
        self._anchors: list[tuple[float, float, float, float]] = []
        self._things = 0

    def add(self, mesh: Mesh, u: float, v: float, yaw: float, dz: float = 0.0) -> None:
        """Place a mesh on the ground at (u, v). Things get an instance number of their own."""
        label = int(mesh.label[0]) if len(mesh.label) else 0
        if label in THINGS:
            self._things += 1
            instance = 1 + (self.tile * 251 + self._things) % 60000
            mesh = replace(mesh, instance=np.full_like(mesh.instance, instance))
        self._meshes.append(mesh)
        self._anchors.append((u, v, yaw, dz))

    def paint(self, u: tuple[float, float], v: tuple[float, float], surface: int) -> None:
        """Paint a rectangle of the ground with a surface."""
        u0 = self.tile * TILE_M
        rows = sorted(int(np.clip((x - u0) / CELL_M, 0, self.surfaces.shape[0])) for x in u)
        columns = sorted(int(np.clip((y + HALF_DEPTH_M) / CELL_M, 0, self.surfaces.shape[1])) for y in v)
        self.surfaces[rows[0] : rows[1], columns[0] : columns[1]] = surface

    def build(self) -> Tile:
        """Build the tile with its ground."""
        plan = self.plan
        objects = merge_meshes(self._meshes)
        anchors = np.array(self._anchors, dtype=np.float64).reshape(-1, 4)
        x, y = to_world(plan, anchors[:, 0], anchors[:, 1])
        angle = anchors[:, 2] + heading(plan, anchors[:, 0])
        z = height(plan, anchors[:, 0], anchors[:, 1]) + anchors[:, 3]
        counts = [len(mesh.vertices) for mesh in self._meshes]
        pose = np.repeat(np.stack([x, y, z, np.cos(angle), np.sin(angle)], axis=1), counts, axis=0)
        local = objects.vertices
        rotated_x = pose[:, 3] * local[:, 0] - pose[:, 4] * local[:, 1]
        rotated_y = pose[:, 4] * local[:, 0] + pose[:, 3] * local[:, 1]
        world = pose[:, :3] + np.stack([rotated_x, rotated_y, local[:, 2]], axis=1)
        lines_u, lines_v = grid_lines(plan, self.tile)
        u, v = (grid.ravel() for grid in np.meshgrid(lines_u, lines_v, indexing="ij"))
        ground_x, ground_y = to_world(plan, u, v)
        corner = (np.arange(len(lines_u) - 1)[:, None] * len(lines_v) + np.arange(len(lines_v) - 1)).ravel()
        next_u = corner + len(lines_v)
        faces = [np.stack([corner, next_u, next_u + 1], 1), np.stack([corner, next_u + 1, corner + 1], 1)]
        return Tile(
            self.tile,
            replace(objects, vertices=world.astype(np.float32)),
            np.stack([ground_x, ground_y, height(plan, u, v)], axis=1).astype(np.float32),
            np.concatenate(faces).astype(np.int32),
            np.stack([u, v], axis=1),
            self.surfaces,
        )


def vertices_in_world(plan: Plan, mesh: Mesh, anchors: npt.NDArray[np.float64]) -> Floats:
    """Transform a mesh's vertices to the world, each from its own anchor.

    Args:
        plan: Plan of the street.
        mesh: Mesh in local coordinates.
        anchors: (V, 4) float64 u, v, yaw, height above the ground, one per vertex.

    Returns:
        (V, 3) float32.
    """
    u, v, yaw, dz = anchors.T
    x, y = to_world(plan, u, v)
    angle = yaw + heading(plan, u)
    c, s = np.cos(angle), np.sin(angle)
    local = mesh.vertices.astype(np.float64)
    z = height(plan, u, v) + dz
    return np.stack(
        [x + c * local[:, 0] - s * local[:, 1], y + s * local[:, 0] + c * local[:, 1], z + local[:, 2]], axis=1
    ).astype(np.float32)
