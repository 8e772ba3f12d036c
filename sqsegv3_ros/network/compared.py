# SPDX-License-Identifier: Apache-2.0
"""Attention modules of earlier work that the paper compares with SAC: SE, CBAM, CAM and PAC.

Each scales the input of a 3x3 convolution and is thus a case of the paper's equation 4 (its section 4.4):

    SE    A[n]           squeeze and excitation, Hu et al., "Squeeze-and-Excitation Networks", 2018
    CBAM  A[n] A'[p, q]  Woo et al., "CBAM: Convolutional Block Attention Module", 2018
    CAM   A[n, p, q]     context aggregation, Wu et al., "SqueezeSegV2", 2019
    PAC   A[p, q, i, j]  Su et al., "Pixel-Adaptive Convolutional Neural Networks", 2019

The paper describes their arrangement in a supplement that is not available; here they take the place of SAC. SE, CBAM
and CAM compute their factors from the features, PAC from the coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, pad_azimuth
from sqsegv3_ros.network.sac import unfold3x3
from sqsegv3_ros.network.sac_variants import weight_taps

REDUCTION = 16
"""Channel reduction in the bottleneck of SE, CBAM and CAM, as in their papers; at least one channel remains."""
POOL = 7
"""Side of CBAM's convolution and of CAM's pooling, as in their papers."""


class Bottleneck(nn.Module):
    """Two 1x1 convolutions, W2 relu(W1 v + b1) + b2 at every pixel."""

    def __init__(self, channels: int):
        super().__init__()
        middle = max(1, channels // REDUCTION)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.expand = nn.Conv2d(middle, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return self.expand(F.relu(self.reduce(feature)))


class SqueezeExcitation(nn.Module):
    """SE: A[n] = sigmoid(W2 relu(W1 mean over the image of X + b1) + b2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bottleneck = Bottleneck(channels)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Weight features (N, C, H, W)."""
        return torch.sigmoid(self.bottleneck(feature.mean((2, 3), keepdim=True))) * feature


class BlockAttention(nn.Module):
    """CBAM: X' = A X, then X'' = A' X'.

    A[n] = sigmoid(m(mean over the image of X) + m(maximum over the image of X)), with one bottleneck m for both.
    A'[p, q] = sigmoid(conv7x7(mean over the channels of X', maximum over the channels of X') + b).
    """

    def __init__(self, channels: int, *, circular: bool):
        super().__init__()
        self.bottleneck = Bottleneck(channels)
        self.conv = AzimuthConv2d(2, 1, POOL, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Weight features (N, C, H, W)."""
        mean, maximum = feature.mean((2, 3), keepdim=True), feature.amax((2, 3), keepdim=True)
        feature = torch.sigmoid(self.bottleneck(mean) + self.bottleneck(maximum)) * feature
        summary = torch.cat((feature.mean(1, keepdim=True), feature.amax(1, keepdim=True)), dim=1)
        return torch.sigmoid(self.conv(summary)) * feature


class ContextAggregation(nn.Module):
    """CAM: A[:, p, q] = sigmoid(W2 relu(W1 maximum over the 7x7 pixels around (p, q) of X + b1) + b2)."""

    def __init__(self, channels: int, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.bottleneck = Bottleneck(channels)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Weight features (N, C, H, W)."""
        reach = POOL // 2
        if self.circular:
            pooled = F.max_pool2d(pad_azimuth(feature, reach), POOL, stride=1, padding=(reach, 0))
        else:
            pooled = F.max_pool2d(feature, POOL, stride=1, padding=reach)
        return torch.sigmoid(self.bottleneck(pooled)) * feature


class PixelAdaptive(nn.Module):
    """PAC: A[p, q, i, j] = exp(-|f[p + i - 1, q + j - 1] - f[p, q]|^2 / 2), f the coordinates times learned scales.

    The scales start at 1: a difference of 1 in normalised coordinates is about 11 m in x, 7 m in y and 0.9 m in z.
    """

    def __init__(self, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Unfold features (N, C, H, W) to weighted windows (N, 9 C, H, W), channel-major."""
        guide = coordinates * self.scale.view(3, 1, 1)
        batch, _, height, width = guide.shape
        windows = unfold3x3(guide, self.circular).view(batch, 3, -1, height, width)
        difference = windows - guide.unsqueeze(2)
        return weight_taps(feature, torch.exp(-0.5 * (difference * difference).sum(1)), self.circular)
