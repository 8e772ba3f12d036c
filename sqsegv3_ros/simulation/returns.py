"""From hits to returns: what rays met in; which of them the sensor reports, with what range and remission, out.

The constants describe an HDL-64E as KITTI's scans show it: its remission is compensated for range up to about 20 m,
fades with the power that is left beyond, and is cut off at 0; a pulse too weak to be found is not reported at all.
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

_SURE_M = np.float32(216.0)  # at this range over the root of its albedo a surface is found two times in three
_FADE_FROM_M = 22.0
_DARK = 0.08  # a remission below is reported as 0
_GRAZING = 0.19  # how much farther a surface seems the more it is turned away: range * cosine ** -0.19


@dataclass(frozen=True)
class BeamResponse:
    """What one unit of a sensor makes of the same answer on its beams, each (beams,) float32.

    gain: of the remission, about 1. dim: how much of it is lost close by, where the beam is out of focus. bias_m: of
    the range.
    """

    gain: npt.NDArray[np.float32]
    dim: npt.NDArray[np.float32]
    bias_m: npt.NDArray[np.float32]

    def tiled(self, columns: int) -> BeamResponse:
        """The same for every ray, in firing order."""
        return BeamResponse(*(np.tile(values, columns) for values in (self.gain, self.dim, self.bias_m)))


def beam_response(sensor: SensorModel, rng: np.random.Generator) -> BeamResponse:
    """Draw a unit of a sensor: some of its beams are weak."""
    gain = np.clip(rng.normal(1.02, sensor.gain_spread, sensor.beams), 0.35, 1.35)
    gain[rng.random(sensor.beams) < 0.4 * sensor.gain_spread] *= 0.4
    # the beams that look far are focused far
    upper = np.arange(sensor.beams) < sensor.beams // 2
    dim = np.clip(rng.normal(sensor.near_dim * upper, sensor.near_dim + 0.05), 0.0, 0.95)
    bias = rng.normal(0.0, sensor.range_bias_m, sensor.beams)
    return BeamResponse(gain.astype(np.float32), dim.astype(np.float32), bias.astype(np.float32))


def measured(
    hits: Hits, response: BeamResponse, sensor: SensorModel, rng: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Hits (R,) and the response of each ray's beam -> (whether it is reported, range in metres, remission 0..0.99),
    each
    (R,)."""
    count = len(hits.range)
    m = hits.material
    met = np.isfinite(hits.range)
    true_range = np.where(met, hits.range, np.float32(1.0))
    cosine = np.maximum(hits.cosine, _FLOOR[m])
    normal = rng.standard_normal((4, count), dtype=np.float32)
    chance = rng.random((2, count), dtype=np.float32)
    tail = np.exp(np.float32(0.5) * normal[2])  # what stands out of a surface is not all of one height
    below = -np.log1p(-chance[0]) * _DEPTH[m] * tail**2
    deeper = below + normal[0] * tail * _ROUGHNESS[m] / np.maximum(hits.cosine, np.float32(0.04))
    deeper = np.clip(deeper, -0.8, 0.8) + normal[3] * np.float32(sensor.range_noise_m) + response.bias_m
    measured_range = true_range + deeper
    step = np.float32(sensor.range_step_m)
    measured_range = np.round(measured_range / step) * step
    shine = (1 - _GLOSS[m]) + _GLOSS[m] * 2.5 * cosine**8
    # dark and slanting surfaces send something back all the same
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
