# SPDX-License-Identifier: Apache-2.0
"""Scores against the official release's and against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GOLDEN, needs_shared

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelClass, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix, range_bands

TINY = LabelSet(
    "tiny",
    (
        LabelClass("nothing", (0, 0, 0), 0, ignored=True),
        LabelClass("ground", (1, 1, 1), 1),
        LabelClass("wall", (2, 2, 2), 2),
        LabelClass("ghost", (3, 3, 3), 3),
    ),
    {0: 0, 1: 1, 2: 2, 3: 3},
)


def matrix_of(prediction, ground_truth, labels=TINY) -> ConfusionMatrix:
    matrix = ConfusionMatrix(labels)
    matrix.add(np.array(prediction), np.array(ground_truth))
    return matrix


@needs_shared
def test_scores_equal_the_official_ioueval():
    golden = np.load(GOLDEN / "ioueval.npz")
    matrix = ConfusionMatrix(SEMANTIC_KITTI)
    for part in range(0, 20000, 3000):  # in parts, to test accumulation
        matrix.add(golden["pred"][part : part + 3000], golden["gt"][part : part + 3000])
    assert np.array_equal(matrix.counts, golden["conf_pred_rows_gt_cols"])
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou[1:], golden["iou"][1:], rtol=0, atol=1e-12)
    assert scores.miou == pytest.approx(float(golden["miou"]), abs=1e-12)
    assert scores.accuracy == pytest.approx(float(golden["acc"]), abs=1e-12)


@needs_shared
def test_scores_equal_the_official_ioueval_if_points_are_predicted_as_unlabeled():
    golden = np.load(GOLDEN / "ioueval.npz")
    matrix = ConfusionMatrix(SEMANTIC_KITTI)
    matrix.add(golden["pred2"], golden["gt"])
    assert np.array_equal(matrix.counts, golden["conf2"])
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou[1:], golden["iou2"][1:], rtol=0, atol=1e-12)
    assert scores.miou == pytest.approx(float(golden["miou2"]), abs=1e-12)
    assert scores.accuracy == pytest.approx(float(golden["acc2"]), abs=1e-12)


def test_iou_and_accuracy_of_a_case_computed_by_hand():
    # ground: TP 2, FP 1, FN 1 -> 2/4; wall: TP 1, FP 1, FN 1 -> 1/3; ghost is absent -> 0
    scores = matrix_of([1, 1, 2, 1, 2], [1, 1, 1, 2, 2]).scores()
    np.testing.assert_allclose(scores.iou, [0, 2 / 4, 1 / 3, 0])
    assert scores.miou == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)
    assert scores.miou_present == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert scores.accuracy == pytest.approx(3 / 5)


def test_a_valid_point_predicted_as_unlabeled_is_dropped_officially_and_wrong_strictly():
    matrix = matrix_of([1, 1, 0, 2], [1, 1, 1, 2])
    assert matrix.left_unlabeled == 1
    official, strict = matrix.scores(), matrix.scores(strict=True)
    assert official.iou[1] == 1.0
    assert official.accuracy == 1.0
    assert strict.iou[1] == pytest.approx(2 / 3)
    assert strict.accuracy == pytest.approx(3 / 4)


def test_points_with_an_ignored_true_class_never_count():
    with_ignored = matrix_of([1, 2, 1, 2, 0], [1, 2, 0, 0, 0])
    for strict in (False, True):
        scores = with_ignored.scores(strict)
        np.testing.assert_allclose(scores.iou, [0, 1, 1, 0])
        assert scores.accuracy == 1.0
    assert with_ignored.evaluated_points == 2
    assert with_ignored.points == 5


def test_a_class_that_is_only_predicted_counts_in_the_official_mean_but_not_over_present_classes():
    scores = matrix_of([1, 1, 3], [1, 1, 1]).scores()
    assert scores.iou[3] == 0.0
    assert scores.miou_present == pytest.approx(2 / 3)
    assert scores.miou == pytest.approx((2 / 3) / 3)


def test_a_present_class_lost_to_unlabeled_alone_counts_as_present_with_iou_zero():
    scores = matrix_of([1, 0, 0], [1, 2, 2]).scores()
    assert scores.miou_present == pytest.approx(1 / 2)


def test_an_empty_matrix_scores_zero_without_a_warning(recwarn):
    scores = ConfusionMatrix(TINY).scores()
    assert (scores.miou, scores.miou_present, scores.accuracy) == (0.0, 0.0, 0.0)
    assert not recwarn.list


@pytest.mark.parametrize(("prediction", "truth"), [([1, 4], [1, 1]), ([1, 1], [1, -1]), ([1, 1], [1])])
def test_labels_that_do_not_fit_are_refused(prediction, truth):
    with pytest.raises(UserError):
        matrix_of(prediction, truth)


def test_range_bands_include_their_lower_edge_and_separate_non_finite_ranges():
    ranges = np.array([0.0, 9.999, 10.0, 19.9, 20.0, 30.0, 49.9, 50.0, 120.0, np.nan, np.inf])
    assert range_bands(ranges).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
