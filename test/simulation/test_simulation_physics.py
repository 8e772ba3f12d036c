# SPDX-License-Identifier: Apache-2.0
"""The simulated sensor against geometry computed by hand and against the statistics of its settings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra 'simulate'")

from sqsegv3_ros.simulation import materials
from sqsegv3_ros.simulation.drive import Drive, pose_matrix, rotation_matrices
from sqsegv3_ros.simulation.ground import KEEP, Plan, SideStreet, edge_distance, height, surface_at, to_world
from sqsegv3_ros.simulation.meshes import EMPTY, box, quad
from sqsegv3_ros.simulation.raycast import Hits, View, World
from sqsegv3_ros.simulation.returns import BeamResponse, beam_response, simulate_returns
from sqsegv3_ros.simulation.sensors import SENSORS, SensorModel, firing_azimuths
from sqsegv3_ros.simulation.simulator import Simulator
from sqsegv3_ros.simulation.street import Street
from sqsegv3_ros.simulation.tiles import TileBuilder

EVERYWHERE = View(center=(0.0, 0.0), span_m=0.0, reach_m=1000.0, top_m=1000.0, rise=0.0)
FLAT = Plan(
    kind="city", half_width=4.0, sidewalks=(2.0, 3.0), kerb=0.0, median=0.0, lanes=1, ditch=0.0, hill=(0.0, 100.0, 0.0),
    slope=(0.0, 0.0, 10.0, 100.0), bend=(0.0, 100.0, 0.0), bump=0.0, tone=(1.0,) * 7, length=(-150.0, 150.0),
)  # fmt: skip


def flat_world(*meshes, plan=FLAT):
    """The flat street with meshes at u = 25 (u = 0 is at x = 150)."""
    builder = TileBuilder(plan, 0)
    for mesh in meshes:
        builder.add(mesh, 25.0, 0.0, 0.0)
    tile = builder.build()
    others = [TileBuilder(plan, number).build() for number in (-1, 1)]
    return World(plan, [others[0], tile, others[1]], EVERYWHERE)


def directions(azimuth, elevation):
    return np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    ).astype(np.float32)


def test_rays_hit_a_flat_street_at_the_computed_range_and_get_its_surface():
    elevation = np.radians(np.repeat(np.linspace(-25, -4, 22), 90))
    azimuth = np.tile(np.linspace(-np.pi, np.pi, 90, endpoint=False) + 0.01, 22)
    ray = directions(azimuth, elevation)
    start = np.tile(np.array([175.0, 0.0, 1.73], dtype=np.float32), (len(ray), 1))
    hits = flat_world().cast(start, ray, EMPTY, 200.0, np.random.default_rng(0))
    camber = 0.08  # largest height of the crown of the road
    expected = 1.73 / -np.sin(elevation)
    assert np.all(hits.range < expected + 1e-3)
    assert np.all(hits.range > expected - camber / -np.sin(elevation) - 1e-3)
    v = start[:, 1] + ray[:, 1] * hits.range
    u = ray[:, 0] * hits.range  # distance along the street from the sensor
    near = np.abs(u) < 20.0
    road, left, right = np.abs(v) < 3.95, (v > 4.05) & (v < 5.95), (v < -4.05) & (v > -6.95)
    assert set(hits.label[near & road]) == {40, 60}
    assert set(hits.label[near & (left | right)]) == {48}
    assert set(hits.label[near & (np.abs(v) > 7.1)]) == {72}


def test_a_ray_stops_at_the_first_of_two_boxes_with_the_cosine_of_its_face():
    far = box((10, 11), (-5, 5), (0, 4), 50, materials.WALL, 0.4)
    near = box((5, 6), (-5, 5), (0, 4), 10, materials.PAINT, 0.2)
    azimuth = np.array([0.0, 0.5, -0.6])
    ray = directions(azimuth, np.zeros(3))
    start = np.tile(np.array([175.0, 0.0, 1.5], dtype=np.float32), (3, 1))
    hits = flat_world(far, near).cast(start, ray, EMPTY, 100.0, np.random.default_rng(0))
    np.testing.assert_allclose(hits.range, 5 / np.cos(azimuth), rtol=1e-5)
    np.testing.assert_allclose(hits.cosine, np.cos(azimuth), rtol=1e-5)
    assert list(hits.label) == [10, 10, 10]
    assert np.all(hits.instance == hits.instance[0]) and hits.instance[0] > 0


def test_a_wire_fence_passes_the_share_of_rays_of_its_material_to_the_wall_behind():
    wire = quad([(5, -20, 0), (5, 20, 0), (5, 20, 9), (5, -20, 9)], 51, materials.MESH, 0.3)
    wall = quad([(8, -40, 0), (8, 40, 0), (8, 40, 20), (8, -40, 20)], 50, materials.WALL, 0.3)
    rng = np.random.default_rng(1)
    count = 20000
    ray = directions(rng.uniform(-1, 1, count), rng.uniform(0.05, 0.3, count))
    start = np.tile(np.array([175.0, 0.0, 1.5], dtype=np.float32), (count, 1))
    hits = flat_world(wire, wall).cast(start, ray, EMPTY, 100.0, rng)
    opacity = materials.MATERIALS[materials.MESH].opacity
    assert abs((hits.label == 51).mean() - opacity) < 4 * np.sqrt(opacity * (1 - opacity) / count)
    assert set(hits.label) == {50, 51}
    np.testing.assert_allclose(hits.range[hits.label == 50], (8 / ray[:, 0])[hits.label == 50], rtol=1e-4)


def test_objects_beyond_the_reach_change_nothing_not_even_random_numbers():
    wire = quad([(5, -20, 0), (5, 20, 0), (5, 20, 9), (5, -20, 9)], 51, materials.MESH, 0.3)
    beyond = quad([(60, -90, 0), (60, 90, 0), (60, 90, 20), (60, -90, 20)], 70, materials.LEAF, 0.3)
    rng = np.random.default_rng(2)
    ray = directions(rng.uniform(-3, 3, 5000), rng.uniform(-0.3, 0.3, 5000))
    start = np.tile(np.array([175.0, 0.0, 1.5], dtype=np.float32), (5000, 1))
    one = flat_world(wire).cast(start, ray, EMPTY, 50.0, np.random.default_rng(3))
    two = flat_world(wire, beyond).cast(start, ray, EMPTY, 50.0, np.random.default_rng(3))
    for field in dataclasses.fields(Hits):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def test_culling_changes_no_hit():
    street = Street("city", (5, 0))
    tiles = [street.tile(number) for number in range(-2, 3)]
    x, y = (float(c) for c in to_world(street.plan, np.array(30.0), np.array(0.0)))
    z = float(height(street.plan, np.array([30.0]), np.array([0.0]))[0]) + 1.73
    view = View(center=(x, y), span_m=1.0, reach_m=82.0, top_m=z + 0.1, rise=float(np.tan(np.radians(2.1))))
    rng = np.random.default_rng(0)
    ray = directions(rng.uniform(-np.pi, np.pi, 20000), np.radians(rng.uniform(-25, 2, 20000)))
    start = np.tile(np.array([x, y, z], dtype=np.float32), (20000, 1))
    whole, culled = World(street.plan, tiles, EVERYWHERE), World(street.plan, tiles, view)
    assert len(culled.mesh.faces) < 0.8 * len(whole.mesh.faces)
    one, two = (world.cast(start, ray, EMPTY, 82.0, np.random.default_rng(3)) for world in (whole, culled))
    np.testing.assert_array_equal(one.label, two.label)
    np.testing.assert_array_equal(one.range, two.range)


def test_two_roads_join_with_rounded_corners_and_keep_their_widths():
    plan = dataclasses.replace(FLAT, crossings=(SideStreet(25.0, 3.0, 2.0, 0.0, 0, 5.0),))
    far = edge_distance(plan, np.array([25.0 + 3.0, 25.0 - 3.0]), np.array([40.0, -40.0]))[0]
    np.testing.assert_allclose(far, 0.0, atol=1e-9)
    corner = edge_distance(plan, np.array([25.0 + 3.0]), np.array([4.0]))[0]
    # the corner of a square crossing is inside the arc of radius 5: sqrt(2) * 5 - 5 from it
    np.testing.assert_allclose(corner, -(np.sqrt(2) - 1) * 5, atol=1e-9)
    nothing = np.full(1, KEEP, dtype=np.uint8)
    assert surface_at(plan, np.array([25.0]), np.array([20.0]), nothing)[0] == 0  # road


def test_a_bend_keeps_distances_along_and_across_the_street():
    plan = dataclasses.replace(FLAT, bend=(1 / 200, 300.0, 0.4))
    u = np.linspace(-100, 100, 201)
    x, y = to_world(plan, u, np.zeros(201))
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), 1.0, atol=1e-3)
    left, right = to_world(plan, u, np.full(201, 3.0)), to_world(plan, u, np.full(201, -3.0))
    np.testing.assert_allclose(np.hypot(left[0] - right[0], left[1] - right[1]), 6.0, atol=1e-9)


def _hits(count, distance, cosine, material, albedo):
    return Hits(
        np.full(count, distance, np.float32), np.full(count, cosine, np.float32), np.full(count, material, np.uint8),
        np.full(count, albedo, np.float32), np.full(count, 50, np.uint16), np.zeros(count, np.uint16),
    )  # fmt: skip


def _even(count):
    return BeamResponse(np.ones(count, np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32))


def test_range_noise_has_the_spread_of_the_sensor_and_no_bias():
    sensor = SensorModel("test", (0.0,), 10, 80.0, range_noise_m=0.02, range_step_m=0.0001)
    _, distance, _ = simulate_returns(
        _hits(40000, 10.0, 1.0, materials.RETRO, 0.5), _even(40000), sensor, np.random.default_rng(0)
    )
    roughness = materials.MATERIALS[materials.RETRO].roughness_m
    expected = np.hypot(0.02, roughness * np.exp(0.25))  # E[exp(0.5 n)^2] = exp(0.5)
    assert abs(distance.mean() - 10.0) < 0.001
    assert abs(distance.std() / expected - 1) < 0.05


def test_dark_slanted_and_distant_surfaces_return_less_often_and_darker():
    sensor = SENSORS["hdl64e"]

    def response(distance, cosine, albedo):
        hits = _hits(20000, distance, cosine, materials.WALL, albedo)
        reported, _, remission = simulate_returns(hits, _even(20000), sensor, np.random.default_rng(0))
        return reported.mean(), remission[reported].mean()

    base = response(30.0, 0.9, 0.4)
    assert base[0] > 0.95
    for worse in ((75.0, 0.9, 0.4), (30.0, 0.13, 0.4), (30.0, 0.9, 0.05)):
        share, brightness = response(*worse)
        assert share <= base[0] and brightness < 0.95 * base[1]
    assert response(79.0, 0.13, 0.05)[0] < 0.5


def test_glass_mostly_gives_no_return_and_remission_is_kept_in_kittis_range():
    sensor = SENSORS["hdl64e"]
    glass = simulate_returns(
        _hits(5000, 10.0, 0.7, materials.GLASS, 0.1), _even(5000), sensor, np.random.default_rng(0)
    )
    wall = simulate_returns(_hits(5000, 10.0, 0.7, materials.WALL, 0.4), _even(5000), sensor, np.random.default_rng(0))
    assert glass[0].mean() < 0.7 < 0.95 < wall[0].mean()
    bright = simulate_returns(
        _hits(5000, 10.0, 1.0, materials.RETRO, 5.0), _even(5000), sensor, np.random.default_rng(0)
    )
    assert bright[2].max() <= 0.99
    np.testing.assert_allclose(bright[2] * 100, np.round(bright[2] * 100), atol=1e-4)


def test_a_glossy_surface_returns_most_at_a_perpendicular_hit():
    sensor = SENSORS["hdl64e"]
    straight, slanting = (
        simulate_returns(_hits(5000, 12.0, c, materials.PAINT, 0.3), _even(5000), sensor, np.random.default_rng(0))[
            2
        ].mean()
        for c in (1.0, 0.6)
    )
    assert straight > 3 * slanting


def test_units_of_a_sensor_differ_but_the_same_seed_gives_the_same_unit():
    sensor = SENSORS["hdl64e"]
    one, same, other = (beam_response(sensor, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.gain, same.gain)
    assert not np.array_equal(one.gain, other.gain)


@pytest.fixture(scope="module")
def highway():
    return Street("highway", (3, 0))


def _simulator(street, sensor, speed, compensated):
    drive = Drive(street.plan, 10.0, speed, -8.0, sensor.mount_height_m)
    return Simulator(street, sensor, drive, (3, 0), compensated)


def test_motion_compensation_moves_each_point_by_the_motion_since_the_middle_of_the_sweep(highway):
    sensor = dataclasses.replace(SENSORS["vlp16"], columns=360)
    raw, compensated = (_simulator(highway, sensor, 25.0, c).sweep(0) for c in (False, True))
    assert len(raw.points) == len(compensated.points) > 1000
    azimuth = np.arctan2(raw.points[:, 1], raw.points[:, 0])
    seconds = (np.pi - azimuth) / (2 * np.pi) / sensor.rate_hz - 0.5 / sensor.rate_hz
    moved = compensated.points[:, 0] - raw.points[:, 0]
    near = np.linalg.norm(raw.points[:, :3], axis=1) < 10.0  # small rotations of the body move far points too
    speed = np.polyfit(seconds[near], moved[near], 1)[0]
    assert abs(speed - 25.0 * (1 + 0.9 * 0.21)) < 1.5  # the drive's speed at time 0


def test_rays_of_a_sweep_are_fired_clockwise_from_the_rear_and_rings_are_counted_from_the_bottom(highway):
    sensor = dataclasses.replace(SENSORS["hdl32e"], columns=500)
    sweep = _simulator(highway, sensor, 0.001, False).sweep(0)
    azimuth = np.arctan2(sweep.points[:, 1], sweep.points[:, 0])
    turned = np.mod(np.pi - azimuth, 2 * np.pi)
    turned[(turned > 6.2) & (np.arange(len(turned)) < 100)] -= 2 * np.pi
    assert np.all(np.diff(turned) > -0.002)
    elevation = np.degrees(np.arcsin(sweep.points[:, 2] / np.linalg.norm(sweep.points[:, :3], axis=1)))
    low, high = (np.median(elevation[sweep.rings == ring]) for ring in (2, 25))
    assert abs(low - sensor.elevations_deg[-3]) < 0.05 and abs(high - sensor.elevations_deg[-26]) < 0.05


def test_nothing_is_returned_from_the_vehicle_itself(highway):
    sensor = SENSORS["hdl64e"]
    blind = sensor.blind()
    assert 0.04 < blind.mean() < 0.12
    assert not blind[:, :32].any()  # the upper block points over the roof
    sweep = _simulator(highway, sensor, 0.001, False).sweep(0)
    azimuth = np.degrees(np.arctan2(sweep.points[:, 1], sweep.points[:, 0]))
    beam = sensor.beams - 1 - sweep.rings.astype(int)
    behind = np.abs(np.abs(azimuth) - 180) < 15
    assert behind.sum() > 3000
    assert not (behind & (beam >= 60)).any()


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_every_preset_gives_a_scan_within_its_limits(highway, name):
    sensor = dataclasses.replace(SENSORS[name], columns=200)
    sweep = _simulator(highway, sensor, 20.0, False).sweep(0)
    distance = np.linalg.norm(sweep.points[:, :3].astype(np.float64), axis=1)
    assert len(sweep.points) > 0.2 * sensor.columns * sensor.beams
    assert distance.max() < sensor.max_range_m + 0.3 and distance.min() > sensor.min_range_m - 0.3
    assert sweep.rings.max() < sensor.beams
    assert np.isfinite(sweep.points).all()
    assert sweep.points[:, 3].min() >= 0 and sweep.points[:, 3].max() <= 0.99


def test_firing_azimuths_cover_one_revolution_and_point_forward_in_the_middle():
    sensor = dataclasses.replace(SENSORS["hdl64e"], azimuth_step_deg=0.0)
    azimuth = firing_azimuths(sensor)
    step = 2 * np.pi / sensor.columns
    np.testing.assert_allclose(np.diff(azimuth), -step)
    assert abs(azimuth[sensor.columns // 2]) < step


def test_a_pose_rotates_in_the_order_roll_pitch_yaw():
    def about(axis, angle):
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        return turn

    pose = np.array([1.0, 2.0, 3.0, 0.7, -0.2, 0.1])
    expected = about("z", 0.7) @ about("y", -0.2) @ about("x", 0.1)
    np.testing.assert_allclose(rotation_matrices(pose[None])[0], expected, atol=1e-12)
    np.testing.assert_allclose(pose_matrix(pose)[:3, 3], [1, 2, 3])


def test_an_empty_world_returns_nothing():
    tile = TileBuilder(FLAT, 0).build()
    assert len(tile.objects.faces) == len(EMPTY.faces) == 0
    up = np.array([[0.0, 0.0, 1.0]], dtype=np.float32)
    hits = World(FLAT, [tile], EVERYWHERE).cast(
        np.array([[175.0, 0, 2]], dtype=np.float32), up, EMPTY, 80.0, np.random.default_rng(0)
    )
    assert np.isinf(hits.range[0]) and hits.label[0] == 0
