"""The simulator: a street, a sensor and a drive in; labelled sweeps out.

A sweep is made as the sensor makes it: rays leave the turning head of a car in motion, meet the street and what moves
in it, and come back, or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.actors import Actor, actors_at, gathered, lanes_of
from sqsegv3_ros.simulation.drive import Drive, matrix, rotations
from sqsegv3_ros.simulation.ground import TILE_M, Plan, SideStreet, height, steepest, to_world
from sqsegv3_ros.simulation.plans import ego_lane, lane_middle
from sqsegv3_ros.simulation.raycast import View, World
from sqsegv3_ros.simulation.returns import beam_response, measured
from sqsegv3_ros.simulation.sensors import SensorModel, firing_azimuths
from sqsegv3_ros.simulation.street import Street

SCANS_PER_STREET = 4
WINDOW_M = 60.0  # one world serves so much of the way
SIDE_M = 24.0  # and so much to either side of the street's middle
_SPEED_MPS = {"city": 8.0, "dense": 6.0, "country": 14.0, "highway": 24.0}


@dataclass(frozen=True)
class Sweep:
    """One turn of the sensor, its N returns in the order in which they were fired.

    points: (N, 4) float32 x, y, z (m, sensor frame), remission. labels: (N,) uint32, raw SemanticKITTI id and, in the
    upper 16 bits, the instance. rings: (N,) uint16, counted as the sensor's driver does. pose: (4, 4) float64,
    sensor to world, at stamp_s, the middle of the turn.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint32]
    rings: npt.NDArray[np.uint16]
    pose: npt.NDArray[np.float64]
    stamp_s: float


class Simulator:
    """A sensor on a car that drives a street."""

    def __init__(
        self, street: Street, sensor: SensorModel, drive: Drive, seed: tuple[int, ...], compensated: bool
    ) -> None:
        self.street, self.sensor, self.drive, self.seed = street, sensor, drive, seed
        self.compensated = compensated
        self.sight_m = sensor.max_range_m + 5.0
        self.lanes = lanes_of(street.plan, street.seed, drive.speed_mps)
        self._response = beam_response(sensor, np.random.default_rng([*street.seed, 7])).tiled(sensor.columns)
        self._blind = sensor.blind()
        self._aim, self._leave = _rays(sensor)
        self._world: tuple[int, World] | None = None

    def world_about(self, u: float) -> World:
        """The street in sight of u. It is kept as long as it reaches far enough."""
        window = int(np.floor(u / WINDOW_M))
        if self._world is None or self._world[0] != window:
            self._world = None  # let the old one go before the new one is built
            low, high = window * WINDOW_M, (window + 1) * WINDOW_M
            first, last = (int(np.floor(end / TILE_M)) for end in (low - self.sight_m, high + self.sight_m))
            way = np.linspace(low, high, 21)
            x, y = to_world(self.street.plan, way, np.zeros(21))
            view = View(
                center=(float(x[10]), float(y[10])),
                span_m=float(np.hypot(x - x[10], y - y[10]).max()) + SIDE_M,
                reach_m=self.sensor.max_range_m + 2.0,
                top_m=float(height(self.street.plan, way, np.zeros(21)).max()) + self.sensor.mount_height_m + 0.6,
                rise=float(np.tan(np.radians(max(self.sensor.elevations_deg)))) + steepest(self.street.plan),
            )
            world = World(self.street.plan, [self.street.tile(number) for number in range(first, last + 1)], view)
            self._world = window, world
        return self._world[1]

    def sweep(self, number: int, stamp: float | None = None, traffic_s: float = 0.0) -> Sweep:
        """The sweep of that number. stamp: the time of its middle, number / rate where not given; the traffic is
        traffic_s ahead."""
        sensor, drive = self.sensor, self.drive
        stamp = number / sensor.rate_hz if stamp is None else stamp
        rng = np.random.default_rng([*self.seed, 8, number])
        fired = stamp + ((np.arange(sensor.columns) + 0.5) / sensor.columns - 0.5) / sensor.rate_hz
        poses = drive.pose(fired)
        turned = rotations(poses)
        aim, leave = self._aim, self._leave
        to_world_axes = turned.transpose(0, 2, 1)
        directions = (aim @ to_world_axes).reshape(-1, 3).astype(np.float32)
        origins = (leave @ to_world_axes + poses[:, None, :3]).reshape(-1, 3).astype(np.float32)
        place_u, place_v = drive.place(stamp)
        ego = float(place_u), float(place_v)
        world = self.world_about(ego[0])
        actors = actors_at(self.street.plan, self.street.seed, self.lanes, stamp + traffic_s, ego, self.sight_m)
        moving = gathered(self.street.plan, actors, self._looked_at(actors, drive.pose(np.array([stamp]))[0]))
        hits = world.cast(origins, directions, moving, sensor.max_range_m + 2.0, rng)
        reported, distance, remission = measured(hits, self._response, sensor, rng)
        kept = np.flatnonzero(reported & ~self._blind.ravel())
        column, ring = np.divmod(kept, sensor.beams)
        pose = matrix(drive.pose(np.array([stamp]))[0])
        if self.compensated:
            world_points = origins[kept] + directions[kept] * distance[kept, None]
            xyz = (world_points - pose[:3, 3]) @ pose[:3, :3]
        else:
            xyz = leave[column, ring] + aim[column, ring] * distance[kept, None]
        points = np.concatenate([xyz, remission[kept, None]], axis=1).astype(np.float32)
        labels = hits.label[kept] + hits.instance[kept].astype(np.uint32) * np.uint32(1 << 16)
        number_of_ring = sensor.beams - 1 - ring if sensor.ring_from_bottom else ring
        return Sweep(points, labels, number_of_ring.astype(np.uint16), pose, stamp)

    def _looked_at(self, actors: list[Actor], pose: npt.NDArray[np.float64]) -> list[float]:
        """Seconds from the sweep's middle at which the head looks at each actor."""
        times = []
        for actor in actors:
            x, y = to_world(self.street.plan, np.array(actor.u), np.array(actor.v))
            bearing = np.arctan2(y - pose[1], x - pose[0]) - pose[3]
            times.append(float(-np.angle(np.exp(1j * bearing)) / (2 * np.pi * self.sensor.rate_hz)))
        return times


