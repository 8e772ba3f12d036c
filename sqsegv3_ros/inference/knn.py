"""KNN refinement: the label image goes in, a label for every point comes out, voted by its neighbours in range.

The method of RangeNet++, with the numbers of the official release (search window around the point's pixel, range
differences weighted by an inverse Gaussian, the k nearest vote).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import EMPTY, RangeImage, _from_dict, constant, restore
from sqsegv3_ros.parallel import share

MODES = ("off", "safe", "official")
_CHUNK = 8192  # points whose neighbourhoods are gathered at once, so few that they stay in the cache


@dataclass(frozen=True)
class KnnConfig:
    """How the neighbours vote.

    mode: 'off' (every point takes its pixel's label), 'safe' (a point without a valid vote keeps its pixel's label) or
        'official' (such a point becomes class 1, as in the release).
    k: neighbours that vote. search: side of the window in pixels, odd. sigma: of the Gaussian, pixels.
    cutoff_m: a neighbour whose weighted range difference is larger has no vote; 0 or less: no limit (empty pixels then
        vote in 'official' mode, as in the release, and never in 'safe' mode). Metres.
    """

    mode: str = "safe"
    k: int = 5
    search: int = 5
    sigma: float = 1.0
    cutoff_m: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"knn mode must be one of {', '.join(MODES)}, found '{self.mode}'")
        if not 1 <= self.search <= 15 or self.search % 2 == 0:
            raise UserError(f"knn search must be an odd number in 1..15, found {self.search}")
        if not 1 <= self.k <= self.search**2:
            raise UserError(f"knn k must lie in 1..{self.search**2} (search window squared), found {self.k}")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UserError(f"knn sigma must be greater than 0, found {self.sigma}")
        if not math.isfinite(self.cutoff_m):
            raise UserError(f"knn cutoff_m must be finite, found {self.cutoff_m}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KnnConfig:
        """The inverse of `to_dict`. Raises UserError naming an unknown or malformed setting."""
        return _from_dict(cls, data, "knn")


def inverse_gaussian(search: int, sigma: float) -> Tensor:
    """(search * search,) float32: 1 - G, with G a Gaussian over the window that sums to 1."""
    offset = torch.arange(search, dtype=torch.float32) - (search - 1) / 2.0
    distance = offset.view(-1, 1) ** 2 + offset.view(1, -1) ** 2
    gaussian = (1.0 / (2.0 * math.pi * sigma**2)) * torch.exp(-distance / (2.0 * sigma**2))
    return (1.0 - gaussian / gaussian.sum()).flatten()


@lru_cache(16)
def _inverse_gaussian(search: int, sigma: float) -> tuple[float, ...]:
    return tuple(inverse_gaussian(search, sigma).tolist())


def refine(label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int, threads: int = 1) -> Tensor:
    """Labels of the points from the labels of the pixels.

    label_image: (H, W) integer labels on the image's device. Returns (N,) of the same type; points that cannot be
    used get label 0.
    """
    own = restore(label_image, image)
    if config.mode == "off" or not len(own):
        return own
    window = _Window(label_image, image, config, num_classes)
    if own.device.type != "cpu":  # which points need a vote is known on the device alone: let all of them vote
        voted = window.vote(image.pixel, image.point_range).to(own.dtype)
        labels = torch.where(voted > 0, voted, own if config.mode == "safe" else 1)
        return labels.masked_fill_(~image.usable, 0)

    decided = window.decided().flatten().index_select(0, image.pixel) | ~image.usable
    undecided = torch.from_numpy(np.flatnonzero(~decided.numpy()))
    pixel, point_range = (values.index_select(0, undecided) for values in (image.pixel, image.point_range))
    voted = window.vote(pixel, point_range).to(own.dtype)
    fallback = own.index_select(0, undecided) if config.mode == "safe" else torch.ones_like(voted)
    return own.index_copy_(0, undecided, torch.where(voted > 0, voted, fallback))


class _Window:
    """The neighbourhoods of the pixels, from which points are voted on.

    A neighbour is one int64: its label in the lower half and the bits of its float32 range, later of its distance, in
    the upper. Positive floats order like their bits, so the k smallest integers are the k nearest, labels included.
    """

    def __init__(self, label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        self.label_type = torch.uint8 if num_classes <= 256 else torch.int32
        self.label_image = label_image.to(self.label_type)
        self.image = image
        # the largest weighted distance that votes; the release lets empty pixels, infinitely far, vote without a cutoff
        farthest = torch.finfo(torch.float32).max if config.mode == "safe" else math.inf
        self.limit = config.cutoff_m if config.cutoff_m > 0 else farthest
        self.weights = constant(_inverse_gaussian(config.search, config.sigma), label_image.device)
        pad = config.search // 2
        self.padding = 2 * pad
        pitch = image.width + self.padding
        # padding holds range 0 and label 0, as in the release: no wrap around the azimuth seam
        padded = torch.zeros((image.height + self.padding, pitch), dtype=torch.int64, device=label_image.device)
        inner = padded[pad : pad + image.height, pad : pad + image.width]
        _halves(inner, torch.int32)[..., 0].copy_(label_image)
        _halves(inner, torch.float32)[..., 1].copy_(F.threshold(image.range, EMPTY / 2, math.inf))
        corners = (image.height - 1) * pitch + image.width
        self.rows = [padded.as_strided((corners, config.search), (1, 1), r * pitch) for r in range(config.search)]

    def decided(self) -> Tensor:
        """(H, W) bool: pixels whose points take the pixel's own label whatever the distances are.

        The centre always votes (its distance is 0) and labels 0 are never counted: where the window's pixels that can
        vote hold no other class than the centre's, the vote has one candidate.
        """
        labels, top = self.label_image, self.num_classes - 1
        voters = labels if self.limit == math.inf else labels * (self.image.range >= 0)
        pair = torch.stack([voters, (top - voters) * voters.bool()])
        highest, lowest = _window_max(_window_max(pair, self.config.search, 1), self.config.search, 2)
        return labels.bool() & (highest <= labels) & (lowest <= top - labels)

    def vote(self, pixel: Tensor, point_range: Tensor) -> Tensor:
        """(M,) winning labels of points by their (M,) pixel and range; 0 where nobody had a valid vote."""
        corner = pixel + self.padding * torch.div(pixel, self.image.width, rounding_mode="floor")
        size = _CHUNK if pixel.device.type == "cpu" else max(len(pixel), 1)

        def vote(begin: int, end: int) -> Tensor:
            chunks = zip(corner[begin:end].split(size), point_range[begin:end].split(size), strict=True)
            return torch.cat([self._vote(*chunk) for chunk in chunks])

        return torch.cat(share(vote, len(pixel), _CHUNK))

    def _vote(self, corner: Tensor, point_range: Tensor) -> Tensor:
        search, k = self.config.search, self.config.k
        neighbours = torch.empty((len(corner), search**2), dtype=torch.int64, device=corner.device)
        for row, part in zip(self.rows, neighbours.split(search, 1), strict=True):
            torch.index_select(row, 0, corner, out=part)
        distance = _halves(neighbours, torch.float32)[..., 1]
        distance[:, distance.shape[1] // 2] = point_range
        distance.sub_(point_range.unsqueeze(1)).abs_().mul_(self.weights)
        nearest = _smallest(neighbours, k).t().clone(memory_format=torch.contiguous_format)
        labels = nearest.to(self.label_type).mul_(_halves(nearest, torch.float32)[..., 1] <= self.limit)
        votes = torch.zeros_like(labels, dtype=torch.uint8)
        for candidate in labels:
            votes += (labels == candidate).view(torch.uint8)
        votes *= labels.bool()  # label 0 never counts
        # most votes first, the lowest class of those with equally many
        bits = self.num_classes.bit_length()
        highest = 2**bits - 1
        rank = votes.to(torch.int32).mul_(2**bits).add_(highest).sub_(labels)
        return highest - rank.amax(0).bitwise_and_(highest)


def _halves(values: Tensor, dtype: torch.dtype) -> Tensor:
    """int64 (...) -> (..., 2) of a type of 4 bytes: the lower half comes first (little-endian), then the upper."""
    return values.view(dtype).unflatten(-1, (-1, 2))


def _smallest(values: Tensor, k: int) -> Tensor:
    """(M, n) -> (M, k): the k smallest of each row, in any order. The values may be reordered."""
    if values.device.type != "cpu":
        return values.topk(k, dim=1, largest=False, sorted=False).values
    # six times as fast as torch's topk; numpy lets the other threads run meanwhile
    values.numpy().partition(k - 1, axis=1)
    return values[:, :k]


def _window_max(images: Tensor, search: int, dim: int) -> Tensor:
    """The largest value within half a window to both sides along a dimension."""
    size = images.shape[dim]
    result = images.clone()
    for step in range(1, min(search // 2, size - 1) + 1):
        for source, target in ((step, 0), (0, step)):
            part = result.narrow(dim, target, size - step)
            torch.maximum(part, images.narrow(dim, source, size - step), out=part)
    return result
