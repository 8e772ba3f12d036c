# SPDX-License-Identifier: Apache-2.0
"""Encoder blocks by name: SAC-ISK and every block that the paper compares with it.

All blocks are two 3x3 convolutions with a residual connection around them. They differ in how they adapt the input of
the first convolution:

    out = feature + ReLU(BN(conv3x3(ReLU(BN(mix(adapt(feature, coordinates)))))))

`mix` is a 3x3 convolution. If the factors differ between the taps of a window, `adapt` returns weighted windows and
`mix` is a 1x1 convolution over them with the same weights (paper, section 4.3).
"""

from __future__ import annotations

from torch import Tensor, nn

from sqsegv3_ros.network.compared import BlockAttention, ContextAggregation, PixelAdaptive, SqueezeExcitation
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm
from sqsegv3_ros.network.sac import BLOCK_BN_MOMENTUM, TAPS, SpatiallyAdaptiveBlock
from sqsegv3_ros.network.sac_variants import PixelAttention, TapAttention

_WINDOWED = ("sac-sk", "pac")


class AdaptedBlock(nn.Module):
    """Two 3x3 convolutions, the first one on adapted features, with a residual connection around both.

    Args:
        channels: Channels of input and output.
        adapt: Module that adapts features (N, C, H, W) by coordinates (N, 3, H, W), to (N, C, H, W) or windows
            (N, 9 C, H, W), channel-major.
        windowed: Whether `adapt` returns windows.
        circular: Whether the left and the right edge are neighbours.
    """

    def __init__(self, channels: int, adapt: nn.Module, *, windowed: bool, circular: bool):
        super().__init__()
        self.adapt = adapt
        first = (
            AzimuthConv2d(TAPS * channels, channels, 1, circular=circular)
            if windowed
            else AzimuthConv2d(channels, channels, 3, circular=circular)
        )
        second = AzimuthConv2d(channels, channels, 3, circular=circular)
        self.mix = ConvNorm(first, momentum=BLOCK_BN_MOMENTUM, slope=0.0)
        self.conv = ConvNorm(second, momentum=BLOCK_BN_MOMENTUM, slope=0.0)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Compute features (N, C, H, W) from features (N, C, H, W) and coordinates (N, 3, H, W)."""
        return feature + self.conv(self.mix(self.adapt(feature, coordinates)))


class NoAdaptation(nn.Module):
    """Standard convolution (paper, equation 2), the baseline."""

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Return the features unchanged."""
        return feature


def make_block(channels: int, config: NetworkConfig) -> nn.Module:
    """Make a block of kind `config.block` with random weights.

    Args:
        channels: Channels of input and output.
        config: Network configuration.

    Returns:
        Module that maps features (N, C, H, W) and coordinates (N, 3, H, W) to features (N, C, H, W).
    """
    if config.block == "sac-isk":
        return SpatiallyAdaptiveBlock(channels, attention_kernel=config.attention_kernel, circular=config.circular)
    return AdaptedBlock(
        channels, _adaptation(channels, config), windowed=config.block in _WINDOWED, circular=config.circular
    )


def _adaptation(channels: int, config: NetworkConfig) -> nn.Module:
    kernel, circular = config.attention_kernel, config.circular
    match config.block:
        case "conv":
            return NoAdaptation()
        case "sac-s":
            return PixelAttention(1, kernel, circular=circular)
        case "sac-is":
            return PixelAttention(channels, kernel, circular=circular)
        case "sac-sk":
            return TapAttention(kernel, circular=circular)
        case "se":
            return SqueezeExcitation(channels)
        case "cbam":
            return BlockAttention(channels, circular=circular)
        case "cam":
            return ContextAggregation(channels, circular=circular)
        case _:  # "pac": NetworkConfig admits no other
            return PixelAdaptive(circular=circular)
