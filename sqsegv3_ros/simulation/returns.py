# SPDX-License-Identifier: Apache-2.0
"""The sensor's response to ray hits: which returns it reports, with what range and remission.

The constants describe an HDL-64E as in KITTI's scans: remission is compensated for range up to about 20 m, fades with
the remaining power beyond, and is clipped at 0; a pulse too weak to be detected is not reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation import materials
from sqsegv3_ros.simulation.raycast import Hits
from sqsegv3_ros.simulation.sensors import SensorModel

_DEPTH, _ROUGHNESS, _FLOOR = (materials.column(f) for f in ("depth_m", "roughness_m", "floor"))
_GLOSS, _SPECKLE, _LOSS = (materials.column(f) for f in ("gloss", "speckle", "loss"))

_SURE_M = np.float32(216.0)  # at this range times the root of its albedo a surface is detected two times in three
_FADE_FROM_M = 22.0
_DARK = 0.08  # lower remissions are reported as 0
_GRAZING = 0.19  # apparent range of slanted surfaces: range * cosine ** -0.19


@dataclass(frozen=True)
class BeamResponse:
    """Differences between the beams of one unit of a sensor, for every ray of a revolution in firing order.

    Attributes:
        gain: (R,) float32 factor of the remission, about 1.
        dim: (R,) float32 share of the remission that is lost at short range, where the beam is out of focus.
        bias_m: (R,) float32 bias of the range.
    """

    gain: npt.NDArray[np.float32]
    dim: npt.NDArray[np.float32]
    bias_m: npt.NDArray[np.float32]


def beam_response(sensor: SensorModel, rng: np.random.Generator) -> BeamResponse:
    """Draw the response of one unit of a sensor; some beams are weak."""
    gain = np.clip(rng.normal(1.02, sensor.gain_spread, sensor.beams), 0.35, 1.35)
    gain[rng.random(sensor.beams) < 0.4 * sensor.gain_spread] *= 0.4
    # beams for long range are focused far away
    upper = np.arange(sensor.beams) < sensor.beams // 2
    dim = np.clip(rng.normal(sensor.near_dim * upper, sensor.near_dim + 0.05), 0.0, 0.95)
    bias = rng.normal(0.0, sensor.range_bias_m, sensor.beams)
    return BeamResponse(*(np.tile(values.astype(np.float32), sensor.columns) for values in (gain, dim, bias)))


def simulate_returns(
    hits: Hits, response: BeamResponse, sensor: SensorModel, rng: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Simulate the returns of (R,) rays.

    Args:
        hits: What the rays hit.
        response: Response of each ray's beam.
        sensor: The sensor.
        rng: Source of the noise.

    Returns:
        Whether each ray is reported, its range in metres and its remission 0..0.99, each (R,).
    """
    count = len(hits.range)
    m = hits.material
    met = np.isfinite(hits.range)
    true_range = np.where(met, hits.range, np.float32(1.0))
    cosine = np.maximum(hits.cosine, _FLOOR[m])
    normal = rng.standard_normal((4, count), dtype=np.float32)
    chance = rng.random((2, count), dtype=np.float32)
    tail = np.exp(np.float32(0.5) * normal[2])  # relief of a surface varies in height
    below = -np.log1p(-chance[0]) * _DEPTH[m] * tail**2
    deeper = below + normal[0] * tail * _ROUGHNESS[m] / np.maximum(hits.cosine, np.float32(0.04))
    deeper = np.clip(deeper, -0.8, 0.8) + normal[3] * np.float32(sensor.range_noise_m) + response.bias_m
    measured_range = true_range + deeper
    step = np.float32(sensor.range_step_m)
    measured_range = np.round(measured_range / step) * step
    shine = (1 - _GLOSS[m]) + _GLOSS[m] * 2.5 * cosine**8
    # dark and slanted surfaces still return some power
    power = np.maximum(hits.albedo, 0.04) * np.maximum(shine, 0.4) * np.sqrt(cosine) * np.square(_SURE_M / true_range)
    reported = met & (chance[1] < (1 - _LOSS[m]) * -np.expm1(-power))
    reported &= (measured_range >= sensor.min_range_m) & (measured_range <= sensor.max_range_m)
    seeming = true_range * cosine**-_GRAZING
    fade = 1.0 - np.clip((seeming - _FADE_FROM_M) / (sensor.reach_m - _FADE_FROM_M), 0.0, 1.0) ** 1.5
    near = 1.0 - response.dim * np.clip((10.0 - true_range) / 5.0, 0.0, 1.0)
    speckle = _SPECKLE[m] * np.sqrt(fade) * np.clip(0.45 + true_range / 28.0, 0.45, 1.3)
    remission = hits.albedo * shine * response.gain * near * fade + normal[1] * speckle
    remission = np.where(remission < _DARK, 0.0, np.clip(remission, 0.0, 0.99))
    return reported, measured_range.astype(np.float32), (np.round(remission * 100) / 100).astype(np.float32)
