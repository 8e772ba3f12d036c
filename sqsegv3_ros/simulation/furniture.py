# SPDX-License-Identifier: Apache-2.0
"""Meshes of street furniture: poles, signs, boxes and bins. The foot is at the origin, the face towards -x."""

from __future__ import annotations

import numpy as np

from sqsegv3_ros.simulation.materials import METAL, RETRO, WALL, WOOD
from sqsegv3_ros.simulation.meshes import Mesh, ball, box, merge_meshes, quad, rectangle, tube

POLE, SIGN, OTHER_OBJECT = 80, 81, 99


def lamp_post(rng: np.random.Generator) -> Mesh:
    """Build a street lamp of 4 to 8 m with an arm and a door at its foot."""
    high, radius = rng.uniform(4.0, 8.0), rng.uniform(0.05, 0.1)
    albedo = rng.uniform(0.03, 0.42)
    parts = [tube((0, 0, -0.4), (0, 0, 1.0), radius * 1.5, POLE, METAL, albedo, 8)]
    parts.append(tube((0, 0, 1.0), (0, 0, high), (radius, radius * 0.7), POLE, METAL, albedo, 7))
    parts.append(tube((0, 0, high), (0, 1.2, high + 0.2), 0.05, POLE, METAL, albedo, 5))
    parts.append(box((-0.15, 0.15), (0.9, 1.6), (high + 0.15, high + 0.28), POLE, METAL, albedo))
    return merge_meshes(parts)


def utility_pole(rng: np.random.Generator) -> Mesh:
    """Build a wooden or concrete pole of 7 to 9 m."""
    radius = rng.uniform(0.1, 0.16)
    return tube((0, 0, -0.5), (0, 0, rng.uniform(7, 9)), (radius, radius * 0.7), POLE, WOOD, rng.uniform(0.2, 0.45), 8)


def _face(kind: str, size: float, z: float, albedo: float) -> list[Mesh]:
    """Build the reflecting front and the grey back of a sign, centred at height z in the plane x = 0."""
    if kind == "round":
        angle = np.arange(10) * (np.pi / 5)
        rim = np.stack([np.zeros(10), size / 2 * np.cos(angle), z + size / 2 * np.sin(angle)], axis=1)
        quads = np.stack([np.broadcast_to([0.0, 0.0, z], (10, 3)), rim, *(np.roll(rim, -1, axis=0),) * 2], axis=1)
    elif kind == "triangle":
        low, high = z - 0.3 * size, z + 0.58 * size
        quads = np.array([(0.0, -size / 2, low), (0.0, size / 2, low), (0.0, 0.0, high), (0.0, 0.0, high)])
    else:
        w = size * (1.0 if kind == "square" else 2.2) / 2
        quads = np.array(rectangle(0.0, (-w, w), (z - size / 2, z + size / 2)))
    return [quad(quads - [0.05, 0, 0], SIGN, RETRO, albedo), quad(quads - [0.03, 0, 0], SIGN, METAL, 0.4)]


def traffic_sign(rng: np.random.Generator) -> Mesh:
    """Build a sign post with one to three signs facing -x, some with a second one on the back."""
    albedo = rng.uniform(0.05, 0.4)
    z = rng.uniform(1.9, 2.5)
    parts = [tube((0, 0, -0.3), (0, 0, z + 0.35), 0.038, POLE, METAL, albedo, 6)]
    for i in range(rng.choice([1, 1, 2, 3])):
        kind = rng.choice(["round", "triangle", "square", "board"])
        size = 0.35 if i else rng.uniform(0.5, 0.75)
        bright = rng.uniform(0.25, 0.7) if rng.random() < 0.75 else 1.3
        parts += _face(kind, size, z - 0.65 * i, bright)
        if rng.random() < 0.2:
            parts += [part.transformed(yaw=np.pi) for part in _face(kind, size, z - 0.65 * i, bright)]
    return merge_meshes(parts)


