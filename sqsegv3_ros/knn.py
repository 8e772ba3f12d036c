"""KNN refinement: the label image goes in, a label for every point comes out, voted by its neighbours in range.

The method of RangeNet++, with the numbers of the official release (search window around the point's pixel, range
differences weighted by an inverse Gaussian, the k nearest vote).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.projection import RangeImage, _from_dict, restore

MODES = ("off", "safe", "official")
_CHUNK = 16384  # points whose neighbourhoods are gathered at once: 16384 x 49 x 4 bytes stay in the cache


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


def refine(label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int) -> Tensor:
    """Labels of the points from the labels of the pixels.

    label_image: (H, W) integer labels on the image's device. Returns (N,) of the same type; points that cannot be
    used get label 0.
    """
    own = restore(label_image, image)
    if config.mode == "off" or not len(own):
        return own
    window = _Window(label_image, image, config, num_classes)
    if own.device.type != "cpu":  # which points need a vote is known on the device alone: let all of them vote
        voted = window.vote(image.pixel, image.point_range)
        labels = torch.where(voted > 0, voted, own if config.mode == "safe" else torch.ones_like(own))
        return labels.masked_fill_(~image.usable, 0)

    undecided = torch.nonzero(~restore(window.decided(), image, fill=1).bool()).flatten()
    for chunk in undecided.split(_CHUNK):
        voted = window.vote(image.pixel[chunk], image.point_range[chunk])
        fallback = own[chunk] if config.mode == "safe" else torch.ones_like(voted)
        own[chunk] = torch.where(voted > 0, voted, fallback)
    return own


class _Window:
    """The padded images around which the points' neighbourhoods are gathered."""

    def __init__(self, label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        # largest weighted distance that votes; the release lets empty pixels (infinitely far) vote without a cutoff
        self.limit = config.cutoff_m if config.cutoff_m > 0 else math.inf
        self.empty_is_silent = config.cutoff_m > 0 or config.mode == "safe"
        self.width = image.width
        self.labels_2d = label_image
        self.range_2d = image.range
        pad = (config.search - 1) // 2
        self.padded_width = image.width + 2 * pad
        # padding holds range 0 and label 0, as in the release: no wrap around the azimuth seam
        padded_range = F.pad(image.range, (pad, pad, pad, pad))
        self.ranges = padded_range.masked_fill(padded_range < 0, math.inf).flatten()
        self.labels = F.pad(label_image, (pad, pad, pad, pad)).flatten()
        step = torch.arange(config.search, device=label_image.device)
        self.offsets = (step.view(-1, 1) * self.padded_width + step).flatten()
        self.weights = inverse_gaussian(config.search, config.sigma).to(label_image.device)

    def decided(self) -> Tensor:
        """(H, W) bool: pixels whose points take the pixel's own label whatever the distances are.

        The centre always votes (its distance is 0) and labels 0 are never counted: where the window's pixels that can
        vote hold no other class than the centre's, the vote has one candidate.
        """
        own = self.labels_2d
        can_vote = own > 0
        if self.empty_is_silent:
            can_vote = can_vote & (self.range_2d >= 0)
        search = self.config.search
        highest = _window_max(torch.where(can_vote, own, 0).float(), search)
        lowest = -_window_max(torch.where(can_vote, -own.float(), -float(self.num_classes)), search)
        return (own > 0) & (highest <= own) & (lowest >= own)

    def vote(self, pixel: Tensor, point_range: Tensor) -> Tensor:
        """(M,) winning labels of points by their (M,) pixel and range; 0 where nobody had a valid vote."""
        corner = torch.div(pixel, self.width, rounding_mode="floor") * self.padded_width + pixel % self.width
        neighbours = corner.unsqueeze(1) + self.offsets
        distance = self.ranges[neighbours]
        distance[:, distance.shape[1] // 2] = point_range
        distance.sub_(point_range.unsqueeze(1)).abs_().mul_(self.weights)
        nearest, position = distance.topk(self.config.k, dim=1, largest=False, sorted=False)
        labels = self.labels[neighbours.gather(1, position)]
        if self.empty_is_silent:
            labels = labels.masked_fill((nearest > self.limit) | torch.isinf(nearest), 0)
        # most votes first, the lowest class of those with equally many; label 0 never counts
        votes = (labels.unsqueeze(2) == labels.unsqueeze(1)).sum(2)
        rank = votes * (self.num_classes + 1) - labels.to(torch.int64)
        winner = rank.masked_fill_(labels == 0, -1).argmax(1, keepdim=True)
        return labels.gather(1, winner).squeeze(1)


def _window_max(values: Tensor, search: int) -> Tensor:
    pad = search // 2
    pooled = F.max_pool2d(values[None, None], (1, search), stride=1, padding=(0, pad))
    return F.max_pool2d(pooled, (search, 1), stride=1, padding=(pad, 0))[0, 0]
