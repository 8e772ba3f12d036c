# SPDX-License-Identifier: Apache-2.0
"""Optical properties of materials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Material:
    """Response of a surface to a laser pulse.

    Attributes:
        name: Name of the material.
        opacity: Probability that the surface stops a ray; others continue (leaves, wire mesh, glass).
        depth_m: Mean depth of the return below the surface (exponential, with a long tail).
        roughness_m: Height of the relief; it scatters the range by that height over the cosine of incidence.
        floor: Smallest effective cosine of incidence; 1 if the angle has no effect.
        gloss: 0 for diffuse, 1 for a mirror: how fast the return fades off the perpendicular.
        speckle: Spread of the remission from point to point at 15 m (less at shorter range, more at longer).
        loss: Probability that a return is lost at short range.
    """

    name: str
    opacity: float = 1.0
    depth_m: float = 0.0
    roughness_m: float = 0.0
    floor: float = 0.03
    gloss: float = 0.0
    speckle: float = 0.05
    loss: float = 0.008


MATERIALS = (
    Material("asphalt", roughness_m=0.0007, floor=0.04, speckle=0.04),
    Material("paving", roughness_m=0.0012, floor=0.06, speckle=0.04),
    Material("grass", roughness_m=0.0065, floor=0.25, speckle=0.06),
    Material("wall", roughness_m=0.004, floor=0.12, speckle=0.06),
    Material("glass", opacity=0.88, floor=0.02, gloss=0.9, speckle=0.05, loss=0.6),
    Material("paint", roughness_m=0.003, floor=0.05, gloss=0.75, speckle=0.04, loss=0.01),
    Material("rubber", roughness_m=0.005, floor=0.1, speckle=0.04, loss=0.08),
    Material("metal", roughness_m=0.004, floor=0.08, gloss=0.35, speckle=0.09, loss=0.015),
    Material("wood", roughness_m=0.005, floor=0.12, speckle=0.06),
    Material("bark", roughness_m=0.008, floor=0.2, speckle=0.1, loss=0.01),
    Material("leaf", opacity=0.91, depth_m=0.03, roughness_m=0.01, floor=0.2, speckle=0.1, loss=0.008),
    Material("cloth", roughness_m=0.01, floor=0.3, speckle=0.08, loss=0.01),
    Material("retro", roughness_m=0.005, floor=0.6, speckle=0.15, loss=0.01),
    Material("window", opacity=0.5, floor=0.02, gloss=0.8, speckle=0.05, loss=0.35),
    Material("mesh", opacity=0.6, roughness_m=0.01, floor=0.4, speckle=0.08, loss=0.02),
)
ASPHALT, PAVING, GRASS, WALL, GLASS, PAINT, RUBBER = range(7)
METAL, WOOD, BARK, LEAF, CLOTH, RETRO, WINDOW, MESH = range(7, len(MATERIALS))


def column(field: str) -> npt.NDArray[np.float32]:
    """Get one property of all materials by material number, (materials,) float32."""
    return np.array([getattr(material, field) for material in MATERIALS], dtype=np.float32)
