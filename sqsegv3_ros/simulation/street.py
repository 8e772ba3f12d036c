"""A street as a whole: a kind and a seed in; its tiles, made when asked for, out."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sqsegv3_ros.simulation.frontage import frontages
from sqsegv3_ros.simulation.plans import draw_plan
from sqsegv3_ros.simulation.roadside import furnish_country, furnish_highway, furnish_median
from sqsegv3_ros.simulation.streetside import furnish_town
from sqsegv3_ros.simulation.tiles import Canvas, Tile, compiled


class Street:
    """A street of a kind ('city', 'highway', 'country' or 'mixed'), the same for the same seed.

    length: the part of u, in metres, that will be driven. It is bounded by nothing but the plan's centre line (a few
    numbers a metre): tiles are made when they come into sight and forgotten when they are out of it.
    """

    def __init__(self, scene: str, seed: tuple[int, ...], length: tuple[float, float] = (0.0, 60.0)) -> None:
        self.seed = seed
        self.plan = draw_plan(scene, seed, (length[0] - 150.0, length[1] + 150.0))
        self.tile = lru_cache(maxsize=8)(self._make)

    def _make(self, number: int) -> Tile:
        plan = self.plan
        canvas = Canvas(plan, number)
        rng = np.random.default_rng([*self.seed, 2, number + 100000])
        for front in frontages(plan, canvas):
            if plan.kind in ("city", "dense"):
                furnish_town(front, plan.kind == "dense", rng)
            else:
                left = front.canvas is canvas and front.v > 0
                style = int(np.random.default_rng([*self.seed, 3, (number + 100000) // 3, int(left)]).integers(1000))
                (furnish_country if plan.kind == "country" else furnish_highway)(front, style, rng)
        if plan.median:
            furnish_median(canvas, rng)
        return compiled(canvas)
