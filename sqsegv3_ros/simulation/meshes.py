"""Triangle meshes with class, material and albedo per triangle. Local frame: x forward, y left, z up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


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
        by_face = {name: getattr(self, name)[keep] for name in ("faces", "label", "material", "albedo", "instance")}
        return replace(self, **by_face)

    def with_label(self, label: int, instance: int = 0) -> Mesh:
        """Set the raw id and the instance of every triangle."""
        return replace(self, label=np.full_like(self.label, label), instance=np.full_like(self.instance, instance))


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
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    return Mesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.faces + np.int32(o) for p, o in zip(parts, offsets, strict=True)]),
        np.concatenate([p.label for p in parts]),
        np.concatenate([p.material for p in parts]),
        np.concatenate([p.albedo for p in parts]),
        np.concatenate([p.instance for p in parts]),
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


def quad(corners: npt.ArrayLike, label: int, material: int, albedo: float) -> Mesh:
    """Make quadrilaterals of 2 triangles each from (Q, 4, 3) corners in order."""
    points = np.asarray(corners, dtype=np.float32).reshape(-1, 3)
    first = np.arange(0, len(points), 4)[:, None]
    faces = np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])], axis=1)
    return uniform_mesh(points, faces, label, material, albedo)


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
    xz = np.asarray(profile, dtype=np.float32)
    n = len(xz)
    half = np.broadcast_to(np.asarray(half_width, dtype=np.float32), (n,))
    left = np.stack([xz[:, 0], half, xz[:, 1]], axis=1)
    middle = left.mean(axis=0, keepdims=True)
    right = left * np.array([1, -1, 1], dtype=np.float32)
    i = np.arange(n)
    j = (i + 1) % n
    faces = [np.stack([i, j, n + j], axis=1), np.stack([i, n + j, n + i], axis=1)]
    faces += [np.stack([np.full(n, 2 * n), j, i], axis=1), np.stack([np.full(n, 2 * n + 1), n + i, n + j], axis=1)]
    corners = np.concatenate([left, right, middle, middle * np.array([1, -1, 1], dtype=np.float32)])
    return uniform_mesh(corners, np.concatenate(faces), label, material, albedo)


def tube(
    start: npt.ArrayLike, end: npt.ArrayLike, radius: float | tuple[float, float], label: int, material: int,
    albedo: float, sides: int = 6,
) -> Mesh:  # fmt: skip
    """Make a round bar with open ends between two points, with one radius or those of start and end."""
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    r0, r1 = radius if isinstance(radius, tuple) else (radius, radius)
    axis = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.9 else np.array([0, 1.0, 0])
    p = np.cross(axis, helper)
    p /= np.linalg.norm(p)
    q = np.cross(axis, p)
    angle = np.arange(sides) * (2 * np.pi / sides)
    circle = np.cos(angle)[:, None] * p + np.sin(angle)[:, None] * q
    i = np.arange(sides)
    j = (i + 1) % sides
    faces = np.concatenate([np.stack([i, j, sides + j], axis=1), np.stack([i, sides + j, sides + i], axis=1)])
    return uniform_mesh(np.concatenate([a + r0 * circle, b + r1 * circle]), faces, label, material, albedo)


def wheel(x: float, y: float, radius: float, width: float, label: int, material: int, albedo: float) -> Mesh:
    """Make an upright disc with its tread, rolling along x."""
    n = 10
    angle = np.arange(n) * (2 * np.pi / n)
    rim = np.stack([x + radius * np.cos(angle), np.zeros(n), radius + radius * np.sin(angle)], axis=1)
    i = np.arange(n)
    j = (i + 1) % n
    faces = [np.stack([i, j, n + j], axis=1), np.stack([i, n + j, n + i], axis=1)]
    faces += [np.stack([np.full(n, 2 * n), i, j], axis=1), np.stack([np.full(n, 2 * n + 1), n + i, n + j], axis=1)]
    side = np.array([0, width / 2, 0])
    middle = np.array([[x, y, radius]])
    corners = np.concatenate([rim + [0, y, 0] - side, rim + [0, y, 0] + side, middle - side, middle + side])
    return uniform_mesh(corners, np.concatenate(faces), label, material, albedo)


def hoop(x: float, radius: float, thickness: float, label: int, material: int, albedo: float) -> Mesh:
    """Make an upright ring in the plane y = 0 that rests on the ground at x: the wheel of a bicycle."""
    n = 14
    angle = np.arange(n) * (2 * np.pi / n)
    out = np.stack([x + radius * np.cos(angle), np.zeros(n), radius + radius * np.sin(angle)], axis=1)
    inner = radius - thickness
    inside = np.stack([x + inner * np.cos(angle), np.zeros(n), radius + inner * np.sin(angle)], axis=1)
    half = np.array([0, thickness / 2, 0])
    i = np.arange(n)
    j = (i + 1) % n
    strips = []
    for a, b in ((0, n), (2 * n, 3 * n), (0, 2 * n)):
        strips += [np.stack([a + i, a + j, b + j], axis=1), np.stack([a + i, b + j, b + i], axis=1)]
    return uniform_mesh(
        np.concatenate([out - half, inside, out + half, inside]), np.concatenate(strips), label, material, albedo
    )


def ball(center: npt.ArrayLike, radii: Sequence[float], label: int, material: int, albedo: float, n: int = 6) -> Mesh:
    """Make an ellipsoid with n meridians and n / 2 parallels."""
    rows = max(n // 2, 2)
    polar = np.linspace(0, np.pi, rows + 1)
    azimuth = np.arange(n) * (2 * np.pi / n)
    unit = np.stack(
        [
            np.sin(polar)[:, None] * np.cos(azimuth),
            np.sin(polar)[:, None] * np.sin(azimuth),
            np.cos(polar)[:, None] * np.ones(n),
        ],
        axis=-1,
    )
    faces = []
    for r in range(rows):
        i = r * n + np.arange(n)
        j = r * n + (np.arange(n) + 1) % n
        faces += [np.stack([i, i + n, j + n], axis=1), np.stack([i, j + n, j], axis=1)]
    points = unit.reshape(-1, 3) * np.asarray(radii) + np.asarray(center)
    return uniform_mesh(points, np.concatenate(faces), label, material, albedo)
