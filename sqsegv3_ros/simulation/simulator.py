# SPDX-License-Identifier: Apache-2.0
"""Simulation of labelled sweeps: a LiDAR on a vehicle that drives along a street.

Rays leave the rotating head of the moving sensor, hit the street and the traffic, and return or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.actors import Actor, actors_at, traffic_lanes
from sqsegv3_ros.simulation.drive import Drive, pose_matrix, rotation_matrices
from sqsegv3_ros.simulation.ground import TILE_M, Plan, SideStreet, height, steepest, to_world
from sqsegv3_ros.simulation.meshes import Mesh
from sqsegv3_ros.simulation.plans import ego_lane_center, lane_center
from sqsegv3_ros.simulation.raycast import View, World
from sqsegv3_ros.simulation.returns import beam_response, simulate_returns
from sqsegv3_ros.simulation.sensors import SensorModel, firing_azimuths
from sqsegv3_ros.simulation.street import Street
from sqsegv3_ros.simulation.tiles import place_meshes

SCANS_PER_STREET = 4
WINDOW_M = 60.0  # length of the drive that one world covers
SIDE_M = 24.0  # distance from the street's centre line that one world covers
_SPEED_MPS = {"city": 8.0, "dense": 6.0, "country": 14.0, "highway": 24.0}


@dataclass(frozen=True)
class Sweep:
    """One revolution of the sensor, its N returns in firing order.

    Attributes:
        points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
        labels: (N,) uint32 raw SemanticKITTI id; the instance in the upper 16 bits.
        rings: (N,) uint16, numbered as the sensor's driver does.
        pose: (4, 4) float64 transform from the sensor to the world at stamp_s.
        stamp_s: Middle of the revolution, seconds.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint32]
    rings: npt.NDArray[np.uint16]
    pose: npt.NDArray[np.float64]
    stamp_s: float


class Simulator:
    """A sensor on a vehicle that drives along a street.

    Args:
        street: The street.
        sensor: The sensor.
        drive: Motion of the vehicle.
        seed: Seed of the measurement noise.
        compensated: Transform every point to the sensor frame at the middle of the sweep.
    """

    def __init__(
        self, street: Street, sensor: SensorModel, drive: Drive, seed: tuple[int, ...], compensated: bool
    ) -> None:
        self.street, self.sensor, self.drive, self.seed = street, sensor, drive, seed
        self.compensated = compensated
        self.sight_m = sensor.max_range_m + 5.0
        self.lanes = traffic_lanes(street.plan, street.seed, drive.speed_mps)
        self._response = beam_response(sensor, np.random.default_rng([*street.seed, 7]))
        self._blind = sensor.blind()
        self._directions, self._origins = _sensor_rays(sensor)
        self._world: tuple[int, World] | None = None

    def world_around(self, u: float) -> World:
        """Build the part of the street in sight of u; the last one is kept while it covers u."""
        window = int(np.floor(u / WINDOW_M))
        if self._world is None or self._world[0] != window:
            self._world = None  # release the old world before the new one is built
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
        """Simulate a sweep.

        Args:
            number: Number of the sweep; seeds its noise.
            stamp: Time of its middle in seconds; number / rate if None.
            traffic_s: Time by which the traffic is ahead of `stamp`.
        """
        sensor, drive = self.sensor, self.drive
        stamp = number / sensor.rate_hz if stamp is None else stamp
        rng = np.random.default_rng([*self.seed, 8, number])
        fired = stamp + ((np.arange(sensor.columns) + 0.5) / sensor.columns - 0.5) / sensor.rate_hz
        poses = drive.pose(fired)
        rotation = rotation_matrices(poses)
        sensor_directions, sensor_origins = self._directions, self._origins
        to_world_axes = rotation.transpose(0, 2, 1)
        directions = (sensor_directions @ to_world_axes).reshape(-1, 3).astype(np.float32)
        origins = (sensor_origins @ to_world_axes + poses[:, None, :3]).reshape(-1, 3).astype(np.float32)
        place_u, place_v = drive.place(stamp)
        ego = float(place_u), float(place_v)
        world = self.world_around(ego[0])
        actors = actors_at(self.street.plan, self.street.seed, self.lanes, stamp + traffic_s, ego, self.sight_m)
        pose = drive.pose(np.array([stamp]))[0]
        moving = self._place_actors(actors, pose)
        hits = world.cast(origins, directions, moving, sensor.max_range_m + 2.0, rng)
        reported, distance, remission = simulate_returns(hits, self._response, sensor, rng)
        kept = np.flatnonzero(reported & ~self._blind.ravel())
        column, ring = np.divmod(kept, sensor.beams)
        transform = pose_matrix(pose)
        if self.compensated:
            world_points = origins[kept] + directions[kept] * distance[kept, None]
            xyz = (world_points - transform[:3, 3]) @ transform[:3, :3]
        else:
            xyz = sensor_origins[column, ring] + sensor_directions[column, ring] * distance[kept, None]
        points = np.concatenate([xyz, remission[kept, None]], axis=1).astype(np.float32)
        labels = hits.label[kept] + hits.instance[kept].astype(np.uint32) * np.uint32(1 << 16)
        ring_number = sensor.beams - 1 - ring if sensor.ring_from_bottom else ring
        return Sweep(points, labels, ring_number.astype(np.uint16), transform, stamp)

    def _place_actors(self, actors: list[Actor], pose: npt.NDArray[np.float64]) -> Mesh:
        """Merge actors into one mesh in world coordinates, each at the time at which the head points at it."""
        plan = self.street.plan
        u, v, yaw, speed = np.array([(a.u, a.v, a.yaw, a.speed) for a in actors]).reshape(-1, 4).T
        x, y = to_world(plan, u, v)
        bearing = np.arctan2(y - pose[1], x - pose[0]) - pose[3]
        delay = -np.angle(np.exp(1j * bearing)) / (2 * np.pi * self.sensor.rate_hz)  # from the middle of the sweep
        return place_meshes(plan, [a.mesh for a in actors], np.stack([u + speed * delay, v, yaw], axis=1))


