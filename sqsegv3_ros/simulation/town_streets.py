# SPDX-License-Identifier: Apache-2.0
"""Furnishing of town streets: parked cars, lots, houses, hedges and street furniture along a frontage."""

from __future__ import annotations

import numpy as np

from sqsegv3_ros.simulation.buildings import FENCE_KINDS, fence
from sqsegv3_ros.simulation.frontage import Frontage
from sqsegv3_ros.simulation.ground import BAY_M, COBBLES, OTHER_GROUND, PARKING, PARKING_BAY, SIDEWALK, TERRAIN
from sqsegv3_ros.simulation.mesh_pools import HEDGE_M, THICKET_M, pick, pick_fitting, pick_object, pick_variant
from sqsegv3_ros.simulation.vehicles import BICYCLE, CAR, MOTORCYCLE, OTHER_VEHICLE, TRUCK


def furnish_town(front: Frontage, dense: bool, rng: np.random.Generator) -> None:
    """Furnish one frontage in a town.

    Args:
        front: The frontage.
        dense: Closed rows of houses at the sidewalk instead of gardens.
        rng: Source of random numbers.
    """
    if front.parked:
        kerb_parking(front, rng, rng.uniform(0.2, 0.85) if front.parked == BAY_M else rng.uniform(0.0, 0.5))
    if front.walk > 0.5:
        sidewalk_furniture(front, rng)
    lots(front, dense, rng)


def kerb_parking(front: Frontage, rng: np.random.Generator, occupied: float) -> None:
    """Place vehicles along the kerb: in a bay, or half on the sidewalk."""
    if front.parked == BAY_M:
        front.paint((0.0, front.length), (-front.walk - BAY_M, -front.walk), PARKING_BAY)
    out = -front.walk - front.parked + 1.05
    s = rng.uniform(3.0, 8.0)
    while s < front.length - 6.0:
        if rng.random() > occupied:
            s += rng.uniform(4.0, 12.0)
            continue
        label = rng.choice([CAR, TRUCK, OTHER_VEHICLE, MOTORCYCLE], p=[0.93, 0.02, 0.025, 0.025])
        mesh = pick_object(label, rng)
        half = float(mesh.vertices[:, 0].max())
        yaw = (np.pi if rng.random() < 0.88 else 0.0) + rng.normal(0, 0.025)
        s += half
        front.add(mesh, s, out + rng.normal(0, 0.1), yaw)
        s += half + rng.uniform(0.5, 1.8)


def sidewalk_furniture(front: Frontage, rng: np.random.Generator) -> None:
    """Place lamps, signs, bins, bicycles and people on the sidewalk."""

    def scatter(name: str, gap: float, low: float, high: float, yaw: float = np.pi, turn: float = 0.05) -> None:
        s = rng.uniform(0, 1.3 * gap)
        while s < front.length - 0.5:
            front.add(pick(name, rng), s, rng.uniform(low, high), yaw + rng.normal(0, turn))
            s += gap * rng.uniform(0.5, 1.5)

    kerb, inner = -front.walk + 0.35, -0.25
    lamp, yaw = (kerb, np.pi) if rng.random() < 0.5 else (inner, 0.0)
    scatter("lamp post" if rng.random() < 0.8 else "utility pole", 30.0, lamp, lamp + 0.1, yaw)
    scatter("traffic sign", 120.0, kerb - 0.1, kerb + 0.2)
    if rng.random() < 0.12:
        scatter("bollard", 5.0, kerb, kerb + 0.05)
    scatter("clutter", 40.0, inner - 0.3, inner + 0.1, yaw=np.pi / 2, turn=0.1)
    if front.walk > 2.2 and rng.random() < 0.25:
        scatter("tree", 12.0, kerb + 0.3, kerb + 0.5, turn=3.0)
    whole = (0, front.length)
    front.scatter(rng, front.length / 90.0, {"person": 1}, whole, (-front.walk, 0.0), 6.28)
    for label, gap in ((BICYCLE, 60.0), (MOTORCYCLE, 160.0)):
        for _ in range(rng.poisson(front.length / gap)):
            s, lean = rng.uniform(0, front.length), rng.uniform(-0.2, 0.2)
            near_wall = rng.random() < 0.6
            yaw = rng.choice([0.0, np.pi]) if near_wall else rng.uniform(0, 6.28)
            mesh = pick_object(label, rng).tilted(roll=lean)
            front.add(mesh, s, -0.4 if near_wall else rng.uniform(-front.walk, 0), yaw)
    if front.length > 12 and rng.random() < 0.06:
        front.add(pick("shelter", rng), rng.uniform(2, front.length - 8), -0.2, np.pi)
    if front.main:
        for s in (0.6, front.length - 0.6):
            if rng.random() < 0.25:
                front.add(pick("traffic light" if rng.random() < 0.3 else "traffic sign", rng), s, kerb, np.pi)


