"""Ray casting into a street, with Embree (package embreex)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import missing_package
from sqsegv3_ros.simulation import materials
from sqsegv3_ros.simulation.ground import CELL_M, HALF_DEPTH_M, KEEP, SURFACES, TILE_M, Plan, albedo_at, surface_at
from sqsegv3_ros.simulation.meshes import Mesh, merge_meshes
from sqsegv3_ros.simulation.tiles import Tile

MAX_CROSSINGS = 12  # after this many leaves or panes the next one stops the ray
_PAST_M = 0.01  # a ray continues this far behind a surface that let it through
_GROUND, _OBJECTS, _ACTORS = 0, 1, 2
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


def _import_embree() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise missing_package("embreex", "simulating LiDAR scans", "simulate") from error
    return EmbreeScene, TriangleMesh


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
        scene, triangle_mesh = _import_embree()
        self.plan = plan
        self.objects = merge_meshes([view.cull(tile.objects) for tile in tiles])
        offsets = np.cumsum([0] + [len(tile.ground_vertices) for tile in tiles[:-1]])
        ground = np.concatenate([tile.ground_vertices for tile in tiles])
        self._ground_faces = np.concatenate([t.ground_faces + np.int32(o) for t, o in zip(tiles, offsets, strict=True)])
        self._ground_uv = np.concatenate([tile.ground_uv for tile in tiles])
        self._surfaces = np.stack([tile.surfaces for tile in tiles])
        self._first_tile = tiles[0].number
        self._scene = scene()
        triangle_mesh(self._scene, ground, self._ground_faces)
        triangle_mesh(self._scene, self.objects.vertices, self.objects.faces)

    def cast(
        self,
        origins: npt.NDArray[np.float32],
        directions: npt.NDArray[np.float32],
        actors: Mesh | None,
        reach_m: float,
        rng: np.random.Generator,
    ) -> Hits:
        """Cast rays.

        A random number decides at every crossing whether a material lets the ray pass. Hits beyond `reach_m` are
        ignored and use no random numbers, because how much of the street is built may differ from run to run.

        Args:
            origins: (R, 3) float32 in world coordinates.
            directions: (R, 3) float32 unit vectors.
            actors: Moving objects, or None.
            reach_m: Largest range.
            rng: Source of random numbers.
        """
        count = len(origins)
        moving = None
        if actors is not None:
            scene, triangle_mesh = _import_embree()
            moving = scene()
            triangle_mesh(moving, actors.vertices, actors.faces)
        kind = np.full(count, -1, dtype=np.int8)
        primitive = np.zeros(count, dtype=np.int32)
        bary = np.zeros((count, 2), dtype=np.float32)
        distance = np.full(count, np.inf, dtype=np.float32)
        cosine = np.zeros(count, dtype=np.float32)
        travelled = np.zeros(count, dtype=np.float32)
        active = np.arange(count)
        for crossing in range(MAX_CROSSINGS + 1):
            start = origins[active] + directions[active] * travelled[active, None]
            hit = _nearest(self._scene, moving, start, directions[active])
            met = (hit["kind"] >= 0) & (travelled[active] + hit["distance"] < reach_m)
            active = active[met]
            hit = {key: values[met] for key, values in hit.items()}
            material = self._material(hit["kind"], hit["primitive"], actors)
            stopped = rng.random(len(active), dtype=np.float32) < _OPACITY[material]
            if crossing == MAX_CROSSINGS:
                stopped[:] = True
            at = active[stopped]
            kind[at], primitive[at] = hit["kind"][stopped], hit["primitive"][stopped]
            bary[at] = hit["bary"][stopped]
            distance[at] = travelled[at] + hit["distance"][stopped]
            normal = hit["normal"][stopped]
            across = np.abs(np.einsum("ij,ij->i", normal, directions[at]))
            cosine[at] = across / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
            travelled[active] += hit["distance"] + np.float32(_PAST_M)
            active = active[~stopped]
            if not len(active):
                break
        return self._describe_hits(kind, primitive, bary, distance, cosine, actors)

    def _material(
        self, kind: npt.NDArray[np.int8], primitive: npt.NDArray[np.int32], actors: Mesh | None
    ) -> npt.NDArray[np.uint8]:
        material = np.zeros(len(kind), dtype=np.uint8)
        material[kind == _OBJECTS] = self.objects.material[primitive[kind == _OBJECTS]]
        if actors is not None:
            material[kind == _ACTORS] = actors.material[primitive[kind == _ACTORS]]
        return material

    def _describe_hits(
        self,
        kind: npt.NDArray[np.int8],
        primitive: npt.NDArray[np.int32],
        bary: npt.NDArray[np.float32],
        distance: npt.NDArray[np.float32],
        cosine: npt.NDArray[np.float32],
        actors: Mesh | None,
    ) -> Hits:
        label = np.zeros(len(kind), dtype=np.uint16)
        instance = np.zeros(len(kind), dtype=np.uint16)
        material = np.zeros(len(kind), dtype=np.uint8)
        albedo = np.zeros(len(kind), dtype=np.float32)
        for code, source in ((_OBJECTS, self.objects), (_ACTORS, actors)):
            if source is not None:
                at = np.flatnonzero(kind == code)
                face = primitive[at]
                label[at], instance[at] = source.label[face], source.instance[face]
                material[at], albedo[at] = source.material[face], source.albedo[face]
        at = np.flatnonzero(kind == _GROUND)
        corners = self._ground_uv[self._ground_faces[primitive[at]]]
        weight = bary[at].astype(np.float64)
        uv = (
            corners[:, 0]
            + weight[:, :1] * (corners[:, 1] - corners[:, 0])
            + weight[:, 1:] * (corners[:, 2] - corners[:, 0])
        )
        surface = surface_at(self.plan, uv[:, 0], uv[:, 1], self._painted_surfaces(uv))
        label[at] = np.array([s[0] for s in SURFACES], dtype=np.uint16)[surface]
        material[at] = np.array([s[1] for s in SURFACES], dtype=np.uint8)[surface]
        albedo[at] = albedo_at(self.plan, uv[:, 0], uv[:, 1], surface)
        return Hits(distance, cosine, material, albedo, label, instance)

    def _painted_surfaces(self, uv: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Look up the painted surfaces at (P, 2) street coordinates."""
        number = np.floor(uv[:, 0] / TILE_M).astype(int)
        row = ((uv[:, 0] - number * TILE_M) / CELL_M).astype(int)
        column = ((uv[:, 1] + HALF_DEPTH_M) / CELL_M).astype(int)
        tile = number - self._first_tile
        inside = (tile >= 0) & (tile < len(self._surfaces))
        painted = self._surfaces[
            np.clip(tile, 0, len(self._surfaces) - 1),
            np.clip(row, 0, self._surfaces.shape[1] - 1),
            np.clip(column, 0, self._surfaces.shape[2] - 1),
        ]
        return np.where(inside, painted, KEEP).astype(np.uint8)


def _nearest(
    static: Any, moving: Any, origins: npt.NDArray[np.float32], directions: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    """Nearest triangle on each ray: kind (-1 for none), primitive, barycentric coordinates, distance, normal."""
    hit = static.run(origins, directions, output=1)
    found = {
        "kind": hit["geomID"].astype(np.int8),
        "primitive": hit["primID"],
        "bary": np.stack([hit["u"], hit["v"]], axis=1),
        "distance": hit["tfar"],
        "normal": hit["Ng"],
    }
    if moving is None:
        return found
    other = moving.run(origins, directions, output=1)
    nearer = (other["primID"] >= 0) & ((found["kind"] < 0) | (other["tfar"] < found["distance"]))
    found["kind"][nearer] = _ACTORS
    found["primitive"][nearer] = other["primID"][nearer]
    found["distance"][nearer] = other["tfar"][nearer]
    found["normal"][nearer] = other["Ng"][nearer]
    return found