def _sensor_rays(sensor: SensorModel) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit directions and origins of the rays in the sensor frame, each (columns, beams, 3)."""
    azimuth = firing_azimuths(sensor)[:, None] + np.radians(sensor.per_beam(sensor.beam_azimuths_deg))
    elevation = np.broadcast_to(np.radians(sensor.per_beam(sensor.elevations_deg)), azimuth.shape)
    flat = np.cos(elevation)
    sensor_directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1)
    sensor_origins = np.zeros_like(sensor_directions)
    sensor_origins[..., 2] = sensor.per_beam(sensor.heights_m)
    return sensor_directions, sensor_origins


def street_drive(street: Street, sensor: SensorModel, seed: tuple[int, ...]) -> Drive:
    """Draw a drive along the street from u = 0 at a typical speed."""
    rng = np.random.default_rng([*seed, 9])
    plan, speed = street.plan, _SPEED_MPS[street.plan.kind] * rng.uniform(0.7, 1.15)
    return Drive(plan, 0.0, speed, ego_lane_center(plan), sensor.mount_height_m, sway=int(rng.integers(1000)))


def scene_drive(street: Street, sensor: SensorModel, seed: tuple[int, ...], number: int) -> Drive:
    """Draw a place and motion for one independent scan.

    In either direction of the street, at or in a side street, sometimes turning.
    """
    rng = np.random.default_rng([*seed, 10, number])
    plan = street.plan
    apart = WINDOW_M / SCANS_PER_STREET
    u = apart * (number + rng.uniform(0, 1))
    near = [s for s in plan.crossings if 0 < s.u < WINDOW_M]
    if near and rng.random() < 0.4:
        chosen = near[rng.integers(len(near))]
        if rng.random() < 0.4:
            aside = _side_street_drive(plan, chosen, sensor, rng)
            if 0 < aside.u_m < WINDOW_M:
                return aside
        u = float(np.clip(chosen.u + rng.normal(0, 5), 0, WINDOW_M - 0.1))
    toward = 1 if rng.random() < 0.5 else -1
    lane = lane_center(plan, toward)
    lane = ego_lane_center(plan) if lane is None else lane
    speed = _SPEED_MPS[plan.kind] * rng.uniform(0.0, 1.2)
    turn = rng.normal(0, 0.03) if rng.random() < 0.8 else rng.normal(0, 0.5)
    v = lane + rng.normal(0, 0.25)
    return Drive(plan, u, toward * max(speed, 0.01), v, sensor.mount_height_m, turn, int(rng.integers(1000)))


def _side_street_drive(plan: Plan, chosen: SideStreet, sensor: SensorModel, rng: np.random.Generator) -> Drive:
    """Draw a vehicle that stands in a side street, facing towards the main street or away from it."""
    side = chosen.side or rng.choice([-1, 1])
    v = side * rng.uniform(plan.half_width + plan.sidewalk(side), SIDE_M)
    away = rng.choice([-1, 1]) * side  # along +v or -v
    turn = away * np.pi / 2 - float(np.arctan(chosen.skew)) + rng.normal(0, 0.05)
    u = float(chosen.middle(v)) + away * 0.15 * chosen.half_width  # a little to the right
    return Drive(plan, u, 0.01, v, sensor.mount_height_m, turn, int(rng.integers(1000)))
