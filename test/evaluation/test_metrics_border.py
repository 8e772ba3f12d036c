# SPDX-License-Identifier: Apache-2.0
"""Border IoU against the official release's mask and numbers, and against masks drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DATA, GOLDEN, needs_shared

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import BorderConfig, border_mask, points_at_border
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix


def image_of(*rows: str) -> np.ndarray:
    return np.array([[int(c) for c in row] for row in rows], dtype=np.uint8)


@needs_shared
@pytest.mark.parametrize(("pixels", "connectivity"), [(1, 4), (2, 8)])
def test_mask_equals_the_official_one(pixels, connectivity):
    golden = np.load(GOLDEN / "biou.npz")
    image = np.load(GOLDEN / "projection_000000.npz")["proj_label_train"]
    expected = golden[f"mask_{pixels}_{connectivity}"].astype(bool)
    assert np.array_equal(border_mask(image, BorderConfig(pixels, connectivity)), expected)


@needs_shared
@pytest.mark.parametrize(("pixels", "connectivity"), [(1, 4), (2, 8)])
def test_border_scores_from_the_scan_itself_equal_the_official_ones(pixels, connectivity):
    golden = np.load(GOLDEN / "biou.npz")
    points = read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin")
    chosen = points_at_border(points, golden["gt"], BorderConfig(pixels, connectivity))
    matrix = ConfusionMatrix(SEMANTIC_KITTI)
    matrix.add(golden["pred"][chosen], golden["gt"][chosen])
    key = f"{pixels}_{connectivity}"
    assert np.array_equal(matrix.counts, golden[f"conf_{key}"])
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou[1:], golden[f"iou_{key}"][1:], rtol=0, atol=1e-12)
    assert scores.miou == pytest.approx(float(golden[f"miou_{key}"]), abs=1e-12)
    assert scores.accuracy == pytest.approx(float(golden[f"acc_{key}"]), abs=1e-12)


def test_a_pixel_is_border_if_its_neighbourhood_has_two_classes_not_counting_unlabeled():
    image = image_of("1112222", "1112222", "1110022", "1110022", "1111111")
    mask = border_mask(image, BorderConfig())
    inside = mask[1:-1, 1:-1]
    assert inside.tolist() == [
        [False, True, True, False, False],
        [False, False, True, False, False],
        [False, False, False, True, True],
    ]


def test_the_edge_of_the_image_always_counts_as_border():
    for pixels in (1, 2):
        mask = border_mask(np.ones((7, 9), dtype=np.uint8), BorderConfig(pixels))
        expected = np.ones((7, 9), dtype=bool)
        expected[pixels:-pixels, pixels:-pixels] = False
        assert np.array_equal(mask, expected)


def test_eight_neighbours_reach_over_corners_and_four_do_not():
    image = np.ones((5, 5), dtype=np.uint8)
    image[1, 1] = 2
    assert not border_mask(image, BorderConfig(connectivity=4))[2, 2]
    assert border_mask(image, BorderConfig(connectivity=8))[2, 2]


@pytest.mark.parametrize(("pixels", "connectivity"), [(0, 4), (1, 6)])
def test_invalid_settings_are_refused(pixels, connectivity):
    with pytest.raises(UserError, match=r"border: (pixels|connectivity) must be"):
        BorderConfig(pixels, connectivity)


def test_points_that_cannot_be_projected_are_not_at_a_border():
    points = np.array([[np.nan, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]], dtype=np.float32)
    at_border = points_at_border(
        points, np.array([1, 1, 1]), BorderConfig()
    )  # the first two would be in the border pixel (0, 0)
    assert at_border.tolist() == [False, False, False]
    assert points_at_border(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.uint8), BorderConfig()).shape == (
        0,
    )