def direction_board(rng: np.random.Generator) -> Mesh:
    """Build a large board on two posts, as at junctions and on motorways, 1 to 2 m above the ground."""
    wide, high, low = rng.uniform(1.8, 4.5), rng.uniform(0.8, 2.5), rng.uniform(0.8, 2.0)
    board = np.array(rectangle(0.0, (-wide / 2, wide / 2), (low, low + high)))
    parts = [quad(board - [0.08, 0, 0], SIGN, RETRO, rng.uniform(0.4, 1.2)), quad(board, SIGN, METAL, 0.4)]
    for y in (-0.3 * wide, 0.3 * wide):
        parts.append(tube((0.06, y, -0.5), (0.06, y, low + high), 0.06, POLE, METAL, 0.3, 6))
    return merge_meshes(parts)


def gantry(half_span: float) -> Mesh:
    """Build a sign gantry over a motorway, half_span to either side of the origin."""
    parts = [tube((0, s * half_span, -0.5), (0, s * half_span, 6.5), 0.25, POLE, METAL, 0.35, 8) for s in (1, -1)]
    parts.append(box((-0.2, 0.2), (-half_span, half_span), (6.2, 6.6), POLE, METAL, 0.35))
    for y in np.linspace(-0.7 * half_span, 0.7 * half_span, 4):
        parts.append(quad(rectangle(-0.3, (y - 1.6, y + 1.6), (5.4, 7.8)), SIGN, RETRO, 0.9))
    return merge_meshes(parts)


def traffic_light(rng: np.random.Generator) -> Mesh:
    """Build a traffic light; the data set labels its lamps as traffic-sign."""
    parts = [tube((0, 0, -0.3), (0, 0, 3.3), 0.06, POLE, METAL, rng.uniform(0.1, 0.3), 7)]
    parts.append(box((-0.22, -0.06), (-0.13, 0.13), (2.1, 3.0), SIGN, METAL, 0.12))
    return merge_meshes(parts)


def guide_post() -> Mesh:
    """Build the white post of country roads and motorways."""
    reflector = quad(rectangle(-0.05, (-0.03, 0.03), (0.75, 0.9)), POLE, RETRO, 1.0)
    return merge_meshes([box((-0.04, 0.04), (-0.06, 0.06), (-0.2, 1.0), POLE, METAL, 0.45), reflector])


def bollard(rng: np.random.Generator) -> Mesh:
    """Build a bollard; the data set labels it as pole."""
    return tube((0, 0, -0.2), (0, 0, rng.uniform(0.7, 1.1)), 0.06, POLE, METAL, rng.uniform(0.1, 0.5), 6)


def clutter(rng: np.random.Generator) -> Mesh:
    """Build another object on the sidewalk: dustbins, a cabinet, a bench, an advertising pillar, a box."""
    albedo = rng.uniform(0.1, 0.45)
    kind = rng.integers(5)
    if kind == 0:
        bins = [box((x, x + 0.55), (-0.35, 0.35), (0.0, 1.05), OTHER_OBJECT, METAL, albedo) for x in (-0.6, 0.1)]
        return merge_meshes(bins[: rng.integers(1, 3)])
    if kind == 1:
        return box((-0.2, 0.2), (-0.6, 0.6), (0.0, rng.uniform(0.9, 1.5)), OTHER_OBJECT, METAL, albedo)
    if kind == 2:
        seat = box((-0.25, 0.25), (-0.8, 0.8), (0.38, 0.46), OTHER_OBJECT, WOOD, albedo)
        back = box((0.22, 0.28), (-0.8, 0.8), (0.46, 0.85), OTHER_OBJECT, WOOD, albedo)
        feet = [box((-0.2, 0.2), (y, y + 0.08), (0, 0.38), OTHER_OBJECT, WALL, 0.3) for y in (-0.7, 0.6)]
        return merge_meshes([seat, back, *feet])
    if kind == 3:
        pillar = tube((0, 0, 0), (0, 0, 2.9), 0.62, OTHER_OBJECT, WALL, 0.4, 14)
        return merge_meshes([pillar, ball((0, 0, 2.9), (0.7, 0.7, 0.3), OTHER_OBJECT, WALL, 0.3)])
    x, y, z = rng.uniform(0.3, 1.2, 3)
    return box((-x / 2, x / 2), (-y / 2, y / 2), (0, z), OTHER_OBJECT, WALL, albedo)
