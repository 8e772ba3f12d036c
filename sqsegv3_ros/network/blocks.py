"""The name of a block and its channels -> the block: the one interface behind which all that the paper compares stands.

A block takes (feature (N, C, H, W), coordinates (N, 3, H, W)) and gives (N, C, H, W). All of them are two 3x3
convolutions with an identity around them; they differ in what happens to the input of the first one:

    out = feature + ReLU(BN(conv3x3(ReLU(BN(mix(adapt(feature, coordinates)))))))

`mix` is a 3x3 convolution, or, where `adapt` gives every pixel its whole window because the factors of a pixel's nine
taps differ, the same weights as a 1x1 convolution over the windows (paper, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sqsegv3_ros.network.compared import BlockAttention, ContextAggregation, PixelAdaptive, SqueezeExcitation
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm
from sqsegv3_ros.network.sac import BLOCK_BN_MOMENTUM, TAPS, SpatiallyAdaptiveBlock
from sqsegv3_ros.network.sac_variants import SacIS, SacS, SacSK


class AdaptedBlock(nn.Module):
    """Two 3x3 convolutions, the first one on what `adapt` makes of the features, and the block's input added.

    adapt: (feature (N, C, H, W), coordinates (N, 3, H, W)) -> (N, C, H, W), or windows (N, 9 C, H, W), channel-major,
        where `windowed`.
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
        """feature (N, C, H, W), coordinates (N, 3, H, W) of the same height and width -> (N, C, H, W)."""
        return feature + self.conv(self.mix(self.adapt(feature, coordinates)))


class Unchanged(nn.Module):
    """Standard convolution (paper, equation 2), the baseline: the features as they are."""

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return feature


def make_block(channels: int, config: NetworkConfig) -> nn.Module:
    """A block of the network's kind (`NetworkConfig.block`), with random weights."""
    if config.block == "sac-isk":
        return SpatiallyAdaptiveBlock(channels, attention_kernel=config.attention_kernel, circular=config.circular)
    return AdaptedBlock(
        channels,
        _ADAPTATIONS[config.block](channels, config),
        windowed=config.block in _WINDOWED,
        circular=config.circular,
    )


_ADAPTATIONS: dict[str, Callable[[int, NetworkConfig], nn.Module]] = {
    "conv": lambda channels, config: Unchanged(),
    "sac-s": lambda channels, config: SacS(config.attention_kernel, circular=config.circular),
    "sac-is": lambda channels, config: SacIS(channels, config.attention_kernel, circular=config.circular),
    "sac-sk": lambda channels, config: SacSK(config.attention_kernel, circular=config.circular),
    "se": lambda channels, config: SqueezeExcitation(channels),
    "cbam": lambda channels, config: BlockAttention(channels, circular=config.circular),
    "cam": lambda channels, config: ContextAggregation(channels, circular=config.circular),
    "pac": lambda channels, config: PixelAdaptive(circular=config.circular),
}
_WINDOWED = ("sac-sk", "pac")