def _rays(sensor: SensorModel) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The sensor's rays in its own frame, by firing and beam: unit directions and origins, each (columns, beams, 3)."""
    azimuth = firing_azimuths(sensor)[:, None] + np.radians(sensor.per_beam(sensor.beam_azimuths_deg))
    elevation = np.broadcast_to(np.radians(sensor.per_beam(sensor.elevations_deg)), azimuth.shape)
    flat = np.cos(elevation)
    aim = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1)
    leave = np.zeros_like(aim)
    leave[..., 2] = sensor.per_beam(sensor.heights_m)
    return aim, leave


def street_drive(street: Street, sensor: SensorModel, seed: tuple[int, ...]) -> Drive:
    """A car that drives the street from u = 0 at the pace of its kind."""
    rng = np.random.default_rng([*seed, 9])
    speed = _SPEED_MPS[street.plan.kind] * float(rng.uniform(0.7, 1.15))
    return Drive(street.plan, 0.0, speed, ego_lane(street.plan), sensor.mount_height_m, sway=int(rng.integers(1000)))


def scene_drive(street: Street, sensor: SensorModel, seed: tuple[int, ...], number: int) -> Drive:
    """Somewhere on the street, for one scan on its own: either way along it, at or in a side street, sometimes
    turning."""
    rng = np.random.default_rng([*seed, 10, number])
    plan = street.plan
    apart = WINDOW_M / SCANS_PER_STREET
    u = apart * (number + float(rng.uniform(0, 1)))
    near = [s for s in plan.crossings if 0 < s.u < WINDOW_M]
    if near and rng.random() < 0.4:
        chosen = near[int(rng.integers(len(near)))]
        if rng.random() < 0.4:
            aside = _side_street_drive(plan, chosen, sensor, rng)
            if 0 < aside.u_m < WINDOW_M:
                return aside
        u = float(np.clip(chosen.u + rng.normal(0, 5), 0, WINDOW_M - 0.1))
    toward = 1 if rng.random() < 0.5 else -1
    lane = lane_middle(plan, toward)
    lane = ego_lane(plan) if lane is None else lane
    speed = _SPEED_MPS[plan.kind] * float(rng.uniform(0.0, 1.2))
    turn = float(rng.normal(0, 0.03)) if rng.random() < 0.8 else float(rng.normal(0, 0.5))
    v = lane + float(rng.normal(0, 0.25))
    return Drive(plan, u, toward * max(speed, 0.01), v, sensor.mount_height_m, turn, int(rng.integers(1000)))


def _side_street_drive(plan: Plan, chosen: SideStreet, sensor: SensorModel, rng: np.random.Generator) -> Drive:
    """A car that stands in a side street, looking to the main street or away from it."""
    side = chosen.side or int(rng.choice([-1, 1]))
    v = side * float(rng.uniform(plan.half_width + plan.sidewalk(side), SIDE_M))
    away = int(rng.choice([-1, 1])) * side  # along +v or -v
    turn = away * np.pi / 2 - float(np.arctan(chosen.skew)) + float(rng.normal(0, 0.05))
    u = float(chosen.middle(v)) + away * 0.15 * chosen.half_width  # a little to the right
    return Drive(plan, u, 0.01, v, sensor.mount_height_m, turn, int(rng.integers(1000)))
