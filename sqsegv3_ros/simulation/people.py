# SPDX-License-Identifier: Apache-2.0
"""Meshes of pedestrians and riders, standing at the origin, x forward."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from sqsegv3_ros.simulation.materials import CLOTH
from sqsegv3_ros.simulation.meshes import Mesh, Point, ball, box, merge_meshes, tube
from sqsegv3_ros.simulation.vehicles import bicycle, motorcycle

PERSON, BICYCLIST, MOTORCYCLIST = 30, 31, 32


def _body(
    label: int, hip: Point, shoulder: Point, hands: list[Point], feet: list[Point], bend: float, rng: Generator
) -> list[Mesh]:
    """Torso, head and limbs between joints in metres."""
    clothes, trousers = (float(v) for v in rng.uniform(0.28, 0.7, 2))
    girth = rng.uniform(0.85, 1.15)
    h, s = np.array(hip), np.array(shoulder)
    parts = [tube(h, s, (0.17 * girth, 0.2 * girth), label, CLOTH, clothes, sides=7)]
    head = s + np.array([0.05, 0, 0.24])
    parts.append(ball(head, (0.11, 0.09, 0.14), label, CLOTH, 0.4))
    parts.append(tube(s, head, 0.06, label, CLOTH, 0.4, sides=5))
    for side, hand, foot in zip((1, -1), hands, feet, strict=True):
        joint = s + np.array([0, side * 0.19 * girth, -0.03])
        elbow = (joint + np.array(hand)) / 2 + np.array([-0.06, side * 0.05, -0.05])
        parts.append(tube(joint, elbow, 0.06 * girth, label, CLOTH, clothes, sides=5))
        parts.append(tube(elbow, hand, 0.045, label, CLOTH, clothes, sides=5))
        start = h + np.array([0, side * 0.09, 0])
        knee = (start + np.array(foot)) / 2 + np.array([bend, 0, 0.02])
        parts.append(tube(start, knee, (0.1 * girth, 0.075), label, CLOTH, trousers, sides=5))
        parts.append(tube(knee, foot, (0.075, 0.055), label, CLOTH, trousers, sides=5))
        x, y, z = foot
        parts.append(box((x - 0.08, x + 0.17), (y - 0.05, y + 0.05), (z, z + 0.08), label, CLOTH, 0.25))
    return parts


def person(rng: Generator, label: int = PERSON) -> Mesh:
    """Build a walking, standing or sitting person, also children; some carry something."""
    pose = rng.choice(["walk", "walk", "walk", "stand", "stand", "sit"])
    stride = rng.uniform(0.18, 0.38) if pose == "walk" else rng.uniform(0.0, 0.08)
    if pose == "sit":
        hands = [(0.25, 0.2, 0.62), (0.25, -0.2, 0.62)]
        parts = _body(label, (0, 0, 0.5), (-0.05, 0, 1.02), hands, [(0.45, 0.12, 0), (0.45, -0.12, 0)], 0.2, rng)
        parts.append(box((-0.25, 0.15), (-0.22, 0.22), (0.0, 0.42), label, CLOTH, 0.3))
    else:
        swing = stride * 0.9 if rng.random() < 0.7 else -0.3
        hands = [(-swing, 0.28, 0.78), (abs(swing), -0.28, 0.8 if rng.random() < 0.7 else 1.1)]
        feet = [(stride, 0.09, 0.0), (-stride, -0.09, 0.0)]
        parts = _body(label, (0, 0, 0.88), (0.03, 0, 1.42), hands, feet, 0.05, rng)
        if rng.random() < 0.3:
            parts.append(box((-0.36, -0.12), (-0.17, 0.17), (0.95, 1.4), label, CLOTH, rng.uniform(0.2, 0.5)))
    return merge_meshes(parts).transformed(scale=rng.choice([0.7, 0.95, 1.0, 1.03, 1.08]))


def bicyclist(rng: Generator, label: int = BICYCLIST) -> Mesh:
    """Build a bicycle with its rider, all of one class."""
    lean = rng.uniform(0.1, 0.32)
    pedal = rng.uniform(-0.16, 0.16)
    feet = [(-0.05 + pedal, 0.12, 0.28 - pedal), (-0.05 - pedal, -0.12, 0.28 + pedal)]
    hands = [(0.36, 0.26, 1.06), (0.36, -0.26, 1.06)]
    rider = _body(label, (-0.2, 0, 0.98), (-0.12 + lean, 0, 1.5), hands, feet, 0.18, rng)
    return merge_meshes([bicycle(label), *rider]).transformed(scale=rng.uniform(0.92, 1.05))


def motorcyclist(rng: Generator, label: int = MOTORCYCLIST) -> Mesh:
    """Build a motorcycle or scooter with its rider, all of one class."""
    scooter = rng.random() < 0.4
    feet = [(0.15, 0.2, 0.32), (0.15, -0.2, 0.32)]
    hands = [(0.36, 0.3, 1.06), (0.36, -0.3, 1.06)]
    rider = _body(label, (-0.3, 0, 0.85), (-0.18, 0, 1.38), hands, feet, 0.22, rng)
    helmet = ball((-0.13, 0, 1.62), (0.16, 0.14, 0.17), label, CLOTH, 0.35)
    return merge_meshes([motorcycle(label, scooter), *rider, helmet])
