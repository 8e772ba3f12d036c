# SPDX-License-Identifier: Apache-2.0
"""SqueezeSegV3: from the range image to five maps of logits.

Each of the encoder's five stages repeats a block that takes the features and the coordinates of the pixels. The first
three stages, or all five, then halve the width, never the height. The decoder doubles the width again and adds the
encoder's features of the same width. Every decoder stage has a head; the full-width head gives the labels, the
auxiliary heads are used in training only.
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
    """Blocks at one width, optionally followed by a convolution that halves the width.

    Args:
        config: Network configuration.
        blocks: Number of blocks.
        channels: Channels of the blocks.
        out_channels: Channels after halving the width; None if the stage does not halve it.
    """

    def __init__(self, config: NetworkConfig, blocks: int, channels: int, out_channels: int | None):
        super().__init__()
        self.blocks = nn.ModuleList(make_block(channels, config) for _ in range(blocks))
        self.narrow = nn.Sequential()
        if out_channels is not None:
            conv = AzimuthConv2d(channels, out_channels, 3, stride=(1, 2), bias=False, circular=config.circular)
            self.narrow.append(ConvNorm(conv, momentum=config.bn_momentum, slope=LEAKY_SLOPE))
        self.dropout = nn.Dropout2d(config.dropout)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Encode features (N, C, H, W) with coordinates (N, 3, H, W) to (N, C', H, W or W / 2)."""
        for block in self.blocks:
            feature = block(feature, coordinates)
        return self.dropout(self.narrow(feature))


class DecoderStage(nn.Module):
    """A convolution, standard or doubling the width, and a residual bottleneck of 1x1 and 3x3.

    Args:
        config: Network configuration.
        channels: Channels of the input.
        out_channels: Channels of the output.
        upsample: Whether the stage doubles the width.
    """

    def __init__(self, config: NetworkConfig, channels: int, out_channels: int, *, upsample: bool):
        super().__init__()
        conv = (
            AzimuthUpsample2d(channels, out_channels, circular=config.circular)
            if upsample
            else AzimuthConv2d(channels, out_channels, 3, circular=config.circular)
        )
        squeeze = AzimuthConv2d(out_channels, channels, 1, bias=False, circular=config.circular)
        expand = AzimuthConv2d(channels, out_channels, 3, bias=False, circular=config.circular)
        self.conv = ConvNorm(conv, momentum=config.bn_momentum, slope=LEAKY_SLOPE)
        self.squeeze = ConvNorm(squeeze, momentum=config.bn_momentum, slope=LEAKY_SLOPE)
        self.expand = ConvNorm(expand, momentum=config.bn_momentum, slope=LEAKY_SLOPE)

    def forward(self, feature: Tensor) -> Tensor:
        """Decode features (N, C, H, W) to (N, C', H, W or 2 W)."""
        feature = self.conv(feature)
        return feature + self.expand(self.squeeze(feature))


class Head(nn.Module):
    """Dropout and a convolution to the logits of the classes.

    Args:
        config: Network configuration.
        channels: Channels of the input.
        kernel: Side of the convolution.
    """

    def __init__(self, config: NetworkConfig, channels: int, kernel: int):
        super().__init__()
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.conv = AzimuthConv2d(channels, config.num_classes, kernel, circular=config.circular)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W) from features (N, C, H, W)."""
        return self.conv(self.dropout(feature))


class SqueezeSegV3(nn.Module):
    """The training model, numerically equal to the official release for the same weights.

    Args:
        config: Network configuration.

    Attributes:
        encoder: Five stages, from full to smallest width.
        decoder: Five stages in the order in which they run, from smallest to full width.
        heads: Five heads in the order of the outputs, from full to smallest width.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        first_upsampling = STAGES - config.halvings
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
            DecoderStage(config, channels, out_channels, upsample=i >= first_upsampling)
            for i, (channels, out_channels) in enumerate(
                zip(config.output_channels[::-1], config.channels[::-1], strict=True)
            )
        )
        self.decoder_dropout = nn.Dropout2d(config.decoder_dropout)
        self.heads = nn.ModuleList(
            Head(config, channels, kernel) for channels, kernel in ((c1, 3), (c2, 1), (c3, 1), (c4, 1), (c5, 1))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the logits of all heads.

        Args:
            image: Normalised, masked image (N, 5, H, W): range, x, y, z, remission.

        Returns:
            Five maps (N, classes, H, W') with W' = W, W/2, W/4, W/8, W/8 (W/16 if five stages halve the width). The
            first one gives the labels.

        Raises:
            UserError: The image has the wrong rank, number of channels or width.
        """
        if not torch.jit.is_tracing():
            self._check(image)
        feature, skips = self.encode(image)
        stages = self.decode(feature, skips)
        return [head(stage) for head, stage in zip(self.heads, stages, strict=False)]  # exported: the first head only

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder.

        Args:
            image: As in `forward`.

        Returns:
            Features (N, C', H, W/8 or W/32) and the skip features of each larger width, full width first.
        """
        coordinates = image[:, 1:4]
        feature = self.stem(image)
        skips = []
        for i, stage in enumerate(self.encoder):
            if i >= self.config.halvings:
                feature = stage(feature, coordinates)
                continue
            # detached as in the release: the encoder learns through the features of the smallest width only
            skips.append(feature.detach())
            feature = stage(feature, coordinates)
            coordinates = downsample_coordinates(coordinates, self.config.circular)
        return feature, skips

    def decode(self, feature: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Run the decoder.

        Args:
            feature: Features of the encoder.
            skips: Its skip features, full width first.

        Returns:
            Features of the five stages, full width first.
        """
        stages = []
        for i, stage in enumerate(self.decoder):
            feature = stage(feature)
            if i >= STAGES - self.config.halvings:
                feature = feature + skips[4 - i]
            stages.append(feature)
        stages[4] = self.decoder_dropout(stages[4])
        return stages[::-1]

    def _check(self, image: Tensor) -> None:
        config, shape = self.config, tuple(image.shape)
        if image.dim() != 4:
            raise UserError(f"network: the input must have 4 dimensions (N, {config.in_channels}, H, W), found {shape}")
        if shape[1] != config.in_channels:
            raise UserError(f"network: the input must have {config.in_channels} channels, found {shape[1]} in {shape}")
        if shape[3] % config.width_divisor or shape[3] < config.minimum_width:
            raise UserError(
                f"network: the image width must be a multiple of {config.width_divisor}, at least "
                f"{config.minimum_width}, because it is halved {config.halvings} times; found {shape[3]}"
            )


def downsample_coordinates(coordinates: Tensor, circular: bool) -> Tensor:
    """Halve the width of the coordinates for the attention of the next stage.

    The release interpolates bilinearly with aligned corners, so column j takes position j (W - 1) / (W / 2 - 1). This
    drifts by a column from one edge to the other and makes no sense if the edges are neighbours. With circular padding
    each column takes pixel 2 j, the centre of the strided convolution that computed its features.

    Args:
        coordinates: (N, 3, H, W).
        circular: Whether the left and the right edge are neighbours.

    Returns:
        (N, 3, H, W / 2).
    """
    if circular:
        return coordinates[:, :, :, ::2]
    height, width = coordinates.shape[2:]
    return F.interpolate(coordinates, size=(height, width // 2), mode="bilinear", align_corners=True)
