# SPDX-License-Identifier: Apache-2.0
"""Spatially-adaptive convolution (SAC-ISK), the block of SqueezeSegV3.

Spatially-adaptive convolution (paper, section 4) lets the weight of a 3x3 convolution vary over the image. SAC-ISK
multiplies input channel i at tap k = (ky, kx) of the window by a factor A[i, k], computed at every pixel from the
coordinates there:

    out[o, y, x] = sum over i, k of  W[o, i, k] * A[i, k, y, x] * feature[i, y + ky - 1, x + kx - 1]
    A = sigmoid(BatchNorm(conv(xyz)))
"""

from __future__ import annotations

from typing import Any

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
    padded = F.pad(pad_azimuth(feature, 1), (0, 0, 1, 1)) if circular else F.pad(feature, (1, 1, 1, 1))
    if torch.jit.is_tracing():  # which cannot record a function in Python
        return F.unfold(padded, (3, 3)).view(len(feature), -1, *feature.shape[2:])
    windows: Tensor = _Windows.apply(padded)
    return windows


class _Windows(torch.autograd.Function):
    """Nine shifted copies of padded features, and their sum as gradient.

    Same numbers as `F.unfold`; on a CPU two to five times as fast in bfloat16, and up to three times in float32.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor) -> Tensor:
        batch, channels, height, width = ctx.size = padded.shape
        windows = padded.new_empty((batch, channels, TAPS, height - 2, width - 2))
        for tap in range(TAPS):
            y, x = divmod(tap, 3)
            windows[:, :, tap] = padded[:, :, y : y + height - 2, x : x + width - 2]
        return windows.view(batch, -1, height - 2, width - 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        batch, channels, height, width = ctx.size
        of_taps = gradient.reshape(batch, channels, TAPS, height - 2, width - 2)
        total = gradient.new_zeros(ctx.size, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for tap in range(TAPS):
            y, x = divmod(tap, 3)
            total[:, :, y : y + height - 2, x : x + width - 2] += of_taps[:, :, tap]
        return total.to(gradient.dtype)
