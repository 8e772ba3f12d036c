# SPDX-License-Identifier: Apache-2.0
"""The reference implementation: points to labels as the official release computes them.

Written from the release's facts, not from its code: numpy projection that sorts the points and overwrites pixels, an
eager network that runs all five heads and materialises the unfolded features, KNN that unfolds the whole image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.benchmark.stages import COMPARED
from sqsegv3_ros.inference.knn import KnnConfig, inverse_gaussian
from sqsegv3_ros.inference.range_image import EMPTY, Normalization, ProjectionConfig

if TYPE_CHECKING:
    from sqsegv3_ros.network.model import SqueezeSegV3


@dataclass(frozen=True)
class ReferenceImage:
    """The LiDAR image as numpy arrays.

    range, remission: (H, W) float32; xyz: (H, W, 3) float32; all -1 where empty. index: (H, W) int32, -1 where empty.
    px, py: (N,) int32 column and row of each point; point_range: (N,) float32, metres.
    """

    range: npt.NDArray[np.float32]
    xyz: npt.NDArray[np.float32]
    remission: npt.NDArray[np.float32]
    index: npt.NDArray[np.int32]
    px: npt.NDArray[np.int32]
    py: npt.NDArray[np.int32]
    point_range: npt.NDArray[np.float32]


def project(points: npt.NDArray[np.float32], config: ProjectionConfig) -> ReferenceImage:
    """(N, 4) float32 x, y, z, remission, all finite and off the origin -> image (laserscan.py of the release)."""
    xyz, remission = points[:, :3], points[:, 3]
    fov_down, fov_up = (abs(a) / 180 * np.pi for a in (config.fov_down_deg, config.fov_up_deg))
    point_range = np.linalg.norm(xyz, 2, axis=1)
    yaw = -np.arctan2(xyz[:, 1], xyz[:, 0])
    pitch = np.arcsin(xyz[:, 2] / point_range)
    u = np.floor(0.5 * (yaw / np.pi + 1.0) * config.width)
    v = np.floor((1.0 - (pitch + fov_down) / (fov_up + fov_down)) * config.height)
    px = np.maximum(0, np.minimum(config.width - 1, u)).astype(np.int32)
    py = np.maximum(0, np.minimum(config.height - 1, v)).astype(np.int32)

    far_first = np.argsort(point_range)[::-1]
    rows, columns = py[far_first], px[far_first]
    shape = (config.height, config.width)
    image = ReferenceImage(
        range=np.full(shape, EMPTY, np.float32),
        xyz=np.full((*shape, 3), EMPTY, np.float32),
        remission=np.full(shape, EMPTY, np.float32),
        index=np.full(shape, -1, np.int32),
        px=px,
        py=py,
        point_range=point_range,
    )
    image.range[rows, columns] = point_range[far_first]
    image.xyz[rows, columns] = xyz[far_first]
    image.remission[rows, columns] = remission[far_first]
    image.index[rows, columns] = far_first
    return image


def normalize(image: ReferenceImage, normalization: Normalization, official_mask: bool) -> Tensor:
    """(1, 5, H, W) float32, 0 in masked pixels."""
    remission, exponent = torch.from_numpy(image.remission), normalization.remission_exponent
    if exponent != 1.0:
        remission = remission.clamp_min(0.0).pow(exponent)
    channels = torch.cat(
        [
            torch.from_numpy(image.range).unsqueeze(0),
            torch.from_numpy(image.xyz).permute(2, 0, 1),
            remission.unsqueeze(0),
        ]
    )
    mask = torch.from_numpy((image.index > 0 if official_mask else image.index >= 0).astype(np.int32))
    channels = (channels - torch.tensor(normalization.means)[:, None, None]) / torch.tensor(normalization.stds)[
        :, None, None
    ]
    return (channels * mask.float()).unsqueeze(0)


def vote(label_image: Tensor, image: ReferenceImage, config: KnnConfig, num_classes: int) -> Tensor:
    """(H, W) int64 labels -> (N,) int64 labels (postproc/KNN.py of the release)."""
    distance, pixel = _distances(image, config)
    nearest = distance.topk(config.k, dim=0, largest=False, sorted=False).indices

    size = config.search
    labels = F.unfold(label_image[None, None].float(), (size, size), padding=size // 2)[0][:, pixel]
    labels = labels.gather(0, nearest).long()
    if config.cutoff_m > 0:
        labels[distance.gather(0, nearest) > config.cutoff_m] = num_classes
    ballots = torch.zeros(num_classes + 1, len(pixel))
    ballots.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.float32))
    return ballots[1:-1].argmax(0) + 1


def tied(image: ReferenceImage, config: KnnConfig) -> Tensor:
    """(N,) bool: whether the last neighbour that votes and the first that does not are equally far: either may vote."""
    if config.k >= config.search**2:
        return torch.zeros(len(image.px), dtype=torch.bool)
    last, next_ = _distances(image, config)[0].topk(config.k + 1, dim=0, largest=False).values[-2:]
    votes = last <= config.cutoff_m if config.cutoff_m > 0 else next_.isfinite()
    return votes & (next_ <= last * (1 + 1e-6))


def _distances(image: ReferenceImage, config: KnnConfig) -> tuple[Tensor, Tensor]:
    """(search ** 2, N) weighted distances of the pixels around each point, and (N,) the points' own pixels."""
    size, half = config.search, config.search // 2
    own_range = torch.from_numpy(image.point_range)
    pixel = torch.from_numpy(image.py).long() * image.range.shape[1] + torch.from_numpy(image.px).long()

    ranges = F.unfold(torch.from_numpy(image.range)[None, None], (size, size), padding=half)[0][:, pixel]
    ranges[ranges < 0] = float("inf")
    ranges[size * size // 2] = own_range
    return (ranges - own_range).abs() * inverse_gaussian(size, config.sigma)[:, None], pixel


class ReferenceSegmenter:
    """From points to labels; the counterpart of `Segmenter`."""

    def __init__(
        self,
        network: SqueezeSegV3,
        projection: ProjectionConfig,
        normalization: Normalization,
        knn: KnnConfig,
        num_classes: int,
    ) -> None:
        self.network: nn.Module = network.eval()
        self.projection, self.normalization, self.knn, self.num_classes = projection, normalization, knn, num_classes

    @torch.no_grad()
    def segment(self, points: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], Tensor, dict[str, float]]:
        """(N, 4) points -> (N,) labels, the (H, W) label image, milliseconds by stage."""
        marks = [time.perf_counter()]
        image = project(points, self.projection)
        network_input = normalize(image, self.normalization, self.projection.official_mask)
        marks.append(time.perf_counter())
        softmax = [logits.softmax(1) for logits in self.network(network_input)]
        marks.append(time.perf_counter())
        label_image = softmax[0][0].argmax(0)
        labels = label_image[torch.from_numpy(image.py).long(), torch.from_numpy(image.px).long()]
        marks.append(time.perf_counter())
        if self.knn.mode != "off":
            labels = vote(label_image, image, self.knn, self.num_classes)
        marks.append(time.perf_counter())
        timings = {s: 1e3 * (after - before) for s, before, after in zip(COMPARED, marks, marks[1:], strict=False)}
        return labels.numpy(), label_image, timings
