"""Features and coordinates -> features: the spatially-adaptive convolution block (SAC-ISK), in its readable form.

Spatially-adaptive convolution (paper, section 4) lets the weight of a 3x3 convolution vary over the image. SAC-ISK
gives every input channel i and every tap k = (ky, kx) of the window a factor A[i, k] at every pixel, computed from the
coordinates there:

    out[o, y, x] = sum over i, k of  W[o, i, k] * A[i, k, y, x] * feature[i, y + ky - 1, x + kx - 1]
    A = sigmoid(BatchNorm(conv(xyz)))

`deploy.py` computes the same without ever holding the 9C-channel tensors of a whole image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm, pad_azimuth

TAPS = 9
"""Pixels in the 3x3 window."""

BLOCK_BN_MOMENTUM = 0.1
"""The release hands its blocks the configured momentum, which they ignore."""


class Attention(nn.Module):
    """Coordinates (N, 3, H, W) -> the factor of every channel and tap, (N, 9 C, H, W) in (0, 1), channel-major."""

    def __init__(self, channels: int, kernel: int, *, circular: bool):
        super().__init__()
        self.conv = AzimuthConv2d(3, TAPS * channels, kernel, circular=circular)
        self.norm = nn.BatchNorm2d(TAPS * channels, momentum=BLOCK_BN_MOMENTUM)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 9 C, H, W)."""
        return torch.sigmoid(self.norm(self.conv(coordinates)))


class SpatiallyAdaptiveBlock(nn.Module):
    """Spatially-adaptive 3x3 convolution, plain 3x3 convolution, and the block's input added to what they give.

    Both convolutions have a bias, BatchNorm and ReLU; nothing follows the sum (fact sheet 1.3).
    """

    def __init__(self, channels: int, *, attention_kernel: int, circular: bool):
        super().__init__()
        self.circular = circular
        self.attention = Attention(channels, attention_kernel, circular=circular)
        self.mix = ConvNorm(
            AzimuthConv2d(TAPS * channels, channels, 1, circular=circular), momentum=BLOCK_BN_MOMENTUM, slope=0.0
        )
        self.conv = ConvNorm(
            AzimuthConv2d(channels, channels, 3, circular=circular), momentum=BLOCK_BN_MOMENTUM, slope=0.0
        )

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) of the same height and width -> (N, C, H, W)."""
        adapted = self.attention(coordinates) * unfold3x3(feature, self.circular)
        return feature + self.conv(self.mix(adapted))


def unfold3x3(feature: Tensor, circular: bool) -> Tensor:
    """(N, C, H, W) -> (N, 9 C, H, W): channel c * 9 + ky * 3 + kx holds feature[c, y + ky - 1, x + kx - 1]."""
    batch, _, height, width = feature.shape
    if circular:
        windows = F.unfold(pad_azimuth(feature, 1), (3, 3), padding=(1, 0))
    else:
        windows = F.unfold(feature, (3, 3), padding=(1, 1))
    return windows.view(batch, -1, height, width)
