"""A trained SqueezeSegV3 -> the same function in the form that runs live: image (N, 5, H, W) -> logits (N, C, H, W).

Exact re-parameterisation, nothing is approximated: every BatchNorm is folded into the convolution before it, only the
full-width head is left, and the tensors are laid out channels last. What the training form computes for whole images,
the attention of 9 C channels and the unfolded features, exists here for one tile of pixels at a time:

    columns (T, 3 k k + 1) of the coordinates, once for a stage   im2col; the last column is 1 and carries the bias
    columns @ attention -> (T, 9 C), sigmoid, times the windows   tap-major, so that a window is three runs of memory
    (T, 9 C) @ mix -> (T, C)

TorchScript compiles all of it; device and dtype are those of the weights.
"""

# No `from __future__ import annotations` here: TorchScript needs the annotations of the classes as types.
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.network.config import WIDTH_DIVISOR
from sqsegv3_ros.network.folded import fold, folded_conv, folded_head
from sqsegv3_ros.network.layers import ConvNorm
from sqsegv3_ros.network.memory import give, memory_for, scratch, take
from sqsegv3_ros.network.model import DecoderStage, EncoderStage, Head, SqueezeSegV3, narrow_coordinates
from sqsegv3_ros.network.sac import TAPS, SpatiallyAdaptiveBlock
from sqsegv3_ros.network.tiles import stripe_bounds, take_columns, take_tile, tile_shape, windows

TILE_PIXELS = 1024
"""Pixels of a tile until the loader chooses for its device; 0 is the whole image."""
FULL_TILE_CHANNELS = 32
"""Where the features have fewer channels, tiles are larger, so that the work on each outweighs starting it."""


def deploy(model: SqueezeSegV3) -> "DeployedSqueezeSegV3":
    """The deploy form of a model as it would run in eval mode: float32, on the CPU; the model itself is not changed."""
    if not model.config.has_deploy_form:
        raise UserError(
            f"network: block '{model.config.block}' with {model.config.halvings} halvings has no deploy form, only "
            "sac-isk with 3 has"
        )
    return DeployedSqueezeSegV3(model).eval()


