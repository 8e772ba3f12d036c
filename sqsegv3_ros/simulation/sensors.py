# SPDX-License-Identifier: Apache-2.0
"""Models of spinning LiDARs: beams, firing pattern, limits and noise.

Numbers are from the user manuals of the HDL-64E S2, HDL-32E, VLP-16, VLP-32C and OS1. The HDL-64E is KITTI's: two
blocks of 32 lasers at different heights of the head, mounted 1.73 m above the road.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError


@dataclass(frozen=True)
class BlindSpot:
    """Ellipse of directions that the vehicle itself blocks, in degrees; nothing is returned from there."""

    azimuth_deg: float
    elevation_deg: float
    half_azimuth_deg: float
    half_elevation_deg: float


@dataclass(frozen=True)
class SensorModel:
    """A spinning LiDAR. Beams are numbered from the top; tuples have one entry per beam, or one for all.

    Attributes:
        name: Name of the preset.
        elevations_deg: Angles of the beams above the horizon.
        columns: Firings per revolution.
        max_range_m: Largest reported range.
        beam_azimuths_deg: Angles of the beams relative to the firing direction.
        heights_m: Heights of the beams' origins above the sensor's origin.
        min_range_m: Smallest reported range.
        mount_height_m: Height of the sensor's origin above the ground.
        rate_hz: Revolutions per second.
        range_noise_m: Standard deviation of the range from shot to shot.
        range_bias_m: Standard deviation of the range bias from beam to beam.
        azimuth_step_deg: Resolution of the encoder; 0 for continuous.
        range_step_m: Resolution of the range.
        gain_spread: Standard deviation of the beams' remission gains around 1.
        near_dim: Mean share of the remission that an upper beam loses at short range.
        reach_m: Range at which the remission has faded to 0.
        ring_from_bottom: Whether the driver numbers rings from the lowest beam (Velodyne) or the topmost (Ouster).
        blind_spots: Directions that the vehicle itself blocks.
    """

    name: str
    elevations_deg: tuple[float, ...]
    columns: int
    max_range_m: float
    beam_azimuths_deg: tuple[float, ...] = (0.0,)
    heights_m: tuple[float, ...] = (0.0,)
    min_range_m: float = 1.0
    mount_height_m: float = 1.73
    rate_hz: float = 10.0
    range_noise_m: float = 0.008
    range_bias_m: float = 0.01
    azimuth_step_deg: float = 0.0
    range_step_m: float = 0.002
    gain_spread: float = 0.06
    near_dim: float = 0.0
    reach_m: float = 64.0
    ring_from_bottom: bool = True
    blind_spots: tuple[BlindSpot, ...] = ()

    def __post_init__(self) -> None:
        if self.columns < 1 or not self.elevations_deg:
            raise UserError(f"sensor '{self.name}': needs at least one beam and one column")
        for field in ("beam_azimuths_deg", "heights_m"):
            if len(getattr(self, field)) not in (1, self.beams):
                raise UserError(f"sensor '{self.name}': {field} needs 1 or {self.beams} entries")
        if not 0 < self.min_range_m < self.max_range_m:
            raise UserError(f"sensor '{self.name}': needs 0 < min_range_m < max_range_m")

    @property
    def beams(self) -> int:
        """Number of beams (rings)."""
        return len(self.elevations_deg)

    def per_beam(self, values: tuple[float, ...]) -> npt.NDArray[np.float64]:
        """Expand one value, or one per beam, to (beams,) float64."""
        return np.broadcast_to(np.asarray(values, dtype=np.float64), (self.beams,)).copy()

    def blind(self) -> npt.NDArray[np.bool_]:
        """Get the rays that the vehicle itself blocks, (columns, beams) bool."""
        # by the firing direction: at such short range the beams' different origins blur the edge
        azimuth = firing_azimuths(self)[:, None]
        elevation = self.per_beam(self.elevations_deg)[None]
        blocked = np.zeros((self.columns, self.beams), dtype=bool)
        for spot in self.blind_spots:
            aside = np.degrees(np.angle(np.exp(1j * (azimuth - np.radians(spot.azimuth_deg)))))
            above = elevation - spot.elevation_deg
            blocked |= (aside / spot.half_azimuth_deg) ** 2 + (above / spot.half_elevation_deg) ** 2 < 1
        return blocked


def firing_azimuths(sensor: SensorModel) -> npt.NDArray[np.float64]:
    """Compute the azimuths of the firings, (columns,) float64 radians counter-clockwise from forward, in firing order.

    The head rotates clockwise and a revolution begins at the rear, so the middle of the sweep points forward.
    """
    azimuth = np.pi - 2 * np.pi * (np.arange(sensor.columns) + 0.5) / sensor.columns
    step = np.radians(sensor.azimuth_step_deg)
    return np.round(azimuth / step) * step if step else azimuth


def _spread(top: float, bottom: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(top, bottom, count).tolist())


def _hdl64e() -> SensorModel:
    # 1/3 degree in the upper block, 1/2 in the lower, with small deviations as in every calibration file
    off = np.random.default_rng(64).normal(0.0, 1.0, (2, 64))
    elevations = np.concatenate([np.linspace(1.95, -8.75, 32), np.linspace(-9.0, -24.6, 32)]) + 0.05 * off[0]
    aside = np.tile([-3.8, 1.3, -1.3, 3.8], 16) + 0.3 * off[1]
    return SensorModel(
        "hdl64e",
        tuple(np.sort(elevations)[::-1].tolist()),
        columns=2172,
        max_range_m=80.0,
        beam_azimuths_deg=tuple(aside.tolist()),
        heights_m=(0.205,) * 32 + _spread(0.13, 0.09, 32),
        near_dim=0.3,
        range_bias_m=0.036,
        azimuth_step_deg=0.09,
        gain_spread=0.13,
        blind_spots=(  # the roof of a station wagon and its equipment
            BlindSpot(181.0, -26.0, 34.0, 7.2),
            BlindSpot(161.0, -16.6, 4.0, 3.2),
            BlindSpot(202.0, -16.6, 3.6, 3.2),
            BlindSpot(292.0, -19.8, 10.0, 3.7),
            BlindSpot(134.0, -24.2, 4.0, 3.4),
            BlindSpot(233.0, -23.8, 3.8, 3.0),
            BlindSpot(0.0, -25.5, 20.0, 4.2),
            BlindSpot(328.0, -24.6, 6.0, 1.3),
            BlindSpot(34.0, -24.4, 5.5, 1.0),
        ),
    )


def _vlp32c() -> SensorModel:
    middle = (3.333, 2.333, 1.667, 1.333, 1.0, 0.667, 0.333, 0.0, -0.333, -0.667, -1.0, -1.333, -1.667, -2.0, -2.333)
    lower = (-2.667, -3.0, -3.333, -3.667, -4.0, -4.667, -5.333, -6.148, -7.254, -8.843, -11.31, -15.639, -25.0)
    return SensorModel(
        "vlp32c",
        (15.0, 10.333, 7.0, 4.667, *middle, *lower),
        columns=1800,
        max_range_m=120.0,
        beam_azimuths_deg=(1.4, -1.4, 4.2, -1.4) * 8,
        range_noise_m=0.012,
        range_step_m=0.004,
        reach_m=90.0,
    )


def _ouster(name: str, beams: int) -> SensorModel:
    return SensorModel(
        name,
        _spread(21.5, -21.5, beams),
        columns=1024,
        max_range_m=100.0,
        beam_azimuths_deg=(3.1, 1.05, -1.05, -3.1) * (beams // 4),
        min_range_m=0.5,
        range_step_m=0.001,
        reach_m=75.0,
        ring_from_bottom=False,
    )


SENSORS: dict[str, SensorModel] = {
    sensor.name: sensor
    for sensor in (
        _hdl64e(),
        SensorModel("hdl32e", _spread(10.67, -30.67, 32), 2169, 80.0, mount_height_m=1.9, range_noise_m=0.012),
        SensorModel("vlp16", _spread(15.0, -15.0, 16), 1808, 100.0, mount_height_m=1.8, range_noise_m=0.012),
        _vlp32c(),
        _ouster("ouster_os1_64", 64),
        _ouster("ouster_os1_128", 128),
    )
}
"""Presets by name."""


def sensor_named(name: str) -> SensorModel:
    """Get a preset by name.

    Raises:
        UserError: There is no such preset; the message lists all.
    """
    try:
        return SENSORS[name]
    except KeyError:
        raise UserError(f"no sensor '{name}' (sensors: {', '.join(SENSORS)})") from None


def describe(sensor: SensorModel) -> dict[str, Any]:
    """Describe a sensor in plain JSON types."""
    return {
        "name": sensor.name,
        "beams": sensor.beams,
        "columns": sensor.columns,
        "elevation_deg": [max(sensor.elevations_deg), min(sensor.elevations_deg)],
        "max_range_m": sensor.max_range_m,
        "mount_height_m": sensor.mount_height_m,
        "rate_hz": sensor.rate_hz,
    }
