# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes with class, material and albedo per triangle. Local frame: x forward, y left, z up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Point = tuple[float, float, float]
Extent = float | tuple[float, float]


@dataclass(frozen=True)
class Mesh:
    """Triangles with their properties.

    Attributes:
        vertices: (V, 3) float32 in metres.
        faces: (F, 3) int32 vertex numbers.
        label: (F,) uint16 raw SemanticKITTI id.
        material: (F,) uint8 material number.
        albedo: (F,) float32 remission of a full, perpendicular hit at short range.
        instance: (F,) uint16 instance, 0 for none.
    """

    vertices: Floats
    faces: npt.NDArray[np.int32]
    label: npt.NDArray[np.uint16]
    material: npt.NDArray[np.uint8]
    albedo: Floats
    instance: npt.NDArray[np.uint16]

    def transformed(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0, scale: float = 1.0) -> Mesh:
        """Scale the mesh, rotate it by yaw (radians, counter-clockwise), then translate it."""
        c, s = float(np.cos(yaw)) * scale, float(np.sin(yaw)) * scale
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, scale]], dtype=np.float32)
        return replace(self, vertices=self.vertices @ turn.T + np.array([x, y, z], dtype=np.float32))

    def tilted(self, pitch: float = 0.0, roll: float = 0.0) -> Mesh:
        """Rotate the mesh about y by pitch (nose down) and then about x by roll, in radians."""
        cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        return replace(self, vertices=self.vertices @ (about_x @ about_y).T.astype(np.float32))

    def select_faces(self, keep: npt.NDArray[np.bool_]) -> Mesh:
        """Keep only the triangles in (F,) bool `keep`; all vertices stay."""
        return replace(self, **{name: getattr(self, name)[keep] for name in ("faces", *FACE_PROPERTIES)})

    def with_label(self, label: int, instance: int = 0) -> Mesh:
        """Set the raw id and the instance of every triangle."""
        return replace(self, label=np.full_like(self.label, label), instance=np.full_like(self.instance, instance))


FACE_PROPERTIES = ("label", "material", "albedo", "instance")


def uniform_mesh(vertices: npt.ArrayLike, faces: npt.ArrayLike, label: int, material: int, albedo: float) -> Mesh:
    """Make a mesh of one class, one material and one albedo from (V, 3) vertices and (F, 3) faces, instance 0."""
    corners = np.asarray(faces, dtype=np.int32).reshape(-1, 3)
    count = len(corners)
    return Mesh(
        np.asarray(vertices, dtype=np.float32).reshape(-1, 3),
        corners,
        np.full(count, label, dtype=np.uint16),
        np.full(count, material, dtype=np.uint8),
        np.full(count, albedo, dtype=np.float32),
        np.zeros(count, dtype=np.uint16),
    )


EMPTY = uniform_mesh(np.zeros((0, 3)), np.zeros((0, 3)), 0, 0, 0.0)


def merge_meshes(parts: Sequence[Mesh]) -> Mesh:
    """Merge meshes into one; an empty one if there are none."""
    if not parts:
        return EMPTY
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]], dtype=np.int32)
    return Mesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.faces + offset for p, offset in zip(parts, offsets, strict=True)]),
        *(np.concatenate([getattr(p, name) for p in parts]) for name in FACE_PROPERTIES),
    )


_BOX_FACES = np.array(
    [[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7], [0, 1, 5], [0, 5, 4]]
    + [[1, 2, 6], [1, 6, 5], [2, 3, 7], [2, 7, 6], [3, 0, 4], [3, 4, 7]]
)


