"""Surfaces: how a material answers a laser pulse. A material number in, its optical behaviour out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Material:
    """How a surface answers a pulse.

    opacity: the probability that a crossing stops the ray; the rest goes on (leaves, wire mesh, glass). depth_m: mean
    depth below the drawn surface at which the pulse is answered (exponential). roughness: spread of the answered range.
    floor: least effective cosine of the angle of incidence; 1 where the angle does not matter (leaves). gloss: 0
    diffuse, 1 mirror: how fast the answer fades off the perpendicular. speckle: spread of the remission from point to
    point. loss: probability that an answer is lost at short range.
    """

    name: str
    opacity: float = 1.0
    depth_m: float = 0.0
    roughness_m: float = 0.0
    floor: float = 0.03
    gloss: float = 0.0
    speckle: float = 0.05
    loss: float = 0.005


MATERIALS = (
    Material("asphalt", roughness_m=0.004, floor=0.04, speckle=0.035, loss=0.004),
    Material("paving", roughness_m=0.006, floor=0.06, speckle=0.035, loss=0.004),
    Material("grass", roughness_m=0.035, floor=0.15, speckle=0.045, loss=0.004),
    Material("wall", roughness_m=0.01, floor=0.12, speckle=0.07),
    Material("glass", opacity=0.35, floor=0.02, gloss=0.9, speckle=0.05, loss=0.35),
    Material("paint", roughness_m=0.01, floor=0.05, gloss=0.55, speckle=0.08, loss=0.04),
    Material("rubber", roughness_m=0.01, floor=0.1, speckle=0.05, loss=0.1),
    Material("metal", roughness_m=0.01, floor=0.08, gloss=0.35, speckle=0.14, loss=0.02),
    Material("wood", roughness_m=0.015, floor=0.12, speckle=0.08),
    Material("bark", roughness_m=0.03, floor=0.2, speckle=0.12, loss=0.01),
    Material("leaf", opacity=0.72, depth_m=0.09, roughness_m=0.05, floor=0.55, speckle=0.1, loss=0.01),
    Material("cloth", roughness_m=0.02, floor=0.3, speckle=0.1, loss=0.01),
    Material("retro", roughness_m=0.01, floor=0.6, speckle=0.18, loss=0.01),
    Material("mesh", opacity=0.42, roughness_m=0.015, floor=0.4, speckle=0.1, loss=0.02),
)
ASPHALT, PAVING, GRASS, WALL, GLASS, PAINT, RUBBER, METAL, WOOD, BARK, LEAF, CLOTH, RETRO, MESH = range(len(MATERIALS))


def column(field: str) -> npt.NDArray[np.float32]:
    """One property of every material, by material number: (materials,) float32."""
    return np.array([getattr(material, field) for material in MATERIALS], dtype=np.float32)
