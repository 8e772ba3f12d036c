"""Features and coordinates -> adapted features: the attention of earlier work that the paper compares SAC with.

Each scales the input of a 3x3 convolution, so that it is a case of the paper's equation 4 (its section 4.4):

    SE    A[n]           squeeze and excitation, Hu et al., "Squeeze-and-Excitation Networks", 2018
    CBAM  A[n] A'[p, q]  Woo et al., "CBAM: Convolutional Block Attention Module", 2018
    CAM   A[n, p, q]     context aggregation, Wu et al., "SqueezeSegV2", 2019
    PAC   A[p, q, i, j]  Su et al., "Pixel-Adaptive Convolutional Neural Networks", 2019

The paper shows how it arranges them in a supplement that is not to be had; here they stand where SAC stands. SE, CBAM
and CAM look at the features, PAC at the coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, pad_azimuth
from sqsegv3_ros.network.sac import unfold3x3
from sqsegv3_ros.network.sac_variants import weigh_taps

REDUCTION = 16
"""The bottleneck of SE, CBAM and CAM has this many times fewer channels, as in their papers, but at least one."""
POOL = 7
"""Side of CBAM's convolution and of CAM's pooling, as in their papers."""


class Bottleneck(nn.Module):
    """W2 relu(W1 v + b1) + b2 at every pixel: two 1x1 convolutions, (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        middle = max(1, channels // REDUCTION)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.expand = nn.Conv2d(middle, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.expand(F.relu(self.reduce(feature)))


class SqueezeExcitation(nn.Module):
    """SE: A[n] = sigmoid(W2 relu(W1 mean over the image of X + b1) + b2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bottleneck = Bottleneck(channels)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W) -> (N, C, H, W)."""
        return torch.sigmoid(self.bottleneck(feature.mean((2, 3), keepdim=True))) * feature


class BlockAttention(nn.Module):
    """CBAM: X' = A X, then X'' = A' X'.

    A[n] = sigmoid(m(mean over the image of X) + m(maximum over the image of X)), m being one bottleneck for both.
    A'[p, q] = sigmoid(conv7x7(mean over the channels of X', maximum over the channels of X') + b).
    """

    def __init__(self, channels: int, *, circular: bool):
        super().__init__()
        self.bottleneck = Bottleneck(channels)
        self.conv = AzimuthConv2d(2, 1, POOL, circular=circular)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W) -> (N, C, H, W)."""
        mean, most = feature.mean((2, 3), keepdim=True), feature.amax((2, 3), keepdim=True)
        feature = torch.sigmoid(self.bottleneck(mean) + self.bottleneck(most)) * feature
        summary = torch.cat((feature.mean(1, keepdim=True), feature.amax(1, keepdim=True)), dim=1)
        return torch.sigmoid(self.conv(summary)) * feature


class ContextAggregation(nn.Module):
    """CAM: A[:, p, q] = sigmoid(W2 relu(W1 maximum over the 7x7 pixels around (p, q) of X + b1) + b2)."""

    def __init__(self, channels: int, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.side = POOL
        self.bottleneck = Bottleneck(channels)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W) -> (N, C, H, W)."""
        reach = self.side // 2
        if self.circular:
            pooled = F.max_pool2d(pad_azimuth(feature, reach), self.side, stride=1, padding=[reach, 0])
        else:
            pooled = F.max_pool2d(feature, self.side, stride=1, padding=reach)
        return torch.sigmoid(self.bottleneck(pooled)) * feature


class PixelAdaptive(nn.Module):
    """PAC: A[p, q, i, j] = exp(-|f[p + i - 1, q + j - 1] - f[p, q]|^2 / 2), f the coordinates times learned scales.

    The scales begin at 1: normalised coordinates differ by 1 over about 11 m along x, 7 m along y and 0.9 m in height.
    """

    def __init__(self, *, circular: bool):
        super().__init__()
        self.circular = circular
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> windows (N, 9 C, H, W), channel-major."""
        guide = coordinates * self.scale.view(3, 1, 1)
        batch, _, height, width = guide.shape
        windows = unfold3x3(guide, self.circular).view(batch, 3, -1, height, width)
        difference = windows - guide.unsqueeze(2)
        return weigh_taps(feature, torch.exp(-0.5 * (difference * difference).sum(1)), self.circular)