def lots(front: Frontage, dense: bool, rng: np.random.Generator) -> None:
    """Divide the frontage into lots and furnish each."""
    s = 0.0
    while s < front.length - 4.0:
        if dense and rng.random() < 0.85:
            s += closed_row(front, s, rng)
            continue
        width = min(rng.uniform(11.0, 24.0), front.length - s)
        kind = rng.choice(["garden", "green", "car park", "thicket", "yard"], p=[0.55, 0.08, 0.04, 0.28, 0.05])
        if kind == "garden":
            garden_lot(front, s, width, rng)
        elif kind == "green":
            green(front, s, width, rng)
        elif kind == "thicket":
            overgrown(front, s, width, rng)
        else:
            paved_yard(front, s, width, PARKING if kind == "car park" else OTHER_GROUND, rng)
        s += width


def boundary(front: Frontage, s0: float, s1: float, o: float, rng: np.random.Generator, across: bool = False) -> None:
    """Place a fence or hedge from s0 to s1 at depth o; with `across`, from o = s0 to o = s1 at s = o, between lots."""
    draw = rng.random()
    shape = int(rng.integers(100))
    height = rng.uniform(0.7, 1.4) if rng.random() < 0.55 else rng.uniform(1.4, 2.1)
    kind = rng.choice(FENCE_KINDS, p=[0.14, 0.2, 0.12, 0.15, 0.25, 0.09, 0.05])
    stretch = fence(kind, HEDGE_M, height, rng.uniform(0.25, 0.5))
    if draw < 0.4:
        stretch = pick_variant("low hedge" if shape % 3 == 0 else "high hedge", shape)
    for a in s0 + HEDGE_M * np.arange(int((s1 - s0) / HEDGE_M)):
        s, depth, yaw = (o, a, np.pi / 2) if across else (a, o, 0.0)
        front.add(stretch, s, depth, yaw)
        if draw > 0.65:  # a fence in front of bushes
            bushes = pick_variant("high hedge" if shape % 2 else "low hedge", shape)
            front.add(bushes, s + 0.5 * across, depth + 0.7 * (not across), yaw)


def garden_lot(front: Frontage, s: float, width: float, rng: np.random.Generator) -> None:
    """Place a house behind a front garden, with a fence or hedge, a driveway, bushes and trees."""
    setback = rng.uniform(1.5, 8.0)
    drive = rng.uniform(2.8, 3.6) if rng.random() < 0.7 and width > 13 else 0.0
    front.paint((s, s + width), (0.0, 34.0), TERRAIN)
    gap = s + drive
    if rng.random() < 0.95:
        boundary(front, gap, s + width, 0.15, rng)
    if rng.random() < 0.9:
        boundary(front, 1.5, 22.0, s + width - 0.2, rng, across=True)
    if drive:
        surface = rng.choice([PARKING, SIDEWALK, COBBLES, OTHER_GROUND], p=[0.35, 0.35, 0.2, 0.1])
        front.paint((s, gap), (0.0, setback + 8.0), surface)
        if rng.random() < 0.5:
            front.add(pick("garage", rng), s, setback + 3.0)
        if rng.random() < 0.45:
            mesh, depth = pick_object(CAR, rng), rng.uniform(2.6, setback + 2.6)
            front.add(mesh, s + drive / 2, depth, rng.choice([1, -1]) * np.pi / 2)
        elif rng.random() < 0.08:
            front.add(pick_object(OTHER_VEHICLE, rng), s + drive / 2, 4.0, np.pi / 2)
    home = pick_fitting("house", width - drive, rng)
    if home is not None:
        room = width - drive - float(home.vertices[:, 0].max())
        front.add(home, gap + rng.uniform(0, 1) * room, setback, rng.normal(0, 0.03))
    shares = {"bush": 0.5, "small bush": 0.28, "young tree": 0.05, "tree": 0.09, "conifer": 0.08}
    front.scatter(rng, width * 0.95, shares, (gap + 0.3, s + width), (0.8, setback), 6)
    front.scatter(rng, 2.0, {"tree": 0.6, "conifer": 0.4}, (s, s + width), (setback + 12, 32))
    for a in np.arange(s, s + width, THICKET_M):
        if rng.random() < 0.8:
            front.add(pick_variant("far thicket", int(rng.integers(8))), float(a), rng.uniform(setback + 6, 30))