def box(x: Sequence[float], y: Sequence[float], z: Sequence[float], label: int, material: int, albedo: float) -> Mesh:
    """Make an axis-aligned box of 12 triangles."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return uniform_mesh([(a, b, c) for c in (z0, z1) for a, b in ring], _BOX_FACES, label, material, albedo)


def rectangle(x: Extent, y: Extent, z: Extent) -> list[Point]:
    """Get the corners of an axis-aligned rectangle: two of x, y and z are (from, to), the third is a number."""
    (x0, x1), (y0, y1), (z0, z1) = (e if isinstance(e, tuple) else (e, e) for e in (x, y, z))
    if isinstance(z, tuple):
        return [(x0, y0, z0), (x1, y1, z0), (x1, y1, z1), (x0, y0, z1)]
    return [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]


def quad(corners: npt.ArrayLike, label: int, material: int, albedo: float) -> Mesh:
    """Make quadrilaterals of 2 triangles each from (Q, 4, 3) corners in order."""
    points = np.asarray(corners, dtype=np.float32).reshape(-1, 3)
    faces = np.arange(0, len(points), 4)[:, None] + np.array([0, 1, 2, 0, 2, 3])
    return uniform_mesh(points, faces, label, material, albedo)


def grid_faces(rows: int, columns: int, closed: bool = False) -> npt.NDArray[np.int32]:
    """Get the triangles between the vertices of a grid; with `closed`, its last column adjoins the first."""
    corner = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    following = np.roll(corner, -1, axis=1)
    cells = slice(None) if closed else slice(-1)
    a, b, c, d = (part[:, cells].ravel() for part in (corner[:-1], following[:-1], following[1:], corner[1:]))
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


def extrude(
    profile: npt.ArrayLike, half_width: float | Sequence[float], label: int, material: int, albedo: float
) -> Mesh:
    """Extrude a side view into a solid from -half_width to +half_width in y.

    Args:
        profile: (N, 2) polygon of (x, z), star-shaped about its middle.
        half_width: One for all corners, or one per corner (a roof narrower than the sills).
        label: Raw id.
        material: Material number.
        albedo: Albedo.
    """
    left = np.insert(np.asarray(profile, dtype=np.float32), 1, half_width, axis=1)
    middle = np.broadcast_to(left.mean(axis=0), left.shape)
    mirror = np.array([1, -1, 1], dtype=np.float32)
    strips = ((middle, left), (left, left * mirror), (middle * mirror, left * mirror))
    faces = grid_faces(2, len(left), closed=True)
    return merge_meshes([uniform_mesh(strip, faces, label, material, albedo) for strip in strips])


def revolve(
    profile: npt.ArrayLike, sides: int, center: npt.ArrayLike, axes: npt.ArrayLike, label: int, material: int,
    albedo: float,
) -> Mesh:  # fmt: skip
    """Make a surface of revolution.

    Args:
        profile: (P, 2) radius and height along the axis of revolution.
        sides: Number of corners of each ring.
        center: Origin of the profile.
        axes: (3, 3) rows: two axes across the axis of revolution, then the axis itself.
        label: Raw id.
        material: Material number.
        albedo: Albedo.
    """
    radius, along = np.asarray(profile, dtype=np.float64).T[..., None]
    angle = np.arange(sides) * (2 * np.pi / sides)
    points = np.stack(np.broadcast_arrays(radius * np.cos(angle), radius * np.sin(angle), along), axis=-1)
    faces = grid_faces(len(radius), sides, closed=True)
    return uniform_mesh(points @ np.asarray(axes) + np.asarray(center), faces, label, material, albedo)


def tube(
    start: npt.ArrayLike, end: npt.ArrayLike, radius: float | tuple[float, float], label: int, material: int,
    albedo: float, sides: int = 6,
) -> Mesh:  # fmt: skip
    """Make a round bar with open ends between two points, with one radius or those of start and end."""
    r0, r1 = radius if isinstance(radius, tuple) else (radius, radius)
    bar = np.asarray(end, dtype=np.float64) - np.asarray(start)
    length = float(np.linalg.norm(bar))
    axis = bar / max(length, 1e-9)
    p = np.cross(axis, [1.0, 0.0, 0.0] if abs(axis[0]) < 0.9 else [0.0, 1.0, 0.0])
    p /= np.linalg.norm(p)
    return revolve([(r0, 0), (r1, length)], sides, start, [p, np.cross(axis, p), axis], label, material, albedo)


_ABOUT_Y = ((1, 0, 0), (0, 0, 1), (0, 1, 0))


def wheel(x: float, y: float, radius: float, width: float, label: int, material: int, albedo: float) -> Mesh:
    """Make an upright disc with its tread, rolling along x."""
    right, left = -width / 2, width / 2
    strips = (((0, right), (radius, right)), ((radius, right), (radius, left)), ((0, left), (radius, left)))
    return merge_meshes([revolve(s, 10, (x, y, radius), _ABOUT_Y, label, material, albedo) for s in strips])


def hoop(x: float, radius: float, thickness: float, label: int, material: int, albedo: float) -> Mesh:
    """Make an upright ring in the plane y = 0 that rests on the ground at x: the wheel of a bicycle."""
    left, right, inside = (radius, -thickness / 2), (radius, thickness / 2), (radius - thickness, 0)
    strips = ((left, inside), (right, inside), (left, right))
    return merge_meshes([revolve(s, 14, (x, 0, radius), _ABOUT_Y, label, material, albedo) for s in strips])


def ball(center: npt.ArrayLike, radii: Sequence[float], label: int, material: int, albedo: float) -> Mesh:
    """Make a coarse ellipsoid: 6 meridians, poles and 2 parallels."""
    polar = np.linspace(0, np.pi, 4)
    profile = np.stack([np.sin(polar), np.cos(polar)], axis=1)
    return revolve(profile, 6, center, np.diag(radii), label, material, albedo)
