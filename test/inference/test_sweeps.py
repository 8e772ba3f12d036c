# SPDX-License-Identifier: Apache-2.0
"""The vote of several sweeps: a wall whose points vote one by one, moved sensors, and what must not vote."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.range_image import ProjectionConfig, project
from sqsegv3_ros.inference.segmenter import Segmentation
from sqsegv3_ros.inference.sweeps import SweepVote

WIDE = ProjectionConfig(height=32, width=256, fov_up_deg=15.0, fov_down_deg=-25.0)
# a 4 m high wall across the road, 10 m ahead; one point in the middle of each of its pixels
AZIMUTH = np.radians((np.arange(110, 146) - 127.5) / 256 * 360)
ELEVATION = np.radians(15.0 - 40.0 * (np.arange(32) + 0.5) / 32)
IDENTITY = np.eye(4)
CLASSES = 20


def wall(distance: float = 10.0) -> np.ndarray:
    """(N, 4) points of the wall at a distance in metres, one a pixel."""
    azimuth, elevation = (a.ravel() for a in np.meshgrid(AZIMUTH, ELEVATION))
    x = np.full(azimuth.shape, distance)
    y, z = distance * np.tan(-azimuth), distance / np.cos(azimuth) * np.tan(elevation)
    return np.stack([x, y, z, np.zeros_like(x)], 1).astype(np.float32)


def segmentation(points: np.ndarray, labels: Any, confidences: Any, config: ProjectionConfig = WIDE) -> Segmentation:
    count = len(points)
    image = project(torch.from_numpy(points), config)
    return Segmentation(
        np.broadcast_to(np.asarray(labels, np.uint8), count).copy(),
        np.broadcast_to(np.asarray(confidences, np.float32), count).copy(),
        image,
        torch.zeros(config.height, config.width, dtype=torch.uint8),
        {},
    )


def pose(x: float = 0.0, y: float = 0.0, yaw_deg: float = 0.0) -> np.ndarray:
    c, s = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, 0], [0, 0, 0, 1]])


def vote_on(vote: SweepVote, sweeps: list[tuple[np.ndarray, Any, float, np.ndarray]]) -> Segmentation:
    """The result of the last sweep."""
    for number, (points, labels, confidence, at) in enumerate(sweeps, start=1):
        result = vote.vote(segmentation(points, labels, confidence), points, at, number, WIDE, Extrinsics())
    return result


def test_the_label_with_the_largest_sum_of_confidences_wins() -> None:
    points = wall()
    sweeps = [(points, 3, 0.6, IDENTITY), (points, 3, 0.5, IDENTITY), (points, 7, 0.9, IDENTITY)]
    result = vote_on(SweepVote(3, CLASSES), sweeps)
    assert (result.labels == 3).all() and result.labels.dtype == np.uint8
    np.testing.assert_allclose(result.confidences, (0.6 + 0.5) / 3, rtol=1e-6)
    result = vote_on(SweepVote(2, CLASSES), sweeps)  # the first sweep is too old: 0.9 against 0.5
    assert (result.labels == 7).all()
    np.testing.assert_allclose(result.confidences, 0.9 / 2, rtol=1e-6)


def test_every_point_has_its_own_vote() -> None:
    points, generator = wall(), np.random.default_rng(0)
    ballots = [generator.integers(1, 6, len(points)) for _ in range(3)]
    weights = [generator.uniform(0.2, 1, len(points)).astype(np.float32) for _ in range(3)]
    vote = SweepVote(3, CLASSES)
    for number, (labels, confidences) in enumerate(zip(ballots, weights, strict=True), start=1):
        result = vote.vote(segmentation(points, labels, confidences), points, IDENTITY, number, WIDE, Extrinsics())
    sums = np.zeros((len(points), 6))
    for labels, confidences in zip(ballots, weights, strict=True):
        sums[np.arange(len(points)), labels] += confidences
    np.testing.assert_array_equal(result.labels, sums.argmax(1))
    np.testing.assert_allclose(result.confidences, sums.max(1) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    "at", [pose(x=2.0), pose(x=2.0, yaw_deg=20.0)], ids=["driven ahead", "driven ahead and turned"]
)
def test_earlier_sweeps_are_moved_with_the_sensor(at: np.ndarray) -> None:
    """The upper half of the wall is class 2, the lower class 3; the last sweep says the opposite, less confidently."""
    then = wall()
    now = then.copy()
    now[:, :3] = (then[:, :3] - at[:3, 3]) @ at[:3, :3]  # the same points of the wall from the new pose
    upper = then[:, 2] > 0
    result = vote_on(
        SweepVote(2, CLASSES), [(then, np.where(upper, 2, 3), 0.9, IDENTITY), (now, np.where(upper, 3, 2), 0.3, at)]
    )
    inside = segmentation(now, 0, 0).image.index.flatten()
    inside = inside[inside >= 0].numpy()
    assert len(inside) > 500
    assert (result.labels == np.where(upper, 2, 3))[inside].mean() > 0.95
    not_moved = vote_on(
        SweepVote(2, CLASSES),
        [(then, np.where(upper, 2, 3), 0.9, IDENTITY), (now, np.where(upper, 3, 2), 0.3, IDENTITY)],
    )
    assert (not_moved.labels == np.where(upper, 3, 2))[inside].mean() > 0.9  # 2 m nearer: not the same wall


def test_what_has_moved_or_is_hidden_does_not_vote() -> None:
    result = vote_on(SweepVote(2, CLASSES), [(wall(8.0), 5, 0.9, IDENTITY), (wall(10.0), 2, 0.3, IDENTITY)])
    assert (result.labels == 2).all()
    np.testing.assert_allclose(result.confidences, 0.3, rtol=1e-6)  # of one voter


def test_a_tilted_sensor_votes_like_a_level_one() -> None:
    then, at = wall(), pose(x=2.0)
    now = then - np.array([2, 0, 0, 0], np.float32)
    tilted = Extrinsics.from_angles(4.0, 10.0, 0.0)
    rotation = np.array(tilted.rotation)  # level <- sensor
    sensor_on_robot = np.eye(4)
    sensor_on_robot[:3, :3] = rotation
    upper = then[:, 2] > 0

    def seen(points: np.ndarray) -> np.ndarray:
        return np.concatenate([points[:, :3] @ rotation, points[:, 3:]], 1).astype(np.float32)

    vote = SweepVote(2, CLASSES)
    for number, (points, labels, confidence, robot) in enumerate(
        [(then, np.where(upper, 2, 3), 0.9, IDENTITY), (now, np.where(upper, 3, 2), 0.3, at)], start=1
    ):
        level = segmentation(points, labels, confidence)
        result = vote.vote(level, seen(points), robot @ sensor_on_robot, number, WIDE, tilted)
    level_result = vote_on(
        SweepVote(2, CLASSES), [(then, np.where(upper, 2, 3), 0.9, IDENTITY), (now, np.where(upper, 3, 2), 0.3, at)]
    )
    assert (result.labels == level_result.labels).mean() > 0.99


def test_rows_from_rings_vote_by_elevation() -> None:
    config = replace(WIDE, rows="ring_from_top")
    points = wall()
    rings = torch.from_numpy(np.repeat(np.arange(32), len(AZIMUTH)))
    vote = SweepVote(2, CLASSES)
    for number, label in enumerate((4, 6), start=1):
        image = project(torch.from_numpy(points), config, rings)
        plain = replace(segmentation(points, label, 1.0 / number), image=image)
        result = vote.vote(plain, points, IDENTITY, number, config, Extrinsics())
    assert (result.labels == 4).all()


def test_points_that_cannot_be_used_stay_unlabeled() -> None:
    points = wall()
    points[3], points[4, :3] = math.nan, 0.0
    labels, confidences = np.full(len(points), 7), np.full(len(points), 0.4)
    labels[[3, 4]] = confidences[[3, 4]] = 0
    vote = SweepVote(2, CLASSES)
    vote.vote(segmentation(wall(), 3, 0.9), wall(), IDENTITY, 1, WIDE, Extrinsics())
    result = vote.vote(segmentation(points, labels, confidences), points, IDENTITY, 2, WIDE, Extrinsics())
    assert result.labels[[3, 4]].tolist() == [0, 0] and result.confidences[[3, 4]].tolist() == [0, 0]
    assert (np.delete(result.labels, [3, 4]) == 3).all()


def test_earlier_sweeps_are_forgotten_when_time_goes_back_or_the_extrinsics_change() -> None:
    points = wall()
    for stamp, extrinsics in ((1, Extrinsics()), (3, Extrinsics.from_angles(0.0, 0.0, 90.0))):
        vote = SweepVote(2, CLASSES)
        vote.vote(segmentation(points, 3, 0.9), points, IDENTITY, 2, WIDE, Extrinsics())
        result = vote.vote(segmentation(points, 7, 0.1), points, IDENTITY, stamp, WIDE, extrinsics)
        assert (result.labels == 7).all()


def test_an_empty_sweep_and_a_broken_pose() -> None:
    vote, empty = SweepVote(3, CLASSES), np.zeros((0, 4), np.float32)
    for number, points in enumerate((wall(), empty, wall()), start=1):
        result = vote.vote(segmentation(points, 1, 0.5), points, IDENTITY, number, WIDE, Extrinsics())
        assert len(result.labels) == len(points)
    with pytest.raises(UserError, match="pose is not finite"):
        vote.vote(segmentation(empty, 1, 0.5), empty, IDENTITY * math.nan, 9, WIDE, Extrinsics())
