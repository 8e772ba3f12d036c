"""Range image (N, 5, H, W) -> five maps of logits: SqueezeSegV3, in the form that is trained and read.

The encoder's five stages each repeat a block that sees the features and the coordinates of the pixels; the first three,
or all five, then halve the width (never the height). The decoder doubles it again, adding the features that were left
behind at each width. A head sits on every decoder stage; the last one gives the labels, the others only teach.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.network.blocks import make_block
from sqsegv3_ros.network.config import STAGES, NetworkConfig
from sqsegv3_ros.network.layers import AzimuthConv2d, AzimuthUpsample2d, ConvNorm

LEAKY_SLOPE = 0.1


class EncoderStage(nn.Module):
    """Blocks at one width, then, where `out_channels` is given, a convolution that halves the width."""

    def __init__(self, config: NetworkConfig, blocks: int, channels: int, out_channels: int | None):
        super().__init__()
        self.blocks = nn.ModuleList(make_block(channels, config) for _ in range(blocks))
        self.narrow = nn.ModuleList()
        if out_channels is not None:
            conv = AzimuthConv2d(channels, out_channels, 3, stride=(1, 2), bias=False, circular=config.circular)
            self.narrow.append(ConvNorm(conv, momentum=config.bn_momentum, slope=LEAKY_SLOPE))
        self.dropout = nn.Dropout2d(config.dropout)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> (N, C', H, W or W / 2)."""
        for block in self.blocks:
            feature = block(feature, coordinates)
        for narrow in self.narrow:
            feature = narrow(feature)
        return self.dropout(feature)


class DecoderStage(nn.Module):
    """A convolution, plain or doubling the width, then a residual bottleneck 1x1 -> 3x3."""

    def __init__(self, config: NetworkConfig, channels: int, out_channels: int, *, widen: bool):
        super().__init__()
        conv = (
            AzimuthUpsample2d(channels, out_channels, circular=config.circular)
            if widen
            else AzimuthConv2d(channels, out_channels, 3, circular=config.circular)
        )
        squeeze = AzimuthConv2d(out_channels, channels, 1, bias=False, circular=config.circular)
        expand = AzimuthConv2d(channels, out_channels, 3, bias=False, circular=config.circular)
        self.conv = ConvNorm(conv, momentum=config.bn_momentum, slope=LEAKY_SLOPE)
        self.squeeze = ConvNorm(squeeze, momentum=config.bn_momentum, slope=LEAKY_SLOPE)
        self.expand = ConvNorm(expand, momentum=config.bn_momentum, slope=LEAKY_SLOPE)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W or 2 W)."""
        feature = self.conv(feature)
        return feature + self.expand(self.squeeze(feature))


class Head(nn.Module):
    """Features -> logits of every class."""

    def __init__(self, config: NetworkConfig, channels: int, kernel: int):
        super().__init__()
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.conv = AzimuthConv2d(channels, config.num_classes, kernel, circular=config.circular)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes, H, W)."""
        return self.conv(self.dropout(feature))


class SqueezeSegV3(nn.Module):
    """The network of a `NetworkConfig`, numerically equal to the official release for the same weights.

    encoder: the five stages, widest image first. decoder: the five stages in the order in which they run, narrowest
    image first. heads: in the order of the outputs, full width first.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.circular = config.circular
        self.in_channels = config.in_channels
        self.halvings = config.halvings
        self.first_widening = STAGES - config.halvings
        self.minimum_width = config.minimum_width
        c1, c2, c3, c4, c5 = config.channels
        stem = AzimuthConv2d(config.in_channels, c1, 3, bias=False, circular=config.circular)
        self.stem = ConvNorm(stem, momentum=config.bn_momentum, slope=LEAKY_SLOPE)
        self.encoder = nn.ModuleList(
            EncoderStage(config, blocks, channels, out_channels if i < config.halvings else None)
            for i, (blocks, channels, out_channels) in enumerate(
                zip(config.blocks, config.channels, config.output_channels, strict=True)
            )
        )
        self.decoder = nn.ModuleList(
            DecoderStage(config, channels, out_channels, widen=i >= self.first_widening)
            for i, (channels, out_channels) in enumerate(
                zip(config.output_channels[::-1], config.channels[::-1], strict=True)
            )
        )
        self.decoder_dropout = nn.Dropout2d(config.decoder_dropout)
        self.heads = nn.ModuleList(
            Head(config, channels, kernel) for channels, kernel in ((c1, 3), (c2, 1), (c3, 1), (c4, 1), (c5, 1))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised, masked image (N, 5, H, W): range, x, y, z, remission -> logits, before the softmax.

        Five maps (N, classes, H, W'), W' = W, W/2, W/4, W/8, W/8 (W/16 where five stages halve the width); the first
        gives the labels.
        Raises UserError where the image has the wrong rank, channels or width.
        """
        if not torch.jit.is_tracing():
            self._check(image)
        feature, skips = self.encode(image)
        stages = self.decode(feature, skips)
        return [head(stages[i]) for i, head in enumerate(self.heads)]

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(N, 5, H, W) -> features (N, C', H, W/8 or W/32), and those left behind at each width above it."""
        coordinates = image[:, 1:4]
        feature = self.stem(image)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            if i < self.halvings:
                # detached as in the release: the decoder teaches the encoder through the narrowest features alone
                skips.append(feature.detach())
            feature = stage(feature, coordinates)
            if i < self.halvings:
                coordinates = narrow_coordinates(coordinates, self.circular)
        return feature, skips

    def decode(self, feature: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """The encoder's features and skips -> the decoder's stages in the order of the heads, full width first."""
        stages: list[Tensor] = []
        for i, stage in enumerate(self.decoder):
            feature = stage(feature)
            if i >= self.first_widening:
                feature = feature + skips[4 - i]
            stages.append(feature)
        stages[4] = self.decoder_dropout(stages[4])
        return stages[::-1]

    def _check(self, image: Tensor) -> None:
        shape = tuple(image.shape)
        if image.dim() != 4:
            raise UserError(f"network: the input must have 4 dimensions (N, {self.in_channels}, H, W), found {shape}")
        if shape[1] != self.in_channels:
            raise UserError(f"network: the input must have {self.in_channels} channels, found {shape[1]} in {shape}")
        divisor = self.config.width_divisor
        if shape[3] % divisor or shape[3] < self.minimum_width:
            raise UserError(
                f"network: the image width must be a multiple of {divisor}, at least {self.minimum_width}, "
                f"because it is halved {self.halvings} times; found {shape[3]}"
            )


def narrow_coordinates(coordinates: Tensor, circular: bool) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H, W / 2), the coordinates that the next stage's attention looks at.

    As released: bilinear with aligned corners, so column j takes position j (W - 1) / (W / 2 - 1). That drifts by a
    column from one edge to the other and has no meaning where the edges are neighbours; there each column takes the
    pixel on which the strided convolution that computed its features is centred, 2 j.
    """
    height, width = coordinates.shape[2], coordinates.shape[3]
    if circular:
        return coordinates[:, :, :, ::2]
    return F.interpolate(coordinates, size=[height, width // 2], mode="bilinear", align_corners=True)