class DeployedSqueezeSegV3(nn.Module):
    """Scriptable deploy form of a `SqueezeSegV3`. May be set at any time, also after loading:

    tile_pixels: see `tile_shape`. stripes: how many threads share the rows of every layer; each operation of torch's
    should then use one thread.
    """

    def __init__(self, model: SqueezeSegV3):
        super().__init__()
        self.tile_pixels = TILE_PIXELS
        self.stripes = 1
        self.in_channels = model.in_channels
        self.width_divisor = WIDTH_DIVISOR
        self.minimum_width = model.minimum_width
        self.circular = model.circular
        self.stem = folded_conv(model.stem)
        self.encoder = nn.ModuleList(DeployedEncoderStage(s) for s in cast(Iterable[EncoderStage], model.encoder))
        self.decoder = nn.ModuleList(DeployedDecoderStage(s) for s in cast(Iterable[DecoderStage], model.decoder))
        self.head = folded_head(cast(Head, model.heads[0]))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised, masked image (N, 5, H, W) -> logits (N, C, H, W), in memory channels last.

        Raises ValueError (torch.jit.Error once scripted) where the image has the wrong rank, channels or width.
        """
        if image.dim() != 4 or image.size(1) != self.in_channels:
            raise ValueError(f"network: expected an image (N, {self.in_channels}, H, W), found {image.size()}")
        if image.size(3) % self.width_divisor != 0 or image.size(3) < self.minimum_width:
            raise ValueError(
                f"network: the image width must be a multiple of {self.width_divisor}, at least {self.minimum_width}, "
                f"found {image.size(3)}"
            )
        coordinates = image[:, 1:4]
        spare = memory_for(image)
        feature = self.stem(image.permute(0, 2, 3, 1).contiguous(), self.stripes, spare)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            if i < 3:
                skips.append(feature)
            feature = stage(feature, coordinates, self.tile_pixels, self.stripes, spare, i < 3)
            if i < 3:
                coordinates = narrow_coordinates(coordinates, self.circular)
        for i, stage in enumerate(self.decoder):
            feature = stage(feature, self.stripes, spare, skips.pop() if i >= 2 else None)
        return self.head(feature, self.stripes, spare).permute(0, 3, 1, 2)


class DeployedBlock(nn.Module):
    """Deploy form of a `SpatiallyAdaptiveBlock`."""

    attention: Tensor
    mix: Tensor
    mix_bias: Tensor

    def __init__(self, block: SpatiallyAdaptiveBlock):
        super().__init__()
        weight, bias = fold(block.attention.conv, block.attention.norm)
        channels = weight.shape[0] // TAPS
        # (C, taps, xyz, ky, kx) -> one column per tap and channel, one row per column of `coordinate_columns`
        rows = weight.reshape(channels, TAPS, *weight.shape[1:]).permute(3, 4, 2, 1, 0).reshape(-1, TAPS * channels)
        attention = torch.cat((rows, bias.reshape(channels, TAPS).t().reshape(1, -1)))
        # sigmoid(a) = 1 / (1 + 2 ** (-a log2 e)): two of its factors are constants
        self.register_buffer("attention", (attention.double() * -math.log2(math.e)).float().contiguous())
        weight, bias = fold(block.mix.conv, block.mix.norm)
        self.register_buffer("mix", weight.reshape(channels, channels, TAPS).transpose(1, 2).reshape(channels, -1))
        self.register_buffer("mix_bias", bias)
        self.conv = folded_conv(block.conv)
        self.kernel = block.attention.conv.kernel_size[0]
        self.circular = block.circular
        self.tile_scale = max(1, FULL_TILE_CHANNELS // channels)

    def forward(
        self,
        feature: Tensor,
        coordinates: Tensor,
        columns: Tensor | None,
        tile_pixels: int,
        stripes: int,
        spare: list[Tensor],
        keep: bool,
    ) -> Tensor:
        """feature (N, H, W, C), coordinates (N, H, W, 3) -> (N, H, W, C).

        columns: (N, H, W, 3 k k + 1) of the coordinates where somebody has taken them; else every tile takes its own.
        spare: see `memory`. keep: whether somebody needs the feature afterwards; else it may be overwritten.
        """
        mixed = take(spare, feature, list(feature.shape))
        bounds = stripe_bounds(feature.size(1), stripes)
        sizes = self.tile_sizes(max([bottom - top for top, bottom in bounds]), feature.size(2), tile_pixels)
        pieces = scratch(spare, feature, len(bounds) * sum(sizes)).view(len(bounds), sum(sizes))
        tasks: list[torch.jit.Future[Tensor]] = []
        for i in range(1, len(bounds)):
            top, bottom = bounds[i]
            tasks.append(
                torch.jit.fork(self.mix_rows, feature, coordinates, columns, tile_pixels, mixed, top, bottom, pieces[i])
            )
        self.mix_rows(feature, coordinates, columns, tile_pixels, mixed, 0, bounds[0][1], pieces[0])
        for task in tasks:
            torch.jit.wait(task)
        result: Tensor = self.conv(mixed, stripes, spare, feature, keep)
        give(spare, mixed)
        return result

    def tile_sizes(self, rows: int, width: int, tile_pixels: int) -> list[int]:
        """Values that a thread with so many rows needs in between: factors, features seen, columns of coordinates."""
        channels = self.mix.size(0)
        rows, cols = tile_shape(rows, width, tile_pixels * self.tile_scale)
        return [
            rows * cols * self.attention.size(1),
            (rows + 2) * (cols + 2) * channels,
            rows * cols * self.attention.size(0),
        ]

    def mix_rows(
        self,
        feature: Tensor,
        coordinates: Tensor,
        columns: Tensor | None,
        tile_pixels: int,
        mixed: Tensor,
        top: int,
        bottom: int,
        piece: Tensor,
    ) -> Tensor:
        """The spatially-adaptive convolution itself: rows [top, bottom) are written into `mixed`, which is returned."""
        batch, width, channels = feature.size(0), feature.size(2), feature.size(3)
        tile_rows, tile_columns = tile_shape(bottom - top, width, tile_pixels * self.tile_scale)
        sizes = self.tile_sizes(bottom - top, width, tile_pixels)
        all_factors, all_seen, all_columns = piece[: sum(sizes)].split(sizes)
        all_factors = all_factors.view(tile_rows * tile_columns, -1)
        for n in range(batch):
            for row in range(top, bottom, tile_rows):
                rows = min(tile_rows, bottom - row)
                for left in range(0, width, tile_columns):
                    cols = min(tile_columns, width - left)
                    if columns is None:
                        x = all_columns[: rows * cols * self.attention.size(0)].view(rows, cols, -1)
                        coordinate_columns(coordinates[n], row, left, self.kernel, self.circular, x)
                    else:
                        x = columns[n, row : row + rows, left : left + cols]
                    factors = all_factors[: rows * cols]
                    torch.mm(x.reshape(rows * cols, -1), self.attention, out=factors)
                    factors.exp2_().add_(1.0)
                    seen = all_seen[: (rows + 2) * (cols + 2) * channels].view(rows + 2, cols + 2, channels)
                    take_tile(feature[n], row - 1, left - 1, self.circular, seen)
                    adapted = factors.view(rows, cols, 3, 3 * channels)
                    torch.div(windows(seen, 3, 3), adapted, out=adapted)
                    out = mixed[n, row : row + rows, left : left + cols].view(rows * cols, channels)
                    torch.addmm(self.mix_bias, factors, self.mix.t(), out=out)
                    out.relu_()
        return mixed


class DeployedEncoderStage(nn.Module):
    """Deploy form of an `EncoderStage`."""

    def __init__(self, stage: EncoderStage):
        super().__init__()
        self.blocks = nn.ModuleList(
            DeployedBlock(block) for block in cast(Iterable[SpatiallyAdaptiveBlock], stage.blocks)
        )
        self.narrow = nn.ModuleList(folded_conv(layer) for layer in cast(Iterable[ConvNorm], stage.narrow))
        first = cast(SpatiallyAdaptiveBlock, stage.blocks[0])
        self.kernel = first.attention.conv.kernel_size[0]
        self.circular = first.circular

    def forward(
        self, feature: Tensor, coordinates: Tensor, tile_pixels: int, stripes: int, spare: list[Tensor], keep: bool
    ) -> Tensor:
        """feature (N, H, W, C), coordinates (N, 3, H, W) -> (N, H, W or W / 2, C'). The rest as in `DeployedBlock`."""
        height, width = feature.size(1), feature.size(2)
        coordinates = coordinates.permute(0, 2, 3, 1).contiguous()
        columns: Tensor | None = None
        if len(self.blocks) > 1:  # several blocks share what a single one takes tile by tile
            batch, depth = coordinates.size(0), 3 * self.kernel * self.kernel + 1
            columns = take(spare, feature, [batch, height, width, depth])
            for n in range(batch):
                coordinate_columns(coordinates[n], 0, 0, self.kernel, self.circular, columns[n])
        for block in self.blocks:
            feature = block(feature, coordinates, columns, tile_pixels, stripes, spare, keep)
            keep = False
        if columns is not None:
            give(spare, columns)
        for narrow in self.narrow:
            narrowed: Tensor = narrow(feature, stripes, spare)
            give(spare, feature)
            feature = narrowed
        return feature


class DeployedDecoderStage(nn.Module):
    """Deploy form of a `DecoderStage`."""

    def __init__(self, stage: DecoderStage):
        super().__init__()
        self.conv = folded_conv(stage.conv)
        self.squeeze = folded_conv(stage.squeeze)
        self.expand = folded_conv(stage.expand)
        self.out_channels = stage.conv.conv.out_channels

    def forward(self, feature: Tensor, stripes: int, spare: list[Tensor], skip: Tensor | None) -> Tensor:
        """(N, H, W, C) -> (N, H, W or 2 W, C'), with the skip of that shape added."""
        widened = self.conv(feature, stripes, spare)
        give(spare, feature)
        batch, height = widened.size(0), widened.size(1)
        widened = widened.view(batch, height, -1, self.out_channels)
        squeezed = self.squeeze(widened, stripes, spare)
        result: Tensor = self.expand(squeezed, stripes, spare, widened, False, skip)
        give(spare, squeezed)
        if skip is not None:
            give(spare, skip)
        return result


def coordinate_columns(coordinates: Tensor, top: int, left: int, kernel: int, circular: bool, columns: Tensor) -> None:
    """Fill columns (rows, cols, 3 k k + 1) with what the attention sees from (top, left) on of (H, W, 3), and a 1."""
    seen = coordinates.new_empty([columns.size(0) + kernel - 1, columns.size(1) + kernel - 1, 3])
    take_tile(coordinates, top - kernel // 2, left - kernel // 2, circular, seen)
    take_columns(seen, columns)
    columns[:, :, -1].fill_(1.0)
