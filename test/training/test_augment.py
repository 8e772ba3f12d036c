# SPDX-License-Identifier: Apache-2.0
"""Augmentation, mixing, pasting and crops, on clouds with a known result."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import ProjectionConfig, project
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.augment import (
    Augmentation,
    RandomMagnitude,
    in_sector,
    mix_scans,
    perturb_field_of_view,
    perturb_points,
    transform_scene,
)
from sqsegv3_ros.training.crop import CropWindow, check_crop, choose_window, set_azimuth_padding
from sqsegv3_ros.training.objects import ObjectBank

IMAGE = ProjectionConfig(height=32, width=512)
CAR, PERSON, ROAD, BUILDING = 1, 6, 9, 13


def always(low, high=None):
    return RandomMagnitude(1.0, low, low if high is None else high)


def rng(seed=0):
    return np.random.default_rng(seed)


def cloud(count=20000, seed=1):
    """Points all around, within the field of view; the remission of each is its number, its label follows from it."""
    random = rng(seed)
    azimuth, distance = random.uniform(-math.pi, math.pi, count), random.uniform(2, 60, count)
    elevation = np.radians(random.uniform(-24.5, 2.5, count))
    xyz = np.stack((np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)), 1)
    points = np.concatenate((xyz * distance[:, None], np.arange(count)[:, None]), 1).astype(np.float32)
    return points, (np.arange(count) % 20).astype(np.uint8)


def ranges(points):
    return np.linalg.norm(points[:, :3], axis=1)


def azimuths(points):
    return np.arctan2(points[:, 1], points[:, 0])


def moved(**settings):
    points, labels = cloud()
    before = points.copy()
    after, after_labels = transform_scene(points, labels, Augmentation(**settings), rng())
    np.testing.assert_array_equal(points, before)
    np.testing.assert_array_equal(after_labels, labels)
    return before, after


def disturbed(seed=0, **settings):
    points, labels = cloud()
    return points, *perturb_points(points.copy(), labels, Augmentation(**settings), IMAGE, rng(seed))


def test_augmentation_is_off_by_default():
    points, labels = cloud()
    for seed in range(5):
        after, after_labels = transform_scene(points, labels, Augmentation(), rng(seed))
        after, after_labels = perturb_points(after, after_labels, Augmentation(), IMAGE, rng(seed))
        np.testing.assert_array_equal(after, points)
        np.testing.assert_array_equal(after_labels, labels)
    assert perturb_field_of_view(IMAGE, Augmentation(), rng()) == IMAGE


def test_magnitudes_follow_probability_and_range():
    random, vary = rng(), RandomMagnitude(0.3, 2.0, 3.0)
    drawn = [vary.draw(random) for _ in range(4000)]
    strengths = [d for d in drawn if d is not None]
    assert len(strengths) / 4000 == pytest.approx(0.3, abs=0.03)
    assert 2.0 <= min(strengths) < 2.05
    assert 2.95 < max(strengths) <= 3.0


def test_yaw_rotates_every_point_by_the_same_angle():
    before, after = moved(yaw_deg=always(30))
    turn = np.angle(np.exp(1j * (azimuths(after) - azimuths(before))))
    np.testing.assert_allclose(turn, math.radians(30), atol=1e-5)
    np.testing.assert_allclose(ranges(after), ranges(before), rtol=1e-6)
    np.testing.assert_array_equal(after[:, 2:], before[:, 2:])


def test_flip_mirrors_left_and_right():
    before, after = moved(flip_probability=1.0)
    np.testing.assert_array_equal(after, before * np.array([1, -1, 1, 1], np.float32))


def test_scale_lift_and_shift():
    before, after = moved(scale=always(1.1))
    np.testing.assert_allclose(after[:, :3], before[:, :3] * np.float32(1.1))
    before, after = moved(lift_m=always(0.5))
    np.testing.assert_allclose(after - before, np.tile([0, 0, 0.5, 0], (len(before), 1)), atol=1e-5)
    before, after = moved(shift_m=always(2.0))
    offset = (after - before)[:, :2]
    np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 2.0, atol=1e-4)
    np.testing.assert_allclose(offset, np.tile(offset[0], (len(offset), 1)), atol=1e-4)


def test_the_remission_of_each_class_is_scaled_by_its_own_factor():
    before, after = moved(material_scale=always(2.0))
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    factors = np.array([after[label + 20 :: 20, 3] / before[label + 20 :: 20, 3] for label in range(20)])
    np.testing.assert_allclose(factors, factors[:, :1].repeat(factors.shape[1], 1), rtol=1e-5)
    assert len(np.unique(factors[:, 0].round(3))) == 20
    assert factors.min() >= 0.5 and factors.max() <= 2.0 and np.ptp(factors) > 1.0


def test_jitter_moves_points_along_their_rays():
    before, after, _ = disturbed(jitter_m=always(0.05))
    np.testing.assert_allclose(azimuths(after), azimuths(before), atol=1e-6)
    np.testing.assert_allclose(after[:, 2] / ranges(after), before[:, 2] / ranges(before), atol=1e-6)
    assert np.std(ranges(after) - ranges(before)) == pytest.approx(0.05, rel=0.03)


def test_point_dropout_drops_its_share():
    before, after, _ = disturbed(point_dropout=always(0.25))
    assert len(after) / len(before) == pytest.approx(0.75, abs=0.02)


def test_far_dropout_grows_with_the_range():
    before, after, _ = disturbed(far_dropout=always(0.8))
    for low, high in ((2, 10), (20, 25), (45, 50)):
        of_band = [((ranges(p) >= low) & (ranges(p) < high)).sum() for p in (before, after)]
        assert 1 - of_band[1] / of_band[0] == pytest.approx(0.8 / 50 * (low + high) / 2, abs=0.05)


def test_beam_dropout_drops_whole_rows_of_the_image():
    before, after, _ = disturbed(beam_dropout=always(0.3))
    rows = [np.bincount(project(torch.from_numpy(p), IMAGE).py.numpy(), minlength=32) for p in (before, after)]
    lost = rows[1] < 0.05 * rows[0]  # a point at the very edge may count to either row
    assert 3 <= lost.sum() <= 18
    assert (rows[1] > 0.95 * rows[0])[~lost].all()


def test_sector_dropout_empties_one_sector():
    before, after, _ = disturbed(sector_dropout_deg=always(40))
    histogram = np.histogram(azimuths(after), 360, (-math.pi, math.pi))[0]
    assert 38 <= (histogram == 0).sum() <= 40
    assert len(after) / len(before) == pytest.approx(1 - 40 / 360, abs=0.02)


def test_remission_changes():
    before, after, _ = disturbed(remission_scale=always(1.5), remission_shift=always(0.25))
    np.testing.assert_allclose(after[:, 3], before[:, 3] * 1.5 + 0.25, rtol=1e-6)
    assert not disturbed(remission_drop_probability=1.0)[1][:, 3].any()


def test_field_of_view_edges_shift():
    varied = perturb_field_of_view(IMAGE, Augmentation(fov_shift_deg=RandomMagnitude(1.0, -1.0, 1.0)), rng())
    assert varied.fov_up_deg != IMAGE.fov_up_deg
    assert abs(varied.fov_up_deg - IMAGE.fov_up_deg) <= 1
    assert 0 < abs(varied.fov_down_deg - IMAGE.fov_down_deg) <= 1
    assert dataclasses.replace(varied, fov_up_deg=3.0, fov_down_deg=-25.0) == IMAGE


def test_one_edge_of_the_field_of_view_shifts_further():
    raised = perturb_field_of_view(IMAGE, Augmentation(fov_up_shift_deg=RandomMagnitude(1.0, 18.0, 19.0)), rng())
    assert 21 <= raised.fov_up_deg <= 22 and raised.fov_down_deg == IMAGE.fov_down_deg
    lowered = perturb_field_of_view(IMAGE, Augmentation(fov_down_shift_deg=RandomMagnitude(1.0, -7.0, -6.0)), rng())
    assert -32 <= lowered.fov_down_deg <= -31 and lowered.fov_up_deg == IMAGE.fov_up_deg


@pytest.mark.parametrize("seed", range(10))
def test_every_point_keeps_its_own_label(seed):
    settings = {
        "yaw_deg": RandomMagnitude(0.5, -180, 180),
        "flip_probability": 0.5,
        "scale": RandomMagnitude(0.5, 0.9, 1.1),
        "shift_m": RandomMagnitude(0.5, 0, 2),
        "jitter_m": RandomMagnitude(0.5, 0, 0.1),
        "point_dropout": RandomMagnitude(0.5, 0, 0.5),
        "beam_dropout": RandomMagnitude(0.5, 0, 0.5),
        "sector_dropout_deg": RandomMagnitude(0.5, 0, 90),
        "far_dropout": RandomMagnitude(0.5, 0, 1),
        "mix_sector_deg": RandomMagnitude(0.5, 10, 180),
    }
    config, random = Augmentation(**settings), rng(seed)
    points, labels = transform_scene(*cloud(), config, random)
    points, labels = mix_scans(points, labels, lambda: cloud(seed=2), config, IMAGE, random)
    points, labels = CropWindow(100, 128, 512).crop_points(points, labels)
    points, labels = perturb_points(points, labels, config, IMAGE, random)
    assert len(points)
    np.testing.assert_array_equal(labels, points[:, 3].astype(int) % 20)


def test_mixing_takes_one_sector_from_the_other_scan():
    points, labels = cloud()
    other, other_labels = cloud(seed=7)
    other[:, 3], other_labels = -1.0, np.full_like(other_labels, 33)
    mixed, mixed_labels = mix_scans(
        points, labels, lambda: (other, other_labels), Augmentation(mix_sector_deg=always(90)), IMAGE, rng()
    )
    foreign = mixed[:, 3] == -1
    np.testing.assert_array_equal(mixed_labels[foreign], 33)
    assert foreign.mean() == pytest.approx(0.25, abs=0.02)
    bins = [np.histogram(azimuths(p), 120, (-math.pi, math.pi))[0] > 0 for p in (mixed[foreign], mixed[~foreign])]
    assert (bins[0] & bins[1]).sum() <= 2  # no azimuth has points of both, but for the sector's two edges


def test_mixing_takes_every_second_band_of_elevation_from_the_other_scan():
    (points, labels), (other, other_labels) = cloud(), cloud(seed=7)
    other[:, 3], other_labels = -1.0, np.full_like(other_labels, 33)
    settings = Augmentation(mix_bands=always(4))
    mixed, mixed_labels = mix_scans(points, labels, lambda: (other, other_labels), settings, IMAGE, rng())
    foreign = mixed[:, 3] == -1
    np.testing.assert_array_equal(mixed_labels[foreign], 33)
    elevation = np.degrees(np.arcsin(mixed[:, 2] / np.linalg.norm(mixed[:, :3], axis=1)))
    band = np.floor((3.0 - elevation) / 7.0)  # of 28 degrees
    shares = [foreign[band == number].mean() for number in range(4)]
    assert shares in (pytest.approx([0, 1, 0, 1], abs=0.02), pytest.approx([1, 0, 1, 0], abs=0.02))


def street():
    """A flat road 1.7 m below the sensor with a wall on the left, and one person standing 10 m ahead."""
    x, y = np.meshgrid(np.arange(-30, 30, 0.3), np.arange(-30, 8, 0.3))
    road = np.stack((x.ravel(), y.ravel(), np.full(x.size, -1.7)), 1)
    x, z = np.meshgrid(np.arange(-30, 30, 0.3), np.arange(-1.7, 2, 0.3))
    wall = np.stack((x.ravel(), np.full(x.size, 8.0), z.ravel()), 1)
    y, z = np.meshgrid(np.linspace(-0.3, 0.3, 8), np.linspace(-1.7, 0, 12))
    person = np.stack((np.full(y.size, 10.0), y.ravel(), z.ravel()), 1)
    xyz = np.concatenate((road, wall, person))
    points = np.concatenate((xyz, np.zeros((len(xyz), 1))), 1).astype(np.float32)
    labels = np.repeat([ROAD, BUILDING, PERSON], [len(road), len(wall), len(person)]).astype(np.uint8)
    return points, labels, np.where(labels == PERSON, 5, 0).astype(np.uint16)


def bank_of_one_person():
    bank = ObjectBank([CAR, PERSON], [ROAD])
    bank.add(*street())
    assert {c: len(o) for c, o in bank.objects.items()} == {PERSON: 1}
    return bank


@pytest.mark.parametrize("seed", range(8))
def test_a_pasted_object_stands_on_free_ground_at_its_own_distance(seed):
    points, labels, _ = street()
    pasted, pasted_labels = bank_of_one_person().paste(points, labels, 1, rng(seed))
    np.testing.assert_array_equal(pasted[: len(points)], points)
    added = pasted[len(points) :]
    if not len(added):  # no free place was found in the attempts there are
        return
    assert len(added) == 96
    assert set(pasted_labels[len(points) :]) == {PERSON}
    centre = added[:, :2].mean(axis=0)
    assert np.hypot(*centre) == pytest.approx(10.0, abs=0.01)
    assert added[:, 2].min() == pytest.approx(-1.7, abs=0.01)
    assert centre[1] < 7.5  # not in the wall
    assert np.hypot(*(centre - (10, 0))) > 0.5  # not in the other person


def test_objects_are_pasted_into_the_crop_window():
    points, labels, _ = street()
    window = CropWindow(300, 64, 512)
    count = 0
    for seed in range(20):
        added = bank_of_one_person().paste(points, labels, 1, rng(seed), window.sector)[0][len(points) :]
        if len(added):
            count += 1
            assert in_sector(added.mean(axis=0, keepdims=True), *window.sector).all()
    assert count > 5


def test_objects_without_an_instance_or_with_few_points_are_not_collected():
    points, labels, instances = street()
    bank = ObjectBank([PERSON], [ROAD])
    bank.add(points, labels, np.zeros_like(instances))
    bank.add(points[-20:], labels[-20:], instances[-20:])
    assert not bank.objects
    assert bank.paste(points, labels, 3, rng())[0] is points


@pytest.mark.parametrize("start", [0, 17, 384])
def test_a_crop_of_the_points_is_a_crop_of_the_image(start):
    points, labels = cloud()
    window = CropWindow(start, 128, 512)
    cropped, cropped_labels = window.crop_points(points, labels)
    assert len(cropped) < 0.4 * len(points)
    channels, mask, index = window.crop_image(project(torch.from_numpy(cropped), IMAGE))
    whole = project(torch.from_numpy(points), IMAGE)
    columns = slice(start, start + 128)
    assert torch.equal(channels, whole.channels[:, :, columns])
    assert torch.equal(mask, whole.mask[:, columns])
    numbers = torch.from_numpy(cropped[:, 3])[index.clamp_min(0)][mask]
    assert torch.equal(numbers.long(), whole.index[:, columns][mask])
    np.testing.assert_array_equal(cropped_labels, cropped[:, 3].astype(int) % 20)


def test_windows_cover_the_whole_turn():
    starts = [choose_window(512, 128, rng(seed)).start for seed in range(400)]
    assert min(starts) < 10
    assert max(starts) > 374
    assert max(starts) <= 384
    assert choose_window(512, None, rng()) == CropWindow(0, 512, 512)


def test_the_centre_of_a_crop_gives_the_logits_of_the_whole_turn():
    torch.manual_seed(0)
    config = NetworkConfig(
        blocks=(1, 1, 1, 1, 1), channels=(8, 8, 8, 8, 8), attention_kernel=1, azimuth_padding="circular"
    )
    network, image = SqueezeSegV3(config).eval(), torch.randn(1, 5, 4, 512)
    with torch.no_grad():
        whole = network(image)[0]
        set_azimuth_padding(network, circular=False)
        crop = network(image[..., :384])[0]
        set_azimuth_padding(network, circular=True)
        again = network(image)[0]
    torch.testing.assert_close(crop[..., 160:224], whole[..., 160:224], rtol=0, atol=1e-5)
    assert not torch.allclose(crop[..., :8], whole[..., :8], atol=1e-3)  # no other edge beyond a crop's edge
    assert torch.equal(again, whole)


@pytest.mark.parametrize("width", [0, 4, 100, 1024])
def test_a_crop_that_does_not_fit_is_refused(width):
    with pytest.raises(UserError, match="crop_width must be a multiple of 8"):
        check_crop(width, 512)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomMagnitude(1.5, 0, 1),
        lambda: RandomMagnitude(0.5, 2, 1),
        lambda: RandomMagnitude(0.5, 0, math.inf),
        lambda: Augmentation(point_dropout=RandomMagnitude(1.0, 0, 2)),
        lambda: Augmentation(flip_probability=-0.1),
        lambda: Augmentation(scale=RandomMagnitude(1.0, 0.0, 1.0)),
    ],
)
def test_invalid_settings_are_refused(make):
    with pytest.raises(UserError, match="augmentation: "):
        make()
