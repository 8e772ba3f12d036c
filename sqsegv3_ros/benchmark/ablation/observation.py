# SPDX-License-Identifier: Apache-2.0
"""Per-pixel coordinate statistics and filter activations.

The paper's observation (its sections 1, 3 and 4.1, figures 2 and 3): the distribution of a LiDAR image's channels
differs from place to place in the image, so the filters of standard convolutions are active in some places only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, normalize, project
from sqsegv3_ros.network.model import EncoderStage, SqueezeSegV3

Points = npt.NDArray[np.float32]
LOCATIONS = 3
"""Locations along either side of the image, evenly spread; the paper's figure 2 shows 3 x 3."""
REACH = 1 / 64
"""How near to a location a pixel counts as there, as share of the height and the width: the paper had 19,130 scans."""


@dataclass(frozen=True)
class Coordinates:
    """Coordinates by pixel, over many scans.

    Attributes:
        mean: (3, H, W) mean x, y, z in metres of the pixels with a point, NaN if no scan has one.
        scans: Number of scans.
        places: (row, column) of the nine locations.
        samples: The (n, 3) coordinates at each location.
    """

    mean: npt.NDArray[np.float64]
    scans: int
    places: list[tuple[int, int]]
    samples: list[npt.NDArray[np.float32]]


def coordinates(scans: Iterable[Points], projection: ProjectionConfig) -> Coordinates:
    """Mean coordinates per pixel. scans: (N, 4) points each. Raises UserError if there are no scans."""
    height, width = projection.height, projection.width
    middle = [(2 * i + 1) / (2 * LOCATIONS) for i in range(LOCATIONS)]
    places = [(int(height * v), int(width * u)) for v in middle for u in middle]
    total, filled, count = np.zeros((3, height, width)), np.zeros((height, width)), 0
    seen: list[list[npt.NDArray[np.float32]]] = [[] for _ in places]
    up, aside = int(height * REACH), int(width * REACH)
    for points in scans:
        image = project(torch.from_numpy(points), projection)
        xyz, mask = image.xyz.numpy(), image.mask.numpy()
        total += np.where(mask, xyz, 0)
        filled += mask
        count += 1
        for samples, (row, column) in zip(seen, places, strict=True):
            near = (slice(row - up, row + up + 1), slice(column - aside, column + aside + 1))
            samples.append(xyz[:, near[0], near[1]][:, mask[near]].T)
    if not count:
        raise UserError("no scans found")
    mean = np.where(filled > 0, total / np.maximum(filled, 1), np.nan)
    return Coordinates(mean, count, places, [np.concatenate(samples) for samples in seen])


@dataclass(frozen=True)
class Activation:
    """What the filters of one layer do. mean: (C, H, W), over the scans. evenness: (C,), see `evenness`."""

    mean: npt.NDArray[np.float64]
    evenness: npt.NDArray[np.float64]


def activation(
    network: SqueezeSegV3,
    scans: Iterable[Points],
    projection: ProjectionConfig,
    normalization: Normalization,
    stage: int,
) -> Activation:
    """Mean activation of the first convolution, adaptive or not, of a stage's first block, after its ReLU.

    stage: 1..5. scans: (N, 4) points each. Raises UserError if there is no such stage or no scan.
    """
    if not 1 <= stage <= len(network.encoder):
        raise UserError(f"the encoder has stages 1 to {len(network.encoder)}, found {stage}")
    chosen = network.encoder[stage - 1]
    assert isinstance(chosen, EncoderStage)
    layer = chosen.blocks[0].mix
    assert isinstance(layer, nn.Module)
    caught: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: caught.append(output[0].double()))
    total, count = torch.zeros(()), 0
    try:
        with torch.inference_mode():
            for points in scans:
                image = project(torch.from_numpy(points), projection)
                network.eval().encode(normalize(image, normalization))
                total = total + caught.pop()
                count += 1
    finally:
        hook.remove()
    if not count:
        raise UserError("no scans found")
    mean = (total / count).numpy()
    return Activation(mean, evenness(mean))


def evenness(mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(C, H, W) activations, none below 0 -> (C,) over how much of the image each filter's activity is spread.

    The participation ratio (sum a)^2 / (pixels * sum a^2): 1 if all pixels are equally active, s if a share s of
    them is and the others are 0. NaN for a filter that is never active.
    """
    flat = mean.reshape(len(mean), -1)
    square = flat.shape[1] * (flat**2).sum(1)
    return np.divide(flat.sum(1) ** 2, square, out=np.full(len(flat), np.nan), where=square > 0)
