"""Pieces of a street: a plan, a seed and a tile's number in; its triangles in world coordinates and what is painted on
its ground out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
from sqsegv3_ros.simulation.meshes import Floats, Mesh, merged

THINGS = (10, 11, 13, 15, 18, 20, 30, 31, 32)
"""Raw ids of the classes whose members are counted one by one (instances)."""


@dataclass
class Canvas:
    """Where a tile's furniture and paint are collected. Positions are (u, v) in metres, yaw is relative to the
    street."""

    plan: Plan
    tile: int
    meshes: list[Mesh] = field(default_factory=list)
    places: list[tuple[float, float, float, float]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        cells = (int(TILE_M / CELL_M), int(2 * HALF_DEPTH_M / CELL_M))
        self.paint: npt.NDArray[np.uint8] = np.full(cells, KEEP, dtype=np.uint8)

    def add(self, mesh: Mesh, u: float, v: float, yaw: float, dz: float = 0.0) -> None:
        """Stand a mesh on the ground at (u, v). Things get an instance number of their own."""
        label = int(mesh.label[0]) if len(mesh.label) else 0
        if label in THINGS:
            self.count += 1
            number = 1 + (self.tile * 251 + self.count) % 60000
            mesh = replace(mesh, instance=np.full_like(mesh.instance, number))
        self.meshes.append(mesh)
        self.places.append((u, v, yaw, dz))

    def spread(self, u: tuple[float, float], v: tuple[float, float], surface: int) -> None:
        """Paint a rectangle with a surface."""
        u0 = self.tile * TILE_M
        rows = sorted(int(np.clip((x - u0) / CELL_M, 0, self.paint.shape[0])) for x in u)
        columns = sorted(int(np.clip((y + HALF_DEPTH_M) / CELL_M, 0, self.paint.shape[1])) for y in v)
        self.paint[rows[0] : rows[1], columns[0] : columns[1]] = surface


@dataclass(frozen=True)
class Tile:
    """One piece of street. ground_uv: (G, 2) float64 of the ground mesh's vertices; the ground mesh has faces and
    vertices only."""

    number: int
    objects: Mesh
    ground_vertices: Floats
    ground_faces: npt.NDArray[np.int32]
    ground_uv: npt.NDArray[np.float64]
    paint: npt.NDArray[np.uint8]


def place(plan: Plan, mesh: Mesh, anchor: npt.NDArray[np.float64]) -> Floats:
    """The mesh's vertices in the world, each standing at its anchor (u, v, yaw, dz): (V, 4) -> (V, 3) float32."""
    u, v, yaw, dz = anchor.T
    x, y = to_world(plan, u, v)
    angle = yaw + heading(plan, u)
    c, s = np.cos(angle), np.sin(angle)
    local = mesh.vertices.astype(np.float64)
    z = height(plan, u, v) + dz
    return np.stack(
        [x + c * local[:, 0] - s * local[:, 1], y + s * local[:, 0] + c * local[:, 1], z + local[:, 2]], axis=1
    ).astype(np.float32)


def compiled(canvas: Canvas) -> Tile:
    """What was collected on a canvas -> the tile with its ground."""
    plan = canvas.plan
    objects = merged(canvas.meshes)
    anchors = np.array(canvas.places, dtype=np.float64).reshape(-1, 4)
    x, y = to_world(plan, anchors[:, 0], anchors[:, 1])
    angle = anchors[:, 2] + heading(plan, anchors[:, 0])
    z = height(plan, anchors[:, 0], anchors[:, 1]) + anchors[:, 3]
    counts = [len(m.vertices) for m in canvas.meshes]
    pose = np.repeat(np.stack([x, y, z, np.cos(angle), np.sin(angle)], axis=1), counts, axis=0)
    local = objects.vertices
    turned_x = pose[:, 3] * local[:, 0] - pose[:, 4] * local[:, 1]
    turned_y = pose[:, 4] * local[:, 0] + pose[:, 3] * local[:, 1]
    world = pose[:, :3] + np.stack([turned_x, turned_y, local[:, 2]], axis=1)
    lines_u, lines_v = grid_lines(plan, canvas.tile)
    u, v = (g.ravel() for g in np.meshgrid(lines_u, lines_v, indexing="ij"))
    gx, gy = to_world(plan, u, v)
    corner = (np.arange(len(lines_u) - 1)[:, None] * len(lines_v) + np.arange(len(lines_v) - 1)).ravel()
    across = corner + len(lines_v)
    faces = np.concatenate([np.stack([corner, across, across + 1], 1), np.stack([corner, across + 1, corner + 1], 1)])
    return Tile(
        canvas.tile,
        replace(objects, vertices=world.astype(np.float32)),
        np.stack([gx, gy, height(plan, u, v)], axis=1).astype(np.float32),
        faces.astype(np.int32),
        np.stack([u, v], axis=1),
        canvas.paint,
    )