def closed_row(front: Frontage, s: float, rng: np.random.Generator) -> float:
    """Place a town house at the sidewalk, adjoining the last one. Returns its length along the frontage."""
    block = pick_fitting("block", front.length - s, rng)
    if block is None:
        green(front, s, front.length - s, rng)
        return front.length - s
    front.add(block, s, rng.choice([0.0, 0.0, rng.uniform(0, 2.5)]))
    long = float(block.vertices[:, 0].max())
    front.paint((s, s + long), (0.0, 3.0), SIDEWALK)
    return long + (rng.uniform(2.5, 6.0) if rng.random() < 0.2 else 0.0)


def green(front: Frontage, s: float, width: float, rng: np.random.Generator) -> None:
    """Place a lawn with trees and bushes, like a small park."""
    front.paint((s, s + width), (0.0, 34.0), TERRAIN)
    shares = {"tree": 0.45, "young tree": 0.2, "bush": 0.25, "conifer": 0.1}
    front.scatter(rng, width * 0.3, shares, (s, s + width), (1.0, 26.0), 6)
    if rng.random() < 0.3:
        front.add(pick("clutter", rng), rng.uniform(s, s + width), rng.uniform(0.5, 4), np.pi / 2)
    for a in np.arange(s, s + width - THICKET_M, THICKET_M):
        front.add(pick_variant("far thicket", int(a)), float(a), rng.uniform(18, 30))


def overgrown(front: Frontage, s: float, width: float, rng: np.random.Generator) -> None:
    """Place wild growth close to the sidewalk, sometimes behind a fence."""
    o = rng.uniform(0.3, 3.0)
    if rng.random() < 0.4:
        boundary(front, s, s + width, 0.15, rng)
    name = "thicket" if rng.random() < 0.6 else "low thicket"
    for a in np.arange(s, s + width - THICKET_M * 0.5, THICKET_M):
        front.add(pick_variant(name, int(a * 7)), float(a), o)
    front.scatter(rng, width * 0.15, {"tree": 1}, (s, s + width), (o, o + 10))


def paved_yard(front: Frontage, s: float, width: float, surface: int, rng: np.random.Generator) -> None:
    """Place a car park or the forecourt of a shop or workshop."""
    deep = rng.uniform(10, 22)
    front.paint((s, s + width), (0.0, deep), surface)
    o = 3.0
    while o < deep - 2.5:
        for a in np.arange(s + 1.5, s + width - 1.5, 2.6):
            if rng.random() < 0.45:
                label = rng.choice([CAR, TRUCK, OTHER_VEHICLE], p=[0.94, 0.03, 0.03])
                mesh = pick_object(label, rng)
                if label == CAR or rng.random() < 0.3:
                    front.add(mesh, float(a), o, rng.choice([1, -1]) * np.pi / 2 + rng.normal(0, 0.04))
        o += 11.0
    shop = pick_fitting("hall" if rng.random() < 0.5 else "block", front.length - s, rng)
    if shop is not None:
        front.add(shop, s, deep + 1.0)
    if rng.random() < 0.4:
        boundary(front, s + 4.0, s + width, 0.15, rng)
    front.scatter(rng, 1.0, {"clutter": 1}, (s, s + width), (0.5, deep))
