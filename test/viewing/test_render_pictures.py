# SPDX-License-Identifier: Apache-2.0
"""Pictures as arrays: colours, orientation of the bird's-eye view, the visible point of several, PNG files."""

from __future__ import annotations

import io

import numpy as np
import pytest

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.viewing.pictures import (
    BACKGROUND,
    COLOR_MAP,
    UNLABELED,
    birds_eye_picture,
    display_colors,
    encode_png,
    range_picture,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours, 0..100: how light they look."""
    encoded = rgb / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def bird_view(points, colors, size=100, radius_m=50.0) -> np.ndarray:
    background = np.full((size, size, 3), BACKGROUND, dtype=np.uint8)
    points = np.array(points, dtype=np.float32)
    return birds_eye_picture(points, np.array(colors, dtype=np.uint8), radius_m, background)


def where(picture: np.ndarray, color) -> list[tuple[int, int]]:
    return [(int(r), int(c)) for r, c in np.argwhere((picture == color).all(axis=2))]


def test_lightness_of_the_color_map_rises_evenly():
    steps = np.diff(lightness(COLOR_MAP[::15]))
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()


def test_neighbouring_colors_of_the_map_are_similar():
    assert np.abs(np.diff(COLOR_MAP.astype(int), axis=0)).max() <= 6


def test_near_is_bright_far_is_dark_and_empty_pixels_are_background():
    picture = range_picture(np.array([[3.0, 6.0, 20.0, 70.0, -1.0, 0.0, np.nan]]))
    light = lightness(picture[0, :4])
    assert (np.diff(light) < -5).all()
    for column in (4, 5, 6):
        assert tuple(picture[0, column]) == BACKGROUND
    assert picture.dtype == np.uint8


def test_ranges_beyond_the_scale_have_the_color_of_its_end():
    picture = range_picture(np.array([[0.1, 2.0, 80.0, 500.0]]))
    assert tuple(picture[0, 0]) == tuple(picture[0, 1])
    assert tuple(picture[0, 2]) == tuple(picture[0, 3]) != BACKGROUND


def test_unlabeled_points_differ_from_empty_pixels_and_no_class_changes_its_color():
    colors = display_colors(SEMANTIC_KITTI)
    assert tuple(colors[0]) == UNLABELED
    assert np.array_equal(colors[1:], SEMANTIC_KITTI.colors[1:])
    assert not SEMANTIC_KITTI.colors[0].any()  # the label set itself stays as it was


def test_forward_is_up_and_left_is_left_to_the_metre():
    picture = bird_view([(20.5, 0.5, 0), (0.5, 10.5, 0), (0.5, -10.5, 0)], [RED, GREEN, BLUE])
    assert where(picture, RED) == [(29, 49), (29, 50), (30, 49), (30, 50)]  # 50 - 20.5 rows from the top
    assert where(picture, GREEN)[0] == (49, 39)
    assert where(picture, BLUE)[0] == (49, 60)


def test_the_highest_of_several_points_is_visible_in_any_order():
    points = [(5, 5, 3), (5, 5, -1), (5, 5, 8), (5, 5, 2)]
    colors = [RED, BLUE, GREEN, BLUE]
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2]):
        picture = bird_view([points[i] for i in order], [colors[i] for i in order])
        assert len(where(picture, GREEN)) == 4
        assert not where(picture, RED)


def test_points_outside_or_not_finite_are_left_out():
    points = [(60, 0, 0), (0, -50.1, 0), (np.nan, 0, 0), (0, np.inf, 0), (1, 1, np.nan)]
    assert not where(bird_view(points, [RED] * 5), RED)


def test_points_are_squares_that_do_not_wrap_around_the_edge():
    picture = bird_view([(0.5, 0.5, 0), (-49.9, -49.9, 0), (49.9, 49.9, 0)], [RED, GREEN, BLUE])
    assert len(where(picture, RED)) == 4
    assert where(picture, GREEN) == [(99, 99)]
    assert where(picture, BLUE) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_no_points_give_the_background():
    picture = bird_view(np.zeros((0, 3)), np.zeros((0, 3)))
    assert len(where(picture, BACKGROUND)) == 100 * 100


def test_png_files_are_lossless():
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    with image.open(io.BytesIO(encode_png(picture))) as decoded:
        decoded.load()
        assert (decoded.format, decoded.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(decoded), picture)
