"""Features and coordinates -> adapted features: the variants of spatially-adaptive convolution with smaller attention.

Spatially-adaptive convolution (paper, equations 3 and 4) is

    Y[m, p, q] = sum over n, i, j of  W[m, n, p, q, i, j] * X[n, p + i - 1, q + j - 1]
    W[m, n, p, q, i, j] = W'[m, n, i, j] * A(X0)[m, n, p, q, i, j],      A = sigmoid(BatchNorm(conv(X0)))

and its variants are named by the dimensions of A that are left: input channel (I), space (S), kernel (K). `sac.py` has
SAC-ISK; here are those with one factor for all channels (SAC-SK) and those with one for all taps (SAC-S, SAC-IS).

Where A has no kernel dimensions the paper multiplies features and factors before an ordinary convolution (its section
4.3), so a tap takes the factor of the pixel that it looks at:

    W[m, n, p, q, i, j] = W'[m, n, i, j] * A[n, p + i - 1, q + j - 1]

while equation 4 to the letter would take that of the pixel (p, q) for all nine taps. This is the former. X0 are the
coordinates and BatchNorm stands before the sigmoid, as the release has both in SAC-ISK.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d
from sqsegv3_ros.network.sac import BLOCK_BN_MOMENTUM, TAPS, unfold3x3


class Factors(nn.Module):
    """Coordinates (N, 3, H, W) -> factors (N, `count`, H, W) in (0, 1)."""

    def __init__(self, count: int, kernel: int, *, circular: bool):
        super().__init__()
        self.conv = AzimuthConv2d(3, count, kernel, circular=circular)
        self.norm = nn.BatchNorm2d(count, momentum=BLOCK_BN_MOMENTUM)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, count, H, W)."""
        return torch.sigmoid(self.norm(self.conv(coordinates)))


class SacS(nn.Module):
    """SAC-S: one factor for each pixel, A[p, q]."""

    def __init__(self, kernel: int, *, circular: bool):
        super().__init__()
        self.attention = Factors(1, kernel, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> (N, C, H, W)."""
        return self.attention(coordinates) * feature


class SacIS(nn.Module):
    """SAC-IS: a factor for each channel and pixel, A[n, p, q]."""

    def __init__(self, channels: int, kernel: int, *, circular: bool):
        super().__init__()
        self.attention = Factors(channels, kernel, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> (N, C, H, W)."""
        return self.attention(coordinates) * feature


class SacSK(nn.Module):
    """SAC-SK: a factor for each pixel and tap of its window, A[p, q, i, j]."""

    def __init__(self, kernel: int, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.attention = Factors(TAPS, kernel, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> windows (N, 9 C, H, W), channel-major."""
        return weigh_taps(feature, self.attention(coordinates), self.circular)


def weigh_taps(feature: Tensor, factors: Tensor, circular: bool) -> Tensor:
    """The windows of the features (N, C, H, W), each tap times its factor (N, 9, H, W) -> (N, 9 C, H, W)."""
    batch, channels, height, width = feature.shape
    windows = unfold3x3(feature, circular).view(batch, channels, -1, height, width)
    return (windows * factors.unsqueeze(1)).flatten(1, 2)
