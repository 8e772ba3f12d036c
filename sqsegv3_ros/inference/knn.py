# SPDX-License-Identifier: Apache-2.0
"""KNN refinement of point labels: every point is voted on by its neighbours in the range image.

The method of RangeNet++ with the numbers of the reference implementation: a search window around the point's pixel,
range differences weighted by an inverse Gaussian, a vote of the k nearest.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import RangeImage, array, constant, library, restore, settings_from_dict

MODES = ("off", "safe", "official")

_CHUNK = 32_000  # rows of windows gathered at once: they stay in the cache, and torch wakes no thread for so few
_LOWER, _UPPER = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of an int64


@dataclass(frozen=True)
class KnnConfig:
    """How the neighbours vote.

    Attributes:
        mode: 'off' (every point gets its pixel's label), 'safe' (a point without a valid vote keeps its pixel's label)
            or 'official' (such a point becomes class 1, as in the reference implementation).
        k: Neighbours that vote.
        search: Side of the window in pixels, odd.
        sigma: Standard deviation of the Gaussian in pixels.
        cutoff_m: Largest weighted range difference in metres that votes; 0 or less: no limit (empty pixels then vote in
            'official' mode, as in the reference implementation, and never in 'safe' mode).
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
            raise UserError(f"knn k must be in 1..{self.search**2} (search window squared), found {self.k}")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UserError(f"knn sigma must be greater than 0, found {self.sigma}")
        if not math.isfinite(self.cutoff_m):
            raise UserError(f"knn cutoff_m must be finite, found {self.cutoff_m}")

    @property
    def limit_m(self) -> float:
        """Largest weighted range difference that votes; empty pixels are infinitely far."""
        farthest = float(np.finfo(np.float32).max) if self.mode == "safe" else math.inf
        return self.cutoff_m if self.cutoff_m > 0 else farthest

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KnnConfig:
        """The inverse of `to_dict`. Raises UserError naming an unknown or malformed setting."""
        return settings_from_dict(cls, data, "knn")


def refine(label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int, threads: int = 1) -> Tensor:
    """Labels of the points from the labels of the pixels.

    Args:
        label_image: (H, W) integer labels, on the image's device.
        image: The range image.
        config: The vote.
        num_classes: Classes, label 0 included.
        threads: CPU threads that share the points.

    Returns:
        (N,) labels of the same type; 0 for unusable points.
    """
    labels = restore(label_image, image)
    if config.mode == "off" or not len(labels):
        return labels
    xp, own = library(labels), array(labels)
    voters: Any = slice(None)  # on a device, which points need a vote is unknown to the host: all of them vote
    if xp is np:
        decided = uniform_windows(label_image, image, config, num_classes)
        voters = np.flatnonzero(array(image.usable) & ~decided.take(array(image.pixel)))
    pixel, point_range = (torch.as_tensor(array(values)[voters]) for values in (image.pixel, image.point_range))
    voted = array(vote(pixel, point_range, label_image, image, config, num_classes, threads))
    own[voters] = xp.where(voted > 0, voted, own[voters] if config.mode == "safe" else 1)
    own *= array(image.usable)
    return labels


def uniform_windows(label_image: Tensor, image: RangeImage, config: KnnConfig, num_classes: int) -> np.ndarray:
    """(H, W) bool: pixels whose points keep the pixel's own label, whatever the distances are.

    The pixel itself always votes (its distance is 0) and label 0 never counts. If no pixel of the window that can vote
    holds another class, only one class can win.
    """
    labels = array(label_image).astype(np.uint8 if num_classes <= 256 else np.int32)
    valid = labels if config.limit_m == math.inf else labels * (array(image.range) >= 0)
    top, pad, (height, width) = num_classes - 1, config.search // 2, labels.shape
    padded = np.pad([valid, (top - valid) * (valid > 0)], ((0, 0), (pad, pad), (pad, pad)))
    rows = reduce(np.maximum, (padded[:, :, i : i + width] for i in range(config.search)))
    highest, lowest = reduce(np.maximum, (rows[:, i : i + height] for i in range(config.search)))
    return (labels > 0) & (highest <= labels) & (lowest <= top - labels)


