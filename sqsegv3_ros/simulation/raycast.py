"""Rays against a street: origins and directions in, what stopped each ray out. Uses Embree through the package
embreex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import missing_package
from sqsegv3_ros.simulation import materials
from sqsegv3_ros.simulation.ground import CELL_M, HALF_DEPTH_M, KEEP, SURFACES, TILE_M, Plan, albedo_at, surface_at
from sqsegv3_ros.simulation.meshes import Mesh, merged
from sqsegv3_ros.simulation.tiles import Tile

MAX_CROSSINGS = 12  # a ray that met so many leaves or panes is stopped by the next
_PAST_M = 0.01  # a ray goes on so far behind what let it through
_GROUND, _OBJECTS, _ACTORS = 0, 1, 2
_OPACITY = materials.column("opacity")


@dataclass(frozen=True)
class Hits:
    """What the rays met, one entry a ray (R,): range in metres (inf for nothing), cosine of the angle of incidence,
    material number, albedo, raw label, instance.
    """

    range: npt.NDArray[np.float32]
    cosine: npt.NDArray[np.float32]
    material: npt.NDArray[np.uint8]
    albedo: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint16]
    instance: npt.NDArray[np.uint16]


def _embree() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise missing_package("embreex", "simulating LiDAR scans", "simulate") from error
    return EmbreeScene, TriangleMesh


@dataclass(frozen=True)
class View:
    """From where a world will be looked at: within reach_m of places no farther than span_m from center (x, y), by a
    sensor not above top_m whose highest beam rises by `rise` metres a metre. What cannot be seen from there is left
    out.
    """

    center: tuple[float, float]
    span_m: float
    reach_m: float
    top_m: float
    rise: float

    def culled(self, mesh: Mesh) -> Mesh:
        """The mesh without the triangles that are too far away or too high up."""
        corners = mesh.vertices[mesh.faces]
        distance = np.hypot(corners[..., 0] - self.center[0], corners[..., 1] - self.center[1])
        size = np.hypot(*np.moveaxis(corners[..., :2].max(axis=1) - corners[..., :2].min(axis=1), 1, 0))
        lowest = corners[..., 2].min(axis=1)
        near_enough = distance.min(axis=1) - size < self.reach_m + self.span_m
        seen = near_enough & (lowest < self.top_m + self.rise * (distance.max(axis=1) + self.span_m))
        return mesh.chosen(seen)


class World:
    """A stretch of street that rays can be cast into. Building it takes most of the time; cast as many sweeps as
    possible."""

    def __init__(self, plan: Plan, tiles: list[Tile], view: View) -> None:
        scene, triangle_mesh = _embree()
        self.plan = plan
        self.objects = merged([view.culled(tile.objects) for tile in tiles])
        offsets = np.cumsum([0] + [len(tile.ground_vertices) for tile in tiles[:-1]])
        ground = np.concatenate([tile.ground_vertices for tile in tiles])
        self._ground_faces = np.concatenate([t.ground_faces + np.int32(o) for t, o in zip(tiles, offsets, strict=True)])
        self._ground_uv = np.concatenate([tile.ground_uv for tile in tiles])
        self._paint = np.stack([tile.paint for tile in tiles])
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
        """(R, 3) origins and unit directions in world coordinates, float32 -> what stopped each ray.

        Where a material lets rays through, chance decides at every crossing. Nothing beyond reach_m counts: what is met
        there must not use up random numbers, as how much of the street is built may differ from run to run.
        """
        count = len(origins)
        moving = None
        if actors is not None:
            scene, triangle_mesh = _embree()
            moving = scene()
            triangle_mesh(moving, actors.vertices, actors.faces)
        kind = np.full(count, -1, dtype=np.int8)
        primitive = np.zeros(count, dtype=np.int32)
        bary = np.zeros((count, 2), dtype=np.float32)
        distance = np.full(count, np.inf, dtype=np.float32)
        cosine = np.zeros(count, dtype=np.float32)
        gone = np.zeros(count, dtype=np.float32)
        active = np.arange(count)
        for crossing in range(MAX_CROSSINGS + 1):
            start = origins[active] + directions[active] * gone[active, None]
            hit = _nearest(self._scene, moving, start, directions[active])
            met = (hit["kind"] >= 0) & (gone[active] + hit["distance"] < reach_m)
            active = active[met]
            hit = {key: values[met] for key, values in hit.items()}
            material = self._material(hit["kind"], hit["primitive"], actors)
            stopped = rng.random(len(active), dtype=np.float32) < _OPACITY[material]
            if crossing == MAX_CROSSINGS:
                stopped[:] = True
            at = active[stopped]
            kind[at], primitive[at] = hit["kind"][stopped], hit["primitive"][stopped]
            bary[at] = hit["bary"][stopped]
            distance[at] = gone[at] + hit["distance"][stopped]
            normal = hit["normal"][stopped]
            across = np.abs(np.einsum("ij,ij->i", normal, directions[at]))
            cosine[at] = across / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
            gone[active] += hit["distance"] + np.float32(_PAST_M)
            active = active[~stopped]
            if not len(active):
                break
        return self._described(kind, primitive, bary, distance, cosine, actors)

    def _material(
        self, kind: npt.NDArray[np.int8], primitive: npt.NDArray[np.int32], actors: Mesh | None
    ) -> npt.NDArray[np.uint8]:
        material = np.zeros(len(kind), dtype=np.uint8)
        material[kind == _OBJECTS] = self.objects.material[primitive[kind == _OBJECTS]]
        if actors is not None:
            material[kind == _ACTORS] = actors.material[primitive[kind == _ACTORS]]
        return material

    def _described(
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
        surface = surface_at(self.plan, uv[:, 0], uv[:, 1], self._painted(uv))
        label[at] = np.array([s[0] for s in SURFACES], dtype=np.uint16)[surface]
        material[at] = np.array([s[1] for s in SURFACES], dtype=np.uint8)[surface]
        albedo[at] = albedo_at(self.plan, uv[:, 0], uv[:, 1], surface)
        return Hits(distance, cosine, material, albedo, label, instance)

    def _painted(self, uv: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """What the tiles' rasters hold at (P, 2) places."""
        number = np.floor(uv[:, 0] / TILE_M).astype(int)
        row = ((uv[:, 0] - number * TILE_M) / CELL_M).astype(int)
        column = ((uv[:, 1] + HALF_DEPTH_M) / CELL_M).astype(int)
        tile = number - self._first_tile
        inside = (tile >= 0) & (tile < len(self._paint))
        painted = self._paint[
            np.clip(tile, 0, len(self._paint) - 1),
            np.clip(row, 0, self._paint.shape[1] - 1),
            np.clip(column, 0, self._paint.shape[2] - 1),
        ]
        return np.where(inside, painted, KEEP).astype(np.uint8)


def _nearest(
    static: Any, moving: Any, origins: npt.NDArray[np.float32], directions: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    """The nearest triangle on each ray: kind (-1 for none), primitive, barycentric coordinates, distance, normal."""
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
