# SPDX-License-Identifier: Apache-2.0
"""Variants of spatially-adaptive convolution with smaller attention: SAC-S, SAC-IS and SAC-SK.

Spatially-adaptive convolution (paper, equations 3 and 4) is

    Y[m, p, q] = sum over n, i, j of  W[m, n, p, q, i, j] * X[n, p + i - 1, q + j - 1]
    W[m, n, p, q, i, j] = W'[m, n, i, j] * A(X0)[m, n, p, q, i, j],      A = sigmoid(BatchNorm(conv(X0)))

and its variants are named after the dimensions that A keeps: input channel (I), space (S), kernel (K). `sac.py` has
SAC-ISK; this module has SAC-SK, with one factor for all channels, and SAC-S and SAC-IS, with one factor for all taps.

If A has no kernel dimensions, the paper multiplies features and factors before an ordinary convolution (section 4.3),
so each tap takes the factor of the pixel that it reads:

    W[m, n, p, q, i, j] = W'[m, n, i, j] * A[n, p + i - 1, q + j - 1]

Equation 4 taken literally would use the factor of pixel (p, q) for all nine taps. This module follows section 4.3. X0
are the coordinates, and BatchNorm precedes the sigmoid, as in the release's SAC-ISK.
"""

from __future__ import annotations

from torch import Tensor, nn

from sqsegv3_ros.network.sac import TAPS, Attention, unfold3x3


class PixelAttention(nn.Module):
    """SAC-S and SAC-IS: features times A[p, q] or A[n, p, q].

    Args:
        factors: Factors per pixel: 1 for SAC-S, the number of channels for SAC-IS.
        kernel: Side of the convolution over the coordinates.
        circular: Whether the left and the right edge are neighbours.
    """

    def __init__(self, factors: int, kernel: int, *, circular: bool):
        super().__init__()
        self.attention = Attention(factors, kernel, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Weight features (N, C, H, W) by factors of coordinates (N, 3, H, W)."""
        return self.attention(coordinates) * feature


class TapAttention(nn.Module):
    """SAC-SK: windows of features times A[p, q, i, j], one factor per pixel and tap.

    Args:
        kernel: Side of the convolution over the coordinates.
        circular: Whether the left and the right edge are neighbours.
    """

    def __init__(self, kernel: int, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.attention = Attention(TAPS, kernel, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Unfold features (N, C, H, W) to weighted windows (N, 9 C, H, W), channel-major."""
        return weight_taps(feature, self.attention(coordinates), self.circular)


def weight_taps(feature: Tensor, factors: Tensor, circular: bool) -> Tensor:
    """Unfold features into 3x3 windows and multiply each tap by its factor.

    Args:
        feature: (N, C, H, W).
        factors: (N, 9, H, W).
        circular: Whether the left and the right edge are neighbours.

    Returns:
        (N, 9 C, H, W), channel-major.
    """
    batch, channels, height, width = feature.shape
    windows = unfold3x3(feature, circular).view(batch, channels, -1, height, width)
    return (windows * factors.unsqueeze(1)).flatten(1, 2)
