# SPDX-License-Identifier: Apache-2.0
"""Live evaluation without ROS: matching, counting and timing with synthetic times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import Header, PointCloud2, PointField, layout

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.live_evaluation import LiveEvaluation, Matcher
from sqsegv3_ros.pointcloud2 import make_cloud

TRUTH = layout(17, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), intensity=(12, "f4"), ground_truth=(16, "u1"))
LABELLED = layout(13, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), label=(12, "u1"))
CAR, ROAD = 1, 9


def points(dtype: np.dtype[Any], field: str, classes: list[int]) -> np.ndarray:
    cloud = np.zeros(len(classes), dtype)
    cloud["x"] = 7.0
    cloud[field] = classes
    return cloud


def truth(*classes: int) -> Any:
    return make_cloud(points(TRUTH, "ground_truth", list(classes)), PointCloud2, PointField, Header())


def labels(*classes: int) -> Any:
    return make_cloud(points(LABELLED, "label", list(classes)), PointCloud2, PointField, Header())


def test_latency_is_the_time_between_receipts_of_matching_clouds_in_any_order() -> None:
    matcher = Matcher()
    assert matcher.add_ground_truth(10, "in 10", 1.0) is None
    assert matcher.add_ground_truth(20, "in 20", 1.1) is None
    pair = matcher.add_output(20, "out 20", 1.4)
    assert pair is not None and (pair.ground_truth, pair.output) == ("in 20", "out 20")
    assert pair.latency_ms == pytest.approx(300)
    late = matcher.add_output(10, "out 10", 2.0)
    assert late is not None and late.latency_ms == pytest.approx(1000)
    assert (matcher.scans_in, matcher.scans_out, matcher.pending) == (2, 2, 0)
    assert matcher.rate_hz == pytest.approx(1 / 0.6)


def test_an_output_that_overtakes_its_input_in_transport_is_matched_with_latency_0() -> None:
    matcher = Matcher()
    assert matcher.add_output(10, "out", 1.0) is None
    pair = matcher.add_ground_truth(10, "in", 1.01)
    assert pair is not None and pair.latency_ms == 0
    assert (matcher.scans_in, matcher.scans_out) == (1, 1)


def test_outputs_older_than_the_first_input_are_not_counted() -> None:
    matcher = Matcher()
    matcher.add_output(10, "out", 1.0)
    matcher.add_ground_truth(20, "in", 1.1)
    matcher.add_output(15, "out", 1.2)
    matcher.add_output(20, "out", 1.3)
    matcher.add_output(30, "out", 1.4)
    assert (matcher.scans_in, matcher.scans_out) == (1, 2)


def test_at_most_capacity_clouds_wait_and_the_oldest_is_dropped_first() -> None:
    matcher = Matcher(capacity=3)
    for stamp in range(1000):
        matcher.add_ground_truth(stamp, bytes(8), float(stamp))
    assert matcher.pending == 3
    assert matcher.add_output(996, b"", 2000.0) is None
    assert matcher.add_output(997, b"", 2000.0) is not None


def test_a_restarted_recording_is_matched_again_and_the_unanswered_scan_is_lost() -> None:
    evaluation = LiveEvaluation(SEMANTIC_KITTI, matcher := Matcher())
    matcher.add_ground_truth(10, "first", 1.0)
    matcher.add_ground_truth(10, "second", 5.0)
    pair = matcher.add_output(10, "out", 5.2)
    assert pair is not None and pair.ground_truth == "second" and pair.latency_ms == pytest.approx(200)
    evaluation.add(pair, truth(CAR), labels(CAR))
    assert (evaluation.lost, evaluation.complete) == (1, False)


def evaluated(expected: int | None = None) -> LiveEvaluation:
    """Five scans: four processed in 10, 20, 30 and 40 ms, one lost."""
    matcher = Matcher()
    evaluation = LiveEvaluation(SEMANTIC_KITTI, matcher, expected=expected)
    for number, took_s in enumerate((0.01, 0.02, None, 0.03, 0.04)):
        matcher.add_ground_truth(number, "", float(number))
        if took_s is not None:
            pair = matcher.add_output(number, "", number + took_s)
            assert pair is not None
            evaluation.add(pair, truth(CAR, CAR, ROAD, 0), labels(CAR, ROAD, ROAD, ROAD))
    return evaluation


def test_the_summary_has_the_keys_of_evaluate_plus_losses_and_latency() -> None:
    summary = evaluated().summary()
    assert summary["iou"]["car"] == pytest.approx(1 / 2) and summary["iou"]["road"] == pytest.approx(1 / 2)
    assert summary["accuracy"] == pytest.approx(2 / 3) and summary["scan_count"] == 4
    assert (summary["scans_in"], summary["scans_out"], summary["lost"], summary["complete"]) == (5, 4, 1, False)
    assert summary["latency_ms"] == pytest.approx([10, 20, 30, 40])
    assert summary["latency_p50_ms"] == pytest.approx(25) and summary["latency_p95_ms"] == pytest.approx(38.5)
    assert summary["rate_hz"] == pytest.approx(3 / 4.03)
    assert summary["live"]["scans lost"] == 1
    json.dumps(summary, allow_nan=False)


def test_expected_scans_that_never_arrive_are_lost() -> None:
    assert evaluated(expected=7).lost == 3
    nothing = LiveEvaluation(SEMANTIC_KITTI, Matcher(), expected=7)
    assert (nothing.lost, nothing.complete) == (7, False)
    assert nothing.summary()["latency_p50_ms"] is None
    assert not LiveEvaluation(SEMANTIC_KITTI, Matcher()).complete


def test_clouds_that_cannot_be_evaluated_are_named() -> None:
    for true, output, words in (
        (truth(CAR, CAR), labels(CAR), "1 labels, but the ground truth has 2 points"),
        (truth(CAR), labels(77), "0..19"),
        (labels(CAR), labels(CAR), "'ground_truth'"),
        (truth(CAR), truth(CAR), "'label'"),
    ):
        matcher = Matcher()
        matcher.add_ground_truth(1_500_000_000, "", 0.0)
        pair = matcher.add_output(1_500_000_000, "", 0.1)
        assert pair is not None
        with pytest.raises(UserError, match=r"scan 1\.500000000: ") as error:
            LiveEvaluation(SEMANTIC_KITTI, matcher).add(pair, true, output)
        assert words in str(error.value)


def test_a_live_evaluation_can_be_reported(tmp_path: Path) -> None:
    from sqsegv3_ros.evaluation.html_report import build_report
    from sqsegv3_ros.evaluation.summary import read_summary

    (tmp_path / "live.json").write_text(json.dumps(evaluated().summary()))
    page = build_report(read_summary(tmp_path / "live.json"), (), "")
    assert "latency p95 (ms)" in page and "scans lost" in page
