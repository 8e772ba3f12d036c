# SPDX-License-Identifier: Apache-2.0
"""Ray casting into a street, with Embree (package embreex)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import missing_package
from sqsegv3_ros.simulation import materials
from sqsegv3_ros.simulation.ground import CELL_M, HALF_DEPTH_M, SURFACES, TILE_M, Plan, albedo_at, surface_at
from sqsegv3_ros.simulation.meshes import FACE_PROPERTIES, Floats, Mesh, merge_meshes
from sqsegv3_ros.simulation.tiles import Tile

MAX_CROSSINGS = 12  # after this many leaves or panes the next one stops the ray
_PAST_M = 0.01  # a ray continues this far behind a surface that let it through
_OPACITY = materials.column("opacity")


@dataclass(frozen=True)
class Hits:
    """First opaque hit of each ray, arrays of (R,).

    Attributes:
        range: Range in metres, inf for no hit.
        cosine: Cosine of the angle of incidence.
        material: Material number.
        albedo: Albedo.
        label: Raw SemanticKITTI id.
        instance: Instance, 0 for none.
    """

    range: npt.NDArray[np.float32]
    cosine: npt.NDArray[np.float32]
    material: npt.NDArray[np.uint8]
    albedo: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint16]
    instance: npt.NDArray[np.uint16]


def require_embree() -> None:
    """Raise UserError if embreex is not installed."""
    try:
        import embreex.rtcore_scene  # noqa: F401
    except ImportError as error:
        raise missing_package("embreex", "simulating LiDAR scans", "simulate") from error


def _embree_scene(mesh: Mesh) -> Any:
    require_embree()
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces)
    return scene


@dataclass(frozen=True)
class View:
    """Limits of the viewpoints of a world, to leave out triangles that no ray can reach.

    Attributes:
        center: x, y of the middle of the viewpoints, metres.
        span_m: Largest distance of a viewpoint from the center.
        reach_m: Largest range.
        top_m: Largest height of the sensor.
        rise: Slope of the highest beam, metres per metre.
    """

    center: tuple[float, float]
    span_m: float
    reach_m: float
    top_m: float
    rise: float

    def cull(self, mesh: Mesh) -> Mesh:
        """Remove the triangles that are too far away or too high up."""
        corners = mesh.vertices[mesh.faces]
        distance = np.hypot(corners[..., 0] - self.center[0], corners[..., 1] - self.center[1])
        size = np.hypot(*np.moveaxis(corners[..., :2].max(axis=1) - corners[..., :2].min(axis=1), 1, 0))
        lowest = corners[..., 2].min(axis=1)
        near_enough = distance.min(axis=1) - size < self.reach_m + self.span_m
        visible = near_enough & (lowest < self.top_m + self.rise * (distance.max(axis=1) + self.span_m))
        return mesh.select_faces(visible)


class World:
    """A part of a street to cast rays into. Building it takes most of the time, so cast many sweeps into it.

    Args:
        plan: Plan of the street.
        tiles: Consecutive tiles.
        view: Limits of the viewpoints.

    Raises:
        UserError: embreex is not installed.
    """

    def __init__(self, plan: Plan, tiles: list[Tile], view: View) -> None:
        self.plan = plan
        self.mesh = merge_meshes([tile.ground for tile in tiles] + [view.cull(tile.objects) for tile in tiles])
        self._ground_faces = sum(len(tile.ground.faces) for tile in tiles)
        self._ground_uv = np.concatenate([tile.ground_uv for tile in tiles])
        self._surfaces = np.stack([tile.surfaces for tile in tiles])
        self._first_tile = tiles[0].number
        self._scene = _embree_scene(self.mesh)

    def cast(self, origins: Floats, directions: Floats, actors: Mesh, reach_m: float, rng: np.random.Generator) -> Hits:
        """Cast rays.

        A random number decides at every crossing whether a material lets the ray pass. Hits beyond `reach_m` are
        ignored and use no random numbers, because how much of the street is built may differ from run to run.

        Args:
            origins: (R, 3) float32 in world coordinates.
            directions: (R, 3) float32 unit vectors.
            actors: Moving objects.
            reach_m: Largest range.
            rng: Source of random numbers.
        """
        count = len(origins)
        moving = _embree_scene(actors)
        # triangles are numbered across both scenes
        surface = {n: np.concatenate([getattr(self.mesh, n), getattr(actors, n)]) for n in FACE_PROPERTIES}
        face = np.full(count, -1, dtype=np.int32)
        bary = np.zeros((count, 2))
        distance = np.full(count, np.inf, dtype=np.float32)
        cosine = np.zeros(count, dtype=np.float32)
        travelled = np.zeros(count, dtype=np.float32)
        active = np.arange(count)
        for crossing in range(MAX_CROSSINGS + 1):
            start = origins[active] + directions[active] * travelled[active, None]
            hit = self._scene.run(start, directions[active], output=1)
            other = moving.run(start, directions[active], output=1)
            other["primID"] += len(self.mesh.faces)
            nearer = other["tfar"] < hit["tfar"]  # both are huge if there is no hit
            for key, values in hit.items():
                values[nearer] = other[key][nearer]
            met = travelled[active] + hit["tfar"] < reach_m
            active = active[met]
            hit = {key: values[met] for key, values in hit.items()}
            stopped = rng.random(len(active), dtype=np.float32) < _OPACITY[surface["material"][hit["primID"]]]
            if crossing == MAX_CROSSINGS:
                stopped[:] = True
            at = active[stopped]
            face[at] = hit["primID"][stopped]
            bary[at, 0], bary[at, 1] = hit["u"][stopped], hit["v"][stopped]
            distance[at] = travelled[at] + hit["tfar"][stopped]
            normal = hit["Ng"][stopped]
            across = np.abs(np.einsum("ij,ij->i", normal, directions[at]))
            cosine[at] = across / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
            travelled[active] += hit["tfar"] + np.float32(_PAST_M)
            active = active[~stopped]
            if not len(active):
                break
        found = {name: np.where(face < 0, 0, values[face]).astype(values.dtype) for name, values in surface.items()}
        at = np.flatnonzero((face >= 0) & (face < self._ground_faces))
        found["label"][at], found["material"][at], found["albedo"][at] = self._ground(face[at], bary[at])
        return Hits(distance, cosine, **found)

    def _ground(self, face: npt.NDArray[np.int32], bary: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], ...]:
        """Look up label, material and albedo of the ground at barycentric coordinates."""
        a, b, c = np.moveaxis(self._ground_uv[self.mesh.faces[face]], 1, 0)
        u, v = (a + bary[:, :1] * (b - a) + bary[:, 1:] * (c - a)).T
        surface = surface_at(self.plan, u, v, self._painted_surfaces(u, v))
        label, material, _ = zip(*SURFACES, strict=True)
        return np.array(label)[surface], np.array(material)[surface], albedo_at(self.plan, u, v, surface)

    def _painted_surfaces(self, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Look up the painted surfaces at street coordinates."""
        rows, columns = self._surfaces.shape[1:]
        row = np.clip(((u - self._first_tile * TILE_M) / CELL_M).astype(int), 0, len(self._surfaces) * rows - 1)
        column = np.clip(((v + HALF_DEPTH_M) / CELL_M).astype(int), 0, columns - 1)
        return self._surfaces.reshape(-1, columns)[row, column]
