# SPDX-License-Identifier: Apache-2.0
"""Meshes of houses and fences.

The front of a building is at y = 0, starts at x = 0 and faces -y (the street); the rest of it is at y > 0. A fence runs
along x.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sqsegv3_ros.simulation.materials import MESH, METAL, WALL, WINDOW, WOOD
from sqsegv3_ros.simulation.meshes import Mesh, Point, box, merge_meshes, quad, rectangle, tube

BUILDING, FENCE, OTHER_STRUCTURE = 50, 51, 52


def facade(length: float, floors: int, floor_height: float, albedo: float, rng: np.random.Generator) -> Mesh:
    """Build a front of floors x bays with recessed windows and doors; it continues one metre below the ground."""
    bays = max(int(length / rng.uniform(2.3, 3.6)), 1)
    bay = length / bays
    wide, tall, sill = rng.uniform(0.38, 0.6) * bay, rng.uniform(1.1, 1.6), rng.uniform(0.8, 1.2)
    recess = rng.uniform(0.1, 0.4)
    raised = rng.uniform(0.0, 0.9)  # ground floor above a plinth
    door = rng.integers(bays)
    wall, top = (BUILDING, WALL, albedo), raised + floors * floor_height
    walls = [rectangle((0, length), 0, (-1.0, raised))]
    panes: list[list[Point]] = []
    reveals: list[list[Point]] = []
    for floor in range(floors):
        z0 = raised + floor * floor_height
        low, high, end = z0 + sill, min(z0 + sill + tall, z0 + floor_height - 0.25), z0 + floor_height
        walls.append(rectangle((0, length), 0, (high, end)))
        for i in range(bays):
            x0, x1 = i * bay, (i + 1) * bay
            a, b = x0 + (bay - wide) / 2, x1 - (bay - wide) / 2
            bottom = z0 if floor == 0 and i == door else low
            if rng.random() < 0.08 and bottom == low:  # a blind bay
                walls.append(rectangle((x0, x1), 0, (z0, high)))
                continue
            walls += [rectangle((x0, a), 0, (z0, high)), rectangle((b, x1), 0, (z0, high))]
            walls.append(rectangle((a, b), 0, (z0, bottom)))
            solid = bottom != low or rng.random() < 0.3  # doors and shutters
            (walls if solid else panes).append(rectangle((a, b), recess, (bottom, high)))
            reveals += [rectangle(x, (0, recess), (bottom, high)) for x in (a, b)]
            reveals += [rectangle((a, b), (0, recess), z) for z in (bottom, high)]
    parts = [quad(walls, *wall), quad(reveals, *wall)]
    parts += _relief(length, raised, [raised + f * floor_height for f in range(1, floors + 1)], albedo, rng)
    if panes:
        parts.append(quad(panes, BUILDING, WINDOW, 0.3))
        # curtains and rooms behind the glass
        parts.append(quad(rectangle((0.2, length - 0.2), rng.uniform(0.5, 3.0), (0, top)), BUILDING, WALL, 0.25))
    return merge_meshes(parts)


def _relief(length: float, plinth: float, levels: list[float], albedo: float, rng: np.random.Generator) -> list[Mesh]:
    """Build the relief of a front: plinth, ledges, downpipes, a canopy over the door."""
    parts, wall = [], (BUILDING, WALL, albedo)
    if plinth > 0.3 and rng.random() < 0.7:
        parts.append(box((0, length), (-rng.uniform(0.03, 0.15), 0), (-0.5, plinth), *wall))
    if rng.random() < 0.6:
        out = rng.uniform(0.06, 0.45)
        parts += [box((0, length), (-out, 0), (z - 0.15, z + 0.05), *wall) for z in levels]
    for x in rng.uniform(0, length, rng.integers(0, 3)):
        parts.append(tube((x, -0.08, 0), (x, -0.08, levels[-1]), 0.06, *wall, 5))
    for at in rng.uniform(0, 0.8, rng.integers(0, 3)):  # porches and oriels
        x, deep, foot = float(at) * length, rng.uniform(0.3, 1.3), rng.uniform(-0.5, plinth + 1.0)
        parts.append(box((x, x + 1.8), (-deep, 0), (foot, foot + rng.uniform(1.0, 2.6)), *wall))
    if rng.random() < 0.5:
        x, deep = rng.uniform(0, 0.7) * length, rng.uniform(0.6, 1.8)
        parts.append(box((x, x + 2.0), (-deep, 0), (plinth + 2.2, plinth + 2.35), *wall))
    return parts


def house(length: float, depth: float, floors: int, rng: np.random.Generator, flat: bool = False) -> Mesh:
    """Build a house: a detailed front, detailed or plain gables, a plain back, a roof, sometimes steps or a bay."""
    albedo = rng.uniform(0.28, 0.56)
    floor_height = rng.uniform(2.6, 3.1)
    wall = (BUILDING, WALL, albedo)
    front = facade(length, floors, floor_height, albedo, rng)
    parts = [front]
    high = float(front.vertices[:, 2].max())
    for x, yaw in ((0.0, -np.pi / 2), (length, np.pi / 2)):
        if rng.random() < 0.6:
            side = facade(depth, floors, floor_height, albedo, rng)
            side = side.transformed(y=depth, yaw=yaw) if yaw < 0 else side.transformed(yaw=yaw)
            parts.append(side.transformed(x=x))
            high = max(high, float(side.vertices[:, 2].max()))
        else:
            parts.append(quad(rectangle(x, (0, depth), (-1, high)), *wall))
    parts.append(quad(rectangle((0, length), depth, (-1, high)), *wall))
    if flat:
        parts.append(quad(rectangle((0, length), (0, depth), high), BUILDING, WALL, 0.2))
    else:
        eave, ridge = 0.5, high + depth * rng.uniform(0.3, 0.5)
        x0, x1, z0 = -eave, length + eave, high - 0.2
        for y in (-eave, depth + eave):
            slope = [(x0, y, z0), (x1, y, z0), (x1, depth / 2, ridge), (x0, depth / 2, ridge)]
            parts.append(quad(slope, BUILDING, WALL, 0.25))
        for x in (0.0, length):
            gable = [(x, 0, high), (x, depth, high), (x, depth / 2, ridge), (x, depth / 2, ridge)]
            parts.append(quad(gable, *wall))
    if rng.random() < 0.5:  # steps or a porch
        x = rng.uniform(0.1, 0.7) * length
        parts.append(box((x, x + 1.6), (-1.2, 0), (-0.5, rng.uniform(0.2, 0.6)), BUILDING, WALL, albedo))
    if rng.random() < 0.3 and floors > 1:  # balcony or oriel
        x = rng.uniform(0.1, 0.6) * length
        z = high - rng.uniform(0.9, 1.2) * floor_height
        parts.append(box((x, x + 3.0), (-1.3, 0), (z, z + 0.9), BUILDING, WALL, albedo))
    return merge_meshes(parts)


def garage(rng: np.random.Generator) -> Mesh:
    """Build a single or double garage with its door."""
    length, depth, high = rng.choice([3.0, 3.2, 6.0]), rng.uniform(5.5, 6.5), rng.uniform(2.3, 2.7)
    wall = (BUILDING, WALL, rng.uniform(0.3, 0.5))
    shell = box((0, length), (0.15, depth), (-0.5, high), *wall)
    rim = [box(x, (0, 0.15), (-0.5, high), *wall) for x in ((0, 0.25), (length - 0.25, length))]
    return merge_meshes([shell, *rim, box((0.25, length - 0.25), (0, 0.15), (high - 0.35, high), *wall)])


def shelter() -> Mesh:
    """Build a bus shelter: posts, glass, a roof."""
    frame = (OTHER_STRUCTURE, METAL, 0.35)
    parts = [box((0, 4.0), (0, 1.5), (2.35, 2.45), *frame)]
    parts += [tube((x, y, 0), (x, y, 2.4), 0.05, *frame, 5) for x in (0.1, 3.9) for y in (0.1, 1.4)]
    parts.append(quad(rectangle((0, 4), 1.45, (0.2, 2.2)), OTHER_STRUCTURE, WINDOW, 0.3))
    parts.append(box((0.5, 3.5), (1.0, 1.3), (0.4, 0.5), OTHER_STRUCTURE, WOOD, 0.35))
    return merge_meshes(parts)


FENCE_KINDS = ("pickets", "boards", "bars", "mesh", "wall", "wall and bars", "rails")


def fence(kind: str, length: float, height: float, albedo: float) -> Mesh:
    """Build one section of a fence from x = 0 to length. It is straight, so use sections of 2 to 3 m on uneven ground.

    Args:
        kind: One of `FENCE_KINDS`, or 'guard rail'.
        length: Length in metres.
        height: Height in metres.
        albedo: Albedo.
    """
    parts: list[Mesh] = []

    def slats(width: float, gap: float, low: float, high: float, material: int) -> None:
        starts = np.arange(0.0, length - width * 0.5, width + gap)
        parts.append(quad([rectangle((x, x + width), 0, (low, high)) for x in starts], FENCE, material, albedo))

    def beams(*levels: float) -> None:
        for z in levels:
            parts.append(box((0, length), (-0.02, 0.02), (z - 0.04, z + 0.04), FENCE, WOOD, albedo))

    def post(high: float, size: float = 0.05) -> None:
        parts.append(box((-size, size), (-size, size), (-0.4, high), FENCE, WOOD, albedo))

    if kind == "pickets":
        slats(0.09, 0.06, 0.08, height, WOOD)
        beams(0.3, height - 0.2)
        post(height)
    elif kind == "boards":
        slats(0.14, 0.008, 0.03, height, WOOD)
        post(height + 0.05)
    elif kind == "bars":
        slats(0.03, 0.09, 0.1, height, METAL)
        beams(0.15, height - 0.08)
        post(height, 0.04)
    elif kind == "mesh":
        parts.append(quad(rectangle((0, length), 0, (0.02, height)), FENCE, MESH, albedo))
        parts.append(tube((0, 0, -0.4), (0, 0, height + 0.05), 0.035, FENCE, METAL, albedo, 5))
    elif kind == "wall":
        parts.append(box((0, length), (-0.13, 0.13), (-0.6, height), FENCE, WALL, albedo))
    elif kind == "wall and bars":
        parts.append(box((0, length), (-0.13, 0.13), (-0.6, 0.5), FENCE, WALL, albedo))
        parts.append(box((-0.2, 0.2), (-0.2, 0.2), (-0.6, height + 0.1), FENCE, WALL, albedo))
        slats(0.04, 0.09, 0.5, height, METAL)
    elif kind == "rails":
        beams(0.4 * height, 0.7 * height, height)
        post(height + 0.08, 0.06)
    else:  # guard rail: the beam's W on posts
        profile = [(0.0, 0.45), (0.08, 0.52), (0.0, 0.6), (0.08, 0.68), (0.0, 0.76)]
        for (y0, z0), (y1, z1) in pairwise(profile):
            strip = [(0, y0, z0), (length, y0, z0), (length, y1, z1), (0, y1, z1)]
            parts.append(quad(strip, FENCE, METAL, albedo))
        parts.append(box((-0.06, 0.06), (0.08, 0.2), (-0.4, 0.72), FENCE, METAL, albedo))
    return merge_meshes(parts)
