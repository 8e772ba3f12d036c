# SPDX-License-Identifier: Apache-2.0
"""The vote of several sweeps on the labels of the last one.

Earlier sweeps are moved into the last sweep's frame and projected into its image. An earlier point votes on the points
in its pixel if their ranges agree, so that what has moved or was hidden does not vote.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.backends import torch_threads
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.range_image import ProjectionConfig, RangeImage, project
from sqsegv3_ros.inference.segmenter import Segmentation

# An earlier point votes if its range differs by less than this: noise and small errors of the pose near the sensor, and
# the depth of a pixel's footprint on a slanted surface far from it
AGREEMENT_M, AGREEMENT_PER_M = 0.2, 0.02

Pose = npt.NDArray[np.float64]
"""(4, 4) transform from the sensor frame to a fixed frame."""


@dataclass(frozen=True)
class _Sweep:
    """The points that keep a pixel: (M, 4) levelled, (M,) labels and confidences; pose: fixed frame <- levelled."""

    points: Tensor
    labels: Tensor
    confidences: Tensor
    pose: Pose


class SweepVote:
    """The last sweeps of one sensor; at most one point per pixel of each is kept.

    Args:
        count: Sweeps that vote, the last one included; 2 or more.
        classes: Number of classes.
    """

    def __init__(self, count: int, classes: int) -> None:
        self.count, self._classes = count, classes
        self._earlier: deque[_Sweep] = deque(maxlen=count - 1)
        self._stamp_ns = 0
        self._seen_by: tuple[ProjectionConfig, Extrinsics] | None = None

    def vote(
        self,
        segmentation: Segmentation,
        points: npt.NDArray[np.float32],
        pose: Pose,
        stamp_ns: int,
        projection: ProjectionConfig,
        extrinsics: Extrinsics,
    ) -> Segmentation:
        """Vote on the labels of a sweep, and keep it for the next ones.

        The weight of a vote is its confidence. Earlier sweeps are forgotten if time goes back, as when a recording is
        replayed again, or if projection or extrinsics change.

        Args:
            segmentation: Result for the sweep.
            points: (N, 4) float32 its points, x, y, z in metres in the sensor frame.
            pose: The sensor's pose at the sweep.
            stamp_ns: The sweep's stamp.
            projection: Projection of the segmentation.
            extrinsics: Extrinsics of the segmentation.

        Returns:
            The segmentation with the voted labels. The confidence of a point is the sum of the votes for its label
            divided by the number of sweeps that voted. Images are those of the sweep alone.

        Raises:
            UserError: The pose is not finite.
        """
        if not np.isfinite(pose).all():
            raise UserError(f"the sensor's pose is not finite: {pose.tolist()}")
        if stamp_ns <= self._stamp_ns or self._seen_by != (projection, extrinsics):
            self._earlier.clear()
        self._stamp_ns, self._seen_by = stamp_ns, (projection, extrinsics)
        with torch.inference_mode(), torch_threads(1):  # small operations wait longer for a second thread than it saves
            image = segmentation.image
            if projection.needs_rings:  # earlier points have no ring in this sweep
                projection = replace(projection, rows="elevation")
                image = project(extrinsics.level(torch.from_numpy(points).to(image.pixel.device)), projection)
            level_pose = pose.copy()
            level_pose[:3, :3] = pose[:3, :3] @ np.array(extrinsics.rotation).T
            device = image.pixel.device
            own = segmentation.labels
            labels = torch.from_numpy(own if own.dtype == np.uint8 else own.astype(np.int32)).to(device)
            confidences = torch.from_numpy(segmentation.confidences).to(device)
            kept = _sweep(image, labels, confidences, level_pose)
            if self._earlier:
                labels, confidences = self._count(image, labels, confidences, level_pose, projection)
            if len(kept.points):
                self._earlier.append(kept)
        return replace(
            segmentation,
            labels=labels.cpu().numpy().astype(own.dtype, copy=False),
            confidences=confidences.cpu().numpy(),
        )

    def _count(
        self, image: RangeImage, labels: Tensor, confidences: Tensor, pose: Pose, projection: ProjectionConfig
    ) -> tuple[Tensor, Tensor]:
        """Count the votes: (N,) labels and confidences."""
        votes = [(labels, confidences), *(_votes_of(sweep, image, pose, projection) for sweep in self._earlier)]
        disputed = torch.zeros_like(image.usable)
        for ballot, weight in votes[1:]:
            disputed |= (ballot != labels) & (weight > 0)
        where = disputed.nonzero().squeeze(1)
        score = confidences.new_zeros(len(where), self._classes)
        for ballot, weight in votes:
            score.scatter_add_(1, ballot.index_select(0, where).long()[:, None], weight.index_select(0, where)[:, None])
        labels = labels.index_copy(0, where, score.argmax(1).to(labels.dtype))
        for_label, voters = torch.zeros_like(confidences), torch.zeros_like(confidences)
        for ballot, weight in votes:
            for_label += weight * (ballot == labels)
            voters += weight > 0
        return labels, for_label / voters.clamp_min_(1)


def _sweep(image: RangeImage, labels: Tensor, confidences: Tensor, pose: Pose) -> _Sweep:
    index = image.index.flatten()
    filled = (index >= 0).nonzero().squeeze(1)
    winner = index.index_select(0, filled)
    points = image.channels[1:].flatten(1).index_select(1, filled).T.contiguous()
    return _Sweep(points, labels.index_select(0, winner), confidences.index_select(0, winner), pose)


def _votes_of(sweep: _Sweep, image: RangeImage, pose: Pose, projection: ProjectionConfig) -> tuple[Tensor, Tensor]:
    """(N,) labels and weights of an earlier sweep's votes for the points of an image; weight 0: no vote."""
    moved = np.linalg.inv(pose) @ sweep.pose  # levelled sensor frame now <- then
    rotation = sweep.points.new_tensor(moved[:3, :3])
    xyz = sweep.points[:, :3] @ rotation.T + sweep.points.new_tensor(moved[:3, 3])
    earlier = project(torch.cat([xyz, sweep.points[:, 3:]], 1), projection)
    index, pixel = earlier.index.flatten(), image.pixel
    source = index.clamp_min(0)
    weights = sweep.confidences.index_select(0, source) * (index >= 0)
    difference = (earlier.range.flatten().index_select(0, pixel) - image.point_range).abs_()
    agrees = (difference < AGREEMENT_M + AGREEMENT_PER_M * image.point_range).logical_and_(image.usable)
    return sweep.labels.index_select(0, source).index_select(0, pixel), weights.index_select(0, pixel) * agrees
