# SPDX-License-Identifier: Apache-2.0
"""A street of a random plan, with everything that stands along it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sqsegv3_ros.simulation.frontage import frontages
from sqsegv3_ros.simulation.gatherings import add_gatherings
from sqsegv3_ros.simulation.plans import random_plan
from sqsegv3_ros.simulation.rural_roads import furnish_country, furnish_highway, furnish_median
from sqsegv3_ros.simulation.tiles import Tile, TileBuilder
from sqsegv3_ros.simulation.town_streets import furnish_town


class Street:
    """A street; the same seed gives the same street.

    Tiles are built when they come into sight, and only the last few are kept, so a street may be long.

    Args:
        scene: Kind of street, one of `plans.SCENES`.
        seed: Seed.
        length: First and last u that will be driven, in metres.
    """

    def __init__(self, scene: str, seed: tuple[int, ...], length: tuple[float, float] = (0.0, 60.0)) -> None:
        self.seed = seed
        self.plan = random_plan(scene, seed, (length[0] - 150.0, length[1] + 150.0))
        self.tile = lru_cache(maxsize=8)(self._build_tile)

    def _build_tile(self, number: int) -> Tile:
        plan = self.plan
        builder = TileBuilder(plan, number)
        rng = np.random.default_rng([*self.seed, 2, number + 100000])
        people = np.random.default_rng([*self.seed, 4, number + 100000])
        for front in frontages(plan, builder):
            if plan.kind in ("city", "dense"):
                furnish_town(front, plan.kind == "dense", rng)
                add_gatherings(front, people)
            else:
                left = front.v > 0
                style = int(np.random.default_rng([*self.seed, 3, (number + 100000) // 3, int(left)]).integers(1000))
                (furnish_country if plan.kind == "country" else furnish_highway)(front, style, rng)
        if plan.median:
            furnish_median(builder, rng)
        return builder.build()
