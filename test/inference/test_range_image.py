# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import DATA, GOLDEN, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from sqsegv3_ros.data.semantic_kitti import read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference import range_image
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, normalize, project, restore
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.training.module import SegmentationModule

SMALL = ProjectionConfig(height=8, width=32, fov_up_deg=10.0, fov_down_deg=-10.0)
NORMALIZATION_53 = Normalization((-1.04, 10.88, 0.23, 12.12, 0.21), (0.86, 11.47, 6.91, 12.32, 0.16))


def on_sphere(azimuth_deg: float, elevation_deg: float, range_m: float, remission: float = 0.5) -> list[float]:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    horizontal = range_m * math.cos(elevation)
    return [horizontal * math.cos(azimuth), horizontal * math.sin(azimuth), range_m * math.sin(elevation), remission]


def cloud(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@needs_shared
@pytest.mark.parametrize("frame", range(3))
def test_projection_equals_the_official_release(frame: int) -> None:
    golden = np.load(GOLDEN / f"projection_00000{frame}.npz")
    points = read_scan(DATA / f"semantic_kitti/sequences/00/velodyne/00000{frame}.bin")
    image = project(torch.from_numpy(points), ProjectionConfig(official_mask=True))
    np.testing.assert_array_equal(image.px, golden["px"])
    np.testing.assert_array_equal(image.py, golden["py"])
    np.testing.assert_array_equal(image.index, golden["proj_idx"])
    np.testing.assert_array_equal(image.range, golden["proj_range"])
    np.testing.assert_array_equal(image.xyz.permute(1, 2, 0), golden["proj_xyz"])
    np.testing.assert_array_equal(image.remission, golden["proj_remission"])
    np.testing.assert_array_equal(image.mask, golden["proj_mask"])
    np.testing.assert_array_equal(image.point_range, golden["unproj_range"])
    first, last = golden["crop_cols"]
    for name, normalization in (("norm21_crop", Normalization()), ("norm53_crop", NORMALIZATION_53)):
        network_input = normalize(image, normalization)[0, :, :, first : last + (golden[name].shape[2] + first - last)]
        np.testing.assert_allclose(network_input, golden[name], atol=2e-5, rtol=1e-6)


@needs_shared
def test_only_the_pixel_of_point_0_differs_between_the_correct_and_the_official_mask() -> None:
    points = torch.from_numpy(read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin"))
    correct = project(points, ProjectionConfig()).mask
    official = project(points, ProjectionConfig(official_mask=True)).mask
    assert (correct != official).nonzero().tolist() == [[1, 1023]]


@pytest.mark.parametrize(
    "config",
    [
        ProjectionConfig(),
        ProjectionConfig(width=512, outside_fov="drop", keep="farthest"),
        ProjectionConfig(rows="ring_from_bottom", ring_count=40),
        ProjectionConfig(height=16, fov_up_deg=20.0, fov_down_deg=2.0, official_mask=True),
    ],
    ids=["default", "drop, farthest", "rings", "one-sided"],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_devices_compute_what_the_cpu_computes(
    config: ProjectionConfig, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines that run on a device, run with torch on the CPU. Points at a pixel's edge are left out."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((30_000, 4), generator=generator) * torch.tensor([20.0, 20.0, 3.0, 0.3])
    rings = torch.arange(len(points)) % 42
    on_cpu = project(points, config, rings)
    with monkeypatch.context() as patch:
        patch.setattr(range_image, "library", lambda tensor: torch)
        patch.setattr(range_image, "array", lambda tensor: tensor)
        same = project(points, config, rings).pixel == on_cpu.pixel
        assert same.float().mean() > 0.9999
        points, rings = points[same].repeat(2, 1), rings[same].repeat(2)  # twice, so that points tie
        if damaged:
            for value, every in ((math.nan, 97), (math.inf, 101), (0.0, 103)):
                points[::every, :3] = value
            points[::89, 3] = math.nan
        on_device = project(points, config, rings)
        network_input = normalize(on_device, NORMALIZATION_53)
    on_cpu = project(points, config, rings)
    torch.testing.assert_close(network_input, normalize(on_cpu, NORMALIZATION_53), rtol=1e-5, atol=1e-5)
    for name, values in vars(on_cpu).items():
        torch.testing.assert_close(vars(on_device)[name], values, rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)
    assert bool(on_cpu.usable.all()) != (damaged or config.outside_fov == "drop" or config.needs_rings)


def test_forward_is_the_middle_left_lies_at_lower_columns_and_up_at_lower_rows() -> None:
    image = project(cloud(on_sphere(0.1, 0, 5), on_sphere(90, 9, 5), on_sphere(-90, -9, 5)), SMALL)
    assert image.px.tolist() == [15, 8, 24]
    assert image.py.tolist()[1:] == [0, 7]


@pytest.mark.parametrize(("keep", "winner"), [("nearest", 1), ("farthest", 2)])
def test_the_configured_point_keeps_a_shared_pixel(keep: str, winner: int) -> None:
    points = cloud(on_sphere(1, 1, 7, 0.1), on_sphere(1, 1, 3, 0.2), on_sphere(1, 1, 20, 0.3))
    image = project(points, ProjectionConfig(8, 32, 10.0, -10.0, keep=keep))
    assert image.index[image.mask].tolist() == [winner]
    assert image.remission[image.mask].tolist() == [pytest.approx((0.1, 0.2, 0.3)[winner])]


def test_of_equally_near_points_the_later_one_wins_every_time() -> None:
    points = cloud(*[on_sphere(1, 1, 7, i / 1000) for i in range(500)])
    for _ in range(3):
        assert project(points, SMALL).index.max() == 499


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("column", range(3))
def test_a_point_that_is_not_finite_takes_no_pixel_and_harms_no_other(bad: float, column: int) -> None:
    broken = on_sphere(1, 1, 2)
    broken[column] = bad
    image = project(cloud(broken, on_sphere(1, 1, 4)), SMALL)
    assert image.usable.tolist() == [False, True]
    assert image.index[image.mask].tolist() == [1]
    assert torch.isfinite(normalize(image, Normalization())).all()


def test_the_origin_is_unusable_and_a_remission_that_is_not_finite_counts_as_zero() -> None:
    image = project(cloud([0, 0, 0, 1.0], on_sphere(1, 1, 4, math.nan), on_sphere(30, 1, 4, math.inf)), SMALL)
    assert image.usable.tolist() == [False, True, True]
    assert image.remission[image.mask].tolist() == [0.0, 0.0]


def test_points_outside_the_field_of_view_go_to_the_edge_rows_or_stay_out() -> None:
    points = cloud(on_sphere(0, 40, 5), on_sphere(0, -40, 5), on_sphere(0, 0, 5))
    assert project(points, SMALL).py.tolist()[:2] == [0, 7]
    dropped = project(points, ProjectionConfig(8, 32, 10.0, -10.0, outside_fov="drop"))
    assert dropped.usable.tolist() == [False, False, True]
    assert dropped.mask.sum() == 1


def test_no_points_give_an_empty_image() -> None:
    image = project(torch.zeros((0, 4)), SMALL)
    assert not image.mask.any() and (image.channels == -1).all() and image.pixel.shape == (0,)
    assert (normalize(image, Normalization()) == 0).all()


def test_masked_pixels_are_zero_after_normalisation() -> None:
    image = project(cloud(on_sphere(0, 0, 5)), SMALL)
    network_input = normalize(image, Normalization())
    assert (network_input[:, :, ~image.mask] == 0).all()
    expected = [(5 - 12.12) / 12.32, (5 - 10.88) / 11.47, -0.23 / 6.91, 1.04 / 0.86, (0.5 - 0.21) / 0.16]
    np.testing.assert_allclose(network_input[0, :, image.mask].flatten(), expected, rtol=1e-5)


def test_the_remission_is_raised_to_its_power_in_training_and_in_the_node() -> None:
    """Also where it is 0 or negative, whose power would be no number."""
    curved = Normalization(remission_exponent=1.44)
    image = project(cloud(on_sphere(0, 0, 5), on_sphere(90, 0, 5), on_sphere(180, 0, 5)), SMALL)
    image.channels[4, image.mask] = torch.tensor([0.25, 0.0, -0.1])
    network_input = normalize(image, curved)
    plain = normalize(image, Normalization())
    torch.testing.assert_close(network_input[:, :4], plain[:, :4])
    expected = (torch.tensor([0.25**1.44, 0.0, 0.0]) - 0.21) / 0.16
    torch.testing.assert_close(network_input[0, 4, image.mask], expected)
    assert (network_input[:, :, ~image.mask] == 0).all()
    module = SegmentationModule(
        network=NetworkConfig((1,) * 5, (8,) * 5, attention_kernel=1), projection=SMALL, normalization=curved
    )
    torch.testing.assert_close(module.image(image.channels[None], image.mask[None]), network_input)
    assert Normalization.from_dict(curved.to_dict()) == curved
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="remission_exponent must be a finite number above 0"):
            Normalization(remission_exponent=wrong)


@pytest.mark.parametrize(("rows", "expected"), [("ring_from_bottom", [7, 4, 0]), ("ring_from_top", [0, 3, 6])])
def test_rings_give_the_rows_where_configured(rows: str, expected: list[int]) -> None:
    config = ProjectionConfig(8, 32, 10.0, -10.0, rows=rows, ring_count=4)
    points = cloud(*[on_sphere(a, 0, 5) for a in (0, 40, 80, 120)])
    image = project(
        points, config, rings=torch.tensor([0, 2, 3, 99]) if rows == "ring_from_bottom" else torch.tensor([0, 1, 3, -1])
    )
    found = image.py.tolist()[:3]
    # 4 rings over 8 rows: each ring owns two rows and takes the upper one
    assert found == ([6, 2, 0] if rows == "ring_from_bottom" else [0, 2, 6])
    assert image.usable.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "config",
    [ProjectionConfig(fov_up_deg=-1.0, fov_down_deg=-25.0), ProjectionConfig(fov_up_deg=25.0, fov_down_deg=5.0)],
)
def test_a_one_sided_field_of_view_fills_its_rows_from_edge_to_edge(config: ProjectionConfig) -> None:
    middle = (config.fov_up_deg + config.fov_down_deg) / 2
    elevations = (config.fov_up_deg - 0.01, middle - 0.01, config.fov_down_deg + 0.01)
    image = project(cloud(*[on_sphere(0, e, 5) for e in elevations]), config)
    assert image.py.tolist() == [0, 32, 63]


def test_restore_is_the_inverse_of_the_projection_and_fills_unusable_points() -> None:
    points = cloud(on_sphere(10, 3, 5), [math.nan] * 4, on_sphere(-100, -3, 8), on_sphere(10, 3, 9))
    image = project(points, SMALL)
    assert restore(image.range, image, fill=-7).tolist() == pytest.approx([5, -7, 8, 5], rel=1e-5)
    assert restore(image.xyz, image).shape == (3, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_projection_agrees_with_a_float64_loop_over_the_points(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    points = (generator.normal(size=(count, 4)) * [20, 20, 3, 1]).astype(np.float32)
    image = project(torch.from_numpy(points), SMALL)
    best: dict[tuple[int, int], float] = {}
    for x, y, z, _ in points.astype(np.float64):
        r = math.sqrt(x * x + y * y + z * z)
        u = 0.5 * (1 - math.atan2(y, x) / math.pi) * SMALL.width
        v = (1 - (math.asin(z / r) + math.radians(10)) / math.radians(20)) * SMALL.height
        pixel = (min(max(math.floor(v), 0), 7), min(max(math.floor(u), 0), 31))
        best[pixel] = min(best.get(pixel, math.inf), r)
    expected = torch.full((8, 32), -1.0)
    for pixel, r in best.items():
        expected[pixel] = r
    # float32 angles may move a point that lies on a pixel's edge
    assert (torch.isclose(image.range, expected, rtol=1e-5)).float().mean() > 0.98


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"width": 100}, "multiple of 8"),
        ({"height": 0}, "height"),
        ({"fov_up_deg": -30.0}, "fov_down_deg < fov_up_deg"),
        ({"fov_up_deg": math.nan}, "finite"),
        ({"keep": "first"}, "nearest, farthest"),
        ({"rows": "beam"}, "ring_from_bottom"),
        ({"ring_count": 0}, "ring_count"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(settings_: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProjectionConfig(**settings_)


def test_settings_survive_json_and_unknown_ones_are_named() -> None:
    config = ProjectionConfig(rows="ring_from_top", ring_count=32)
    assert ProjectionConfig.from_dict(config.to_dict()) == config
    assert Normalization.from_dict(NORMALIZATION_53.to_dict()) == NORMALIZATION_53
    with pytest.raises(UserError, match="unknown setting wdth"):
        ProjectionConfig.from_dict({"wdth": 2048})
    with pytest.raises(UserError, match="five finite numbers"):
        Normalization(means=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="greater than 0"):
        Normalization(stds=(1.0, 1.0, 0.0, 1.0, 1.0))


def test_points_of_another_shape_or_type_and_missing_rings_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(N, 4\) float32, found \(3, 3\)"):
        project(torch.zeros(3, 3), SMALL)
    with pytest.raises(UserError, match="float64"):
        project(torch.zeros((3, 4), dtype=torch.float64), SMALL)
    with pytest.raises(UserError, match="ring numbers"):
        project(torch.zeros(3, 4), ProjectionConfig(rows="ring_from_top"))


def test_points_so_near_that_their_squares_underflow_stay_inside_the_image() -> None:
    """A malformed cloud holds such coordinates: their range may be rounded below their height."""
    generator = np.random.default_rng(0)
    values = generator.choice([-1, 1], (20_000, 4)) * 10.0 ** generator.uniform(-45, -15, (20_000, 4))
    points = values.astype(np.float32)
    image = project(torch.from_numpy(points), ProjectionConfig())
    assert int(image.pixel.min()) >= 0 and int(image.pixel.max()) < image.height * image.width
    assert bool(image.usable.any())
