# SPDX-License-Identifier: Apache-2.0
"""Spatially-adaptive convolution (SAC-ISK), the block of SqueezeSegV3.

Spatially-adaptive convolution (paper, section 4) lets the weight of a 3x3 convolution vary over the image. SAC-ISK
multiplies input channel i at tap k = (ky, kx) of the window by a factor A[i, k], computed at every pixel from the
coordinates there:

    out[o, y, x] = sum over i, k of  W[o, i, k] * A[i, k, y, x] * feature[i, y + ky - 1, x + kx - 1]
    A = sigmoid(BatchNorm(conv(xyz)))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm, pad_azimuth

TAPS = 9
"""Pixels of the 3x3 window."""

BLOCK_BN_MOMENTUM = 0.1
"""The release ignores the configured momentum within its blocks."""


class Attention(nn.Module):
    """Attention factors computed from coordinates.

    Args:
        factors: Number of factors per pixel.
        kernel: Side of the convolution over the coordinates.
        circular: Whether the left and the right edge are neighbours.
    """

    def __init__(self, factors: int, kernel: int, *, circular: bool):
        super().__init__()
        self.conv = AzimuthConv2d(3, factors, kernel, circular=circular)
        self.norm = nn.BatchNorm2d(factors, momentum=BLOCK_BN_MOMENTUM)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Compute factors (N, F, H, W) in (0, 1) from coordinates (N, 3, H, W)."""
        return torch.sigmoid(self.norm(self.conv(coordinates)))


class SpatiallyAdaptiveBlock(nn.Module):
    """A spatially-adaptive and a standard 3x3 convolution with a residual connection around both.

    Both have a bias, BatchNorm and ReLU; nothing follows the sum (official release).

    Args:
        channels: Channels of input and output.
        attention_kernel: Side of the convolution over the coordinates.
        circular: Whether the left and the right edge are neighbours.
    """

    def __init__(self, channels: int, *, attention_kernel: int, circular: bool):
        super().__init__()
        self.circular = circular
        self.attention = Attention(TAPS * channels, attention_kernel, circular=circular)
        self.mix = ConvNorm(
            AzimuthConv2d(TAPS * channels, channels, 1, circular=circular), momentum=BLOCK_BN_MOMENTUM, slope=0.0
        )
        self.conv = ConvNorm(
            AzimuthConv2d(channels, channels, 3, circular=circular), momentum=BLOCK_BN_MOMENTUM, slope=0.0
        )

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Compute features (N, C, H, W) from features (N, C, H, W) and coordinates (N, 3, H, W)."""
        adapted = self.attention(coordinates) * unfold3x3(feature, self.circular)
        return feature + self.conv(self.mix(adapted))


def unfold3x3(feature: Tensor, circular: bool) -> Tensor:
    """Unfold the 3x3 window of every pixel.

    Args:
        feature: (N, C, H, W).
        circular: Whether the left and the right edge are neighbours.

    Returns:
        (N, 9 C, H, W); channel c * 9 + ky * 3 + kx holds feature[c, y + ky - 1, x + kx - 1].
    """
    batch, _, height, width = feature.shape
    if circular:
        windows = F.unfold(pad_azimuth(feature, 1), (3, 3), padding=(1, 0))
    else:
        windows = F.unfold(feature, (3, 3), padding=(1, 1))
    return windows.view(batch, -1, height, width)
