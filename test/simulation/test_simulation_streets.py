# SPDX-License-Identifier: Apache-2.0
"""Synthetic streets: valid meshes, plausible sizes, every class, no seams."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.simulation import buildings, furniture, gatherings, mesh_pools, people, plants, vehicles
from sqsegv3_ros.simulation.actors import actors_at, traffic_lanes
from sqsegv3_ros.simulation.frontage import frontages
from sqsegv3_ros.simulation.gatherings import add_gatherings
from sqsegv3_ros.simulation.ground import SURFACES, TILE_M, height, to_world
from sqsegv3_ros.simulation.materials import MATERIALS
from sqsegv3_ros.simulation.meshes import box, merge_meshes, tube, wheel
from sqsegv3_ros.simulation.plans import SCENES, ego_lane_center, lane_center, random_plan
from sqsegv3_ros.simulation.street import Street
from sqsegv3_ros.simulation.tiles import TileBuilder

SIZES = {  # length, width, height in metres: smallest and largest
    10: ((3.2, 5.8), (1.4, 2.2), (1.2, 2.6)),
    11: ((1.5, 2.0), (0.4, 0.8), (0.9, 1.2)),
    13: ((9.5, 14.0), (2.2, 3.0), (2.7, 3.5)),
    15: ((1.3, 2.4), (0.5, 0.9), (0.9, 1.3)),
    18: ((5.5, 10.8), (2.0, 2.8), (2.2, 4.1)),
    20: ((2.5, 8.0), (1.2, 3.2), (0.8, 3.4)),
    30: ((0.3, 1.3), (0.3, 0.9), (0.9, 2.1)),
    31: ((1.4, 2.0), (0.4, 0.9), (1.4, 2.1)),
    32: ((1.3, 2.4), (0.5, 1.1), (1.4, 2.0)),
}


def assert_valid(mesh):
    assert np.isfinite(mesh.vertices).all()
    assert mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)
    assert len({len(values) for values in (mesh.faces, mesh.label, mesh.material, mesh.albedo, mesh.instance)}) == 1
    assert mesh.material.max() < len(MATERIALS)
    assert mesh.albedo.min() >= 0
    assert set(mesh.label) <= set(SEMANTIC_KITTI.raw_to_label)


@pytest.mark.parametrize("label", sorted(SIZES))
def test_objects_have_plausible_sizes_and_stand_on_the_ground(label):
    rng = np.random.default_rng(label)
    for _ in range(60):
        mesh = mesh_pools.pick_object(label, rng)
        assert_valid(mesh)
        assert set(mesh.label) == {label}
        extent = mesh.vertices.max(axis=0) - mesh.vertices.min(axis=0)
        for value, (least, most) in zip(extent, SIZES[label], strict=True):
            assert least <= value <= most, (label, extent)
        assert -0.06 <= mesh.vertices[:, 2].min() <= 0.12
        assert abs(mesh.vertices[:, 1].max() + mesh.vertices[:, 1].min()) < 0.5  # centred


@pytest.mark.parametrize("name", sorted(mesh_pools._BUILDERS))
def test_every_pool_has_valid_meshes_that_reach_the_ground(name):
    rng = np.random.default_rng(0)
    for _ in range(30):
        mesh = mesh_pools.pick(name, rng)
        assert_valid(mesh)
        assert mesh.vertices[:, 2].min() < 0.4
        assert np.abs(mesh.vertices).max() < 60.0


@given(
    st.sampled_from(buildings.FENCE_KINDS + ("guard rail",)), st.floats(1.0, 4.0), st.floats(0.6, 2.2)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_fences_have_the_requested_length_and_height(kind, length, high):
    mesh = buildings.fence(kind, length, high, 0.3)
    assert_valid(mesh)
    assert set(mesh.label) == {51}
    assert abs(mesh.vertices[:, 0].max() - length) < 0.3
    if kind != "guard rail":
        assert abs(mesh.vertices[:, 2].max() - high) < 0.15


def test_boxes_wheels_and_tubes_have_the_computed_surface_area():
    def area(mesh):
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(np.float64), 1, 0)
        return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2

    assert abs(area(box((1, 3), (2, 5), (-1, 1), 50, 3, 0.3)) - 2 * (2 * 3 + 3 * 2 + 2 * 2)) < 1e-5
    decagon, side = 10 / 2 * 0.5**2 * np.sin(2 * np.pi / 10), 2 * 0.5 * np.sin(np.pi / 10)
    assert abs(area(wheel(0.0, 0.0, 0.5, 0.2, 10, 6, 0.1)) - (2 * decagon + 10 * side * 0.2)) < 1e-5
    octagon_side = 2 * 0.5 * np.sin(np.pi / 8)
    assert abs(area(tube((0, 0, 0), (0, 3, 4), 0.5, 80, 7, 0.3, sides=8)) - 8 * octagon_side * 5.0) < 1e-4


def test_merging_keeps_every_triangle_in_place():
    rng = np.random.default_rng(0)
    parts = [people.person(rng), vehicles.bicycle(), plants.bush(rng), furniture.lamp_post(rng)]
    whole = merge_meshes(parts)
    corners = np.concatenate([p.vertices[p.faces] for p in parts])
    np.testing.assert_array_equal(whole.vertices[whole.faces], corners)
    np.testing.assert_array_equal(whole.label, np.concatenate([p.label for p in parts]))


def test_a_dozen_streets_with_traffic_have_every_class():
    found = {row[0] for row in SURFACES}
    for number in range(12):
        street = Street(("city", "city", "country", "highway")[number % 4], (1, number))
        for tile in (0, 1):
            found |= set(street.tile(tile).objects.label.tolist())
            found |= {SURFACES[s][0] for s in np.unique(street.tile(tile).surfaces) if s < len(SURFACES)}
        lanes = traffic_lanes(street.plan, street.seed, 8.0)
        for time in (0.0, 40.0, 80.0):
            moving = actors_at(street.plan, street.seed, lanes, time, (25.0, ego_lane_center(street.plan)), 85.0)
            found |= {int(actor.mesh.label[0]) for actor in moving}
    classes = {SEMANTIC_KITTI.raw_to_label[raw] for raw in found}
    assert classes >= set(range(1, 20)), [SEMANTIC_KITTI.names[c] for c in set(range(1, 20)) - classes]


@pytest.mark.parametrize("scene", ["city", "country", "highway"])
def test_neighbouring_tiles_meet_without_a_seam(scene):
    street = Street(scene, (2, 7))
    one, two = street.tile(0), street.tile(1)
    end = np.isclose(one.ground_uv[:, 0], TILE_M)
    start = np.isclose(two.ground_uv[:, 0], TILE_M)
    np.testing.assert_array_equal(one.ground_uv[end], two.ground_uv[start])
    np.testing.assert_allclose(one.ground.vertices[end], two.ground.vertices[start], atol=1e-4)


def test_kerbs_rise_by_their_height_and_roads_fall_to_their_edges():
    plan = dataclasses.replace(
        random_plan("city", (0, 0), (-50, 50)),
        crossings=(),
        hill=(0.0, 100.0, 0.0),
        kerb=0.12,
        median=0.0,
        sidewalks=(2.0, 2.0),
    )
    w = plan.half_width
    road, edge, kerb = height(plan, np.zeros(3), np.array([0.0, w - 0.001, w + 0.06]))
    assert abs(kerb - edge - 0.12) < 0.005
    assert 0.02 < road - edge < 0.2


def test_objects_stand_on_the_ground_of_the_street():
    street = Street("country", (4, 1))
    builder = TileBuilder(street.plan, 0)
    rng = np.random.default_rng(0)
    spots = rng.uniform([5, -40], [45, 40], (30, 2))
    for u, v in spots:
        builder.add(box((-0.1, 0.1), (-0.1, 0.1), (0, 1), 80, 7, 0.3), float(u), float(v), 0.3)
    tile = builder.build()
    feet = tile.objects.vertices.reshape(30, 8, 3)[:, :, 2].min(axis=1)
    np.testing.assert_allclose(feet, height(street.plan, spots[:, 0], spots[:, 1]), atol=1e-3)


@pytest.mark.parametrize("scene", ["city", "country", "highway"])
def test_the_sensors_lane_is_free_of_stationary_objects(scene):
    for number in range(6):
        street = Street(scene, (8, number))
        plan = street.plan
        lane = ego_lane_center(plan)
        assert -plan.half_width < lane
        u = np.linspace(0, TILE_M, 51)
        x, y = to_world(plan, u, np.full(51, lane))
        mesh = street.tile(0).objects
        corners = mesh.vertices[np.unique(mesh.faces)]
        low = corners[corners[:, 2] < height(plan, u, np.full(51, lane)).mean() + 1.5]
        nearest = min(np.hypot(low[:, 0] - a, low[:, 1] - b).min() for a, b in zip(x, y, strict=True))
        assert nearest > 0.6, (scene, number)  # half the width of a narrow car, minus a twig


def test_traffic_keeps_right_and_moves_at_its_lanes_speed():
    plan = random_plan("country", (3, 3), (-100, 300))
    assert lane_center(plan, 1) < 0 < lane_center(plan, -1)
    lanes = traffic_lanes(plan, (3, 3), 10.0)
    before = actors_at(plan, (3, 3), lanes, 100.0, (50.0, -30.0), 80.0)
    after = actors_at(plan, (3, 3), lanes, 100.1, (50.0, -30.0), 80.0)
    later = {(int(a.mesh.instance[0]), round(a.v, 6)): a.u for a in after}
    pairs = [(a, later[key]) for a in before if (key := (int(a.mesh.instance[0]), round(a.v, 6))) in later]
    assert pairs
    for actor, u in pairs:
        assert abs(u - actor.u - 0.1 * actor.speed) < 1e-6
        assert (actor.speed > 0) == (actor.v < 0)
        assert int(actor.mesh.label[0]) >= 252  # a moving class


def test_no_vehicle_drives_through_the_sensor():
    plan = random_plan("city", (6, 1), (-100, 300))
    lanes = traffic_lanes(plan, (6, 1), 8.0)
    lane = ego_lane_center(plan)
    for time in np.arange(0.0, 60.0, 1.7):
        ego = 8.0 * float(time)
        for actor in actors_at(plan, (6, 1), lanes, float(time), (ego, lane), 80.0):
            x, y = actor.mesh.vertices[:, 0] + actor.u - ego, actor.mesh.vertices[:, 1] + actor.v - lane
            assert np.hypot(x, y).min() > 0.3


def test_a_street_keeps_only_a_few_tiles():
    street = Street("highway", (0, 0), (0.0, 2000.0))
    for number in range(30):
        street.tile(number)
    assert street.tile.cache_info().currsize <= 8


def test_every_kind_of_scene_can_be_drawn_and_others_are_refused():
    for scene in SCENES:
        assert random_plan(scene, (1, 2), (0, 100)).kind in ("city", "dense", "country", "highway")
    with pytest.raises(UserError, match=r"no scene .moon.*city, highway, country, mixed"):
        random_plan("moon", (0,), (0, 100))


def straight_frontage():
    """A builder and the left frontage of a straight street: y grows away from the road."""
    straight = {"bend": (0.0, 100.0, 0.0), "crossings": (), "sidewalks": (3.0, 3.0)}
    plan = dataclasses.replace(random_plan("city", (0, 0), (-50, 50)), **straight)
    builder = TileBuilder(plan, 0)
    return builder, next(front for front in frontages(plan, builder) if front.v > 0)


def test_people_gather_beside_the_road():
    labels: set[int] = set()
    lively = 0
    for seed in range(40):
        builder, front = straight_frontage()
        add_gatherings(front, np.random.default_rng(seed))
        objects = builder.build().objects
        if not len(objects.faces):
            continue
        lively += 1
        labels |= set(objects.label.tolist())
        assert objects.vertices[:, 1].min() > front.v - front.walk - 1.5  # a bicycle in a rack may stand over the kerb
    assert 10 < lively < 40  # some stretches are quiet
    assert labels >= {30, 11, 51, 70, 99}  # people, bicycles; fences, plants, planters and tables


def test_people_in_gardens_stand_behind_a_low_screen():
    for seed in range(20):
        builder, front = straight_frontage()
        gatherings._garden(front, 10.0, np.random.default_rng(seed))
        objects = builder.build().objects
        corners, person = objects.vertices[objects.faces].reshape(-1, 3), np.repeat(objects.label == 30, 3)
        assert person.any()
        screen, ground = corners[~person], height(builder.plan, np.array([14.0]), np.array([front.v]))[0]
        assert screen[:, 1].mean() < np.median(corners[person, 1]) - 0.2
        assert 0.3 < screen[:, 2].max() - ground < 2.0