def vote(
    pixel: Tensor,
    point_range: Tensor,
    label_image: Tensor,
    image: RangeImage,
    config: KnnConfig,
    num_classes: int,
    threads: int = 1,
) -> Tensor:
    """(M,) int32 winning labels of points by their (M,) pixel and range; 0 if nobody had a valid vote.

    A neighbour is one int64: its label in the lower half, the bits of its float32 range, later of its distance, in the
    upper. Positive floats order like their bits, so the k smallest integers are the k nearest, the lower label first.
    """
    xp, device = library(pixel), pixel.device
    search, k, pad = config.search, config.k, config.search // 2
    pitch = image.width + 2 * pad
    # padding holds range 0 and label 0, as in the reference implementation: no wrap around the azimuth seam
    padded = torch.zeros((image.height + 2 * pad, pitch), dtype=torch.int64, device=device)
    inner = (slice(pad, pad + image.height), slice(pad, pad + image.width))
    ranges = array(image.range)
    array(padded).view(xp.int32)[:, _LOWER::2][inner] = array(label_image)
    array(padded).view(xp.float32)[:, _UPPER::2][inner] = xp.where(ranges < 0, math.inf, ranges)
    window_rows = [padded.flatten()[i * pitch :].unfold(0, search, 1) for i in range(search)]
    corner = pixel + 2 * pad * torch.div(pixel, image.width, rounding_mode="floor")
    weights = array(constant(_inverse_gaussian(search, config.sigma), device))
    label_type = xp.uint8 if num_classes <= 256 else xp.int32
    bits = num_classes.bit_length()
    highest = 2**bits - 1
    result = torch.empty(len(pixel), dtype=torch.int32, device=device)
    winners, own_range = array(result), array(point_range)[:, None]

    def vote_chunk(begin: int, end: int) -> None:
        window = torch.empty((end - begin, search, search), dtype=torch.int64, device=device)
        for i, rows in enumerate(window_rows):
            torch.index_select(rows, 0, corner[begin:end], out=window[:, i])
        neighbours = array(window.flatten(1))
        distance = neighbours.view(xp.float32)[:, _UPPER::2]
        distance[:, search**2 // 2 : search**2 // 2 + 1] = own_range[begin:end]
        distance[:] = xp.abs(distance - own_range[begin:end]) * weights
        nearest = _smallest(neighbours, k)
        valid = nearest.view(xp.float32)[:, _UPPER::2] <= config.limit_m
        labels = xp.asarray(nearest.view(xp.int32)[:, _LOWER::2], dtype=label_type) * valid
        votes = sum((labels == candidate).view(xp.uint8) for candidate in labels) * (labels > 0)
        # most votes first, the lowest class of those with equally many
        rank = (xp.asarray(votes, dtype=xp.int32) << bits) + (highest - labels)
        winners[begin:end] = highest - (xp.amax(rank, 0) & highest)

    step = _CHUNK // search if xp is np else max(len(pixel), 1)
    _share(vote_chunk, len(pixel), step, threads)
    return result


def inverse_gaussian(search: int, sigma: float) -> Tensor:
    """(search * search,) float32: 1 - G, with G a Gaussian over the window that sums to 1."""
    offset = torch.arange(search, dtype=torch.float32) - (search - 1) / 2.0
    distance = offset.view(-1, 1) ** 2 + offset.view(1, -1) ** 2
    gaussian = (1.0 / (2.0 * math.pi * sigma**2)) * torch.exp(-distance / (2.0 * sigma**2))
    return (1.0 - gaussian / gaussian.sum()).flatten()


@lru_cache(16)
def _inverse_gaussian(search: int, sigma: float) -> tuple[float, ...]:
    return tuple(inverse_gaussian(search, sigma).tolist())


def _smallest(values: Any, k: int) -> Any:
    """(M, n) -> (k, M) contiguous: the k smallest of each row, in any order. The values may be reordered."""
    if isinstance(values, np.ndarray):  # six times as fast as torch's topk
        values.partition(k - 1, axis=1)
        return np.ascontiguousarray(values[:, :k].T)
    return values.topk(k, dim=1, largest=False, sorted=False).values.t().contiguous()


def _share(work: Callable[[int, int], None], length: int, step: int, threads: int) -> None:
    """Do work(begin, end) for steps of range(length); the calling thread and `threads` - 1 others do a slice each."""
    threads = max(1, min(threads, length // step))
    bounds = [length * i // threads for i in range(threads + 1)]

    def do_slice(first: int, last: int) -> None:
        for begin in range(first, last, step):
            work(begin, min(begin + step, last))

    others = [_pool(threads - 1).submit(do_slice, *slice_) for slice_ in pairwise(bounds[1:])]
    do_slice(bounds[0], bounds[1])
    for other in others:
        other.result()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="knn")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
