"""The pictures as arrays: colours mean what they say, left is left, forward is up, the highest point is seen."""

from __future__ import annotations

import io

import numpy as np
import pytest

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.evaluation.pictures import (
    BACKGROUND,
    UNLABELED,
    birds_eye_picture,
    color_map,
    display_colors,
    label_picture,
    png_bytes,
    range_picture,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours, 0..100: how light they look."""
    encoded = rgb / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def seen_from_above(points, colors, size=100, radius_m=50.0, splat=1) -> np.ndarray:
    background = np.full((size, size, 3), BACKGROUND, dtype=np.uint8)
    points = np.array(points, dtype=np.float32)
    return birds_eye_picture(points, np.array(colors, dtype=np.uint8), radius_m, background, splat)


def where(picture: np.ndarray, color) -> list[tuple[int, int]]:
    return [(int(r), int(c)) for r, c in np.argwhere((picture == color).all(axis=2))]


def test_lightness_of_the_color_map_rises_evenly():
    steps = np.diff(lightness(color_map()[::15]))
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()


def test_neighbouring_colors_of_the_map_differ_little():
    assert np.abs(np.diff(color_map().astype(int), axis=0)).max() <= 6


def test_near_is_bright_far_is_dark_and_empty_pixels_are_background():
    picture = range_picture(np.array([[3.0, 6.0, 20.0, 70.0, -1.0, 0.0, np.nan]]))
    light = lightness(picture[0, :4])
    assert (np.diff(light) < -5).all()
    for column in (4, 5, 6):
        assert tuple(picture[0, column]) == BACKGROUND
    assert picture.dtype == np.uint8


def test_ranges_beyond_the_scale_take_the_color_of_its_end():
    picture = range_picture(np.array([[0.1, 2.0, 80.0, 500.0]]))
    assert tuple(picture[0, 0]) == tuple(picture[0, 1])
    assert tuple(picture[0, 2]) == tuple(picture[0, 3]) != BACKGROUND


def test_a_range_image_of_the_projection_is_taken_as_it_is():
    torch = pytest.importorskip("torch")
    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    image = project(torch.tensor([[10.0, 0.0, 0.0, 0.5]]), ProjectionConfig(height=8, width=16))
    picture = range_picture(image)
    assert picture.shape == (8, 16, 3)
    assert np.array_equal(picture, range_picture(image.range.numpy()))
    assert (picture != BACKGROUND).any(axis=2).sum() == 1


def test_labels_take_their_class_color_and_pixels_without_points_the_background():
    colors = np.array([(0, 0, 0), RED, GREEN], dtype=np.uint8)
    picture = label_picture(np.array([[1, 2], [0, 1]]), colors, np.array([[True, True], [True, False]]))
    assert picture.tolist() == [[list(RED), list(GREEN)], [[0, 0, 0], list(BACKGROUND)]]


def test_unlabeled_points_can_be_told_from_empty_pixels_and_no_class_changes_its_color():
    colors = display_colors(SEMANTIC_KITTI)
    assert tuple(colors[0]) == UNLABELED
    assert np.array_equal(colors[1:], SEMANTIC_KITTI.colors[1:])
    assert not SEMANTIC_KITTI.colors[0].any()  # the label set itself stays as it was


def test_forward_is_up_and_left_is_left_to_the_metre():
    picture = seen_from_above([(20.5, 0.5, 0), (0.5, 10.5, 0), (0.5, -10.5, 0)], [RED, GREEN, BLUE])
    assert where(picture, RED) == [(29, 49)]  # 50 - 20.5 rows from the top
    assert where(picture, GREEN) == [(49, 39)]
    assert where(picture, BLUE) == [(49, 60)]


def test_the_highest_of_several_points_is_seen_whatever_their_order():
    points = [(5, 5, 3), (5, 5, -1), (5, 5, 8), (5, 5, 2)]
    colors = [RED, BLUE, GREEN, BLUE]
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2]):
        picture = seen_from_above([points[i] for i in order], [colors[i] for i in order])
        assert len(where(picture, GREEN)) == 1
        assert not where(picture, RED)


def test_points_outside_or_not_finite_are_left_out():
    points = [(60, 0, 0), (0, -50.1, 0), (np.nan, 0, 0), (0, np.inf, 0), (1, 1, np.nan)]
    assert not where(seen_from_above(points, [RED] * 5), RED)


def test_points_are_squares_that_do_not_wrap_over_the_edge():
    picture = seen_from_above([(0.5, 0.5, 0), (-49.9, -49.9, 0), (49.9, 49.9, 0)], [RED, GREEN, BLUE], splat=3)
    assert len(where(picture, RED)) == 9
    assert where(picture, GREEN) == [(98, 98), (98, 99), (99, 98), (99, 99)]
    assert where(picture, BLUE) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_no_points_give_the_background():
    picture = seen_from_above(np.zeros((0, 3)), np.zeros((0, 3)))
    assert len(where(picture, BACKGROUND)) == 100 * 100


def test_png_files_are_read_back_exactly_by_an_imaging_library():
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    with image.open(io.BytesIO(png_bytes(picture))) as read:
        read.load()
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(read), picture)
