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
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.network.config import WIDTH_DIVISOR
from sqsegv3_ros.network.layers import AzimuthConv2d, AzimuthUpsample2d, ConvNorm
from sqsegv3_ros.network.model import DecoderStage, EncoderStage, Head, SqueezeSegV3, narrow_coordinates
from sqsegv3_ros.network.sac import TAPS, SpatiallyAdaptiveBlock
from sqsegv3_ros.network.tiles import new_image, take_columns, take_tile, tile_shape, windows
from sqsegv3_ros.network.winograd import activate, pays, winograd3x3

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
    """Scriptable deploy form of a `SqueezeSegV3`. `tile_pixels` may be set at any time, also after loading."""

    def __init__(self, model: SqueezeSegV3):
        super().__init__()
        self.tile_pixels = TILE_PIXELS
        self.in_channels = model.in_channels
        self.width_divisor = WIDTH_DIVISOR
        self.minimum_width = model.minimum_width
        self.circular = model.circular
        self.stem = FoldedConv.of(model.stem)
        self.encoder = nn.ModuleList(DeployedEncoderStage(s) for s in cast(Iterable[EncoderStage], model.encoder))
        self.decoder = nn.ModuleList(DeployedDecoderStage(s) for s in cast(Iterable[DecoderStage], model.decoder))
        self.head = FoldedConv.of_head(cast(Head, model.heads[0]))

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
        feature = self.stem(image.permute(0, 2, 3, 1).contiguous())
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            if i < 3:
                skips.append(feature)
            feature = stage(feature, coordinates, self.tile_pixels, i < 3)
            if i < 3:
                coordinates = narrow_coordinates(coordinates, self.circular)
        for i, stage in enumerate(self.decoder):
            feature = stage(feature)
            if i >= 2:
                feature = feature.add_(skips.pop())
        return self.head(feature).permute(0, 3, 1, 2)


class FoldedConv(nn.Module):
    """A convolution with whatever followed it folded in, features (N, H, W, C) -> (N, H', W', C')."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], circular: bool, *, slope: float):
        super().__init__()
        self.register_buffer("weight", weight.detach().float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach().float().clone())
        self.stride = stride
        self.reach = (weight.shape[2] // 2, weight.shape[3] // 2)
        self.circular = circular
        self.slope = slope
        self.winograd = stride == (1, 1) and self.reach == (1, 1) and pays(weight.shape[1], weight.shape[0])

    @classmethod
    def of(cls, layer: ConvNorm) -> "FoldedConv":
        """The same function as convolution, BatchNorm and activation."""
        weight, bias = fold(layer.conv, layer.norm)
        conv = layer.conv
        if isinstance(conv, AzimuthConv2d):
            return cls(weight, bias, (conv.stride[0], conv.stride[1]), conv.circular, slope=layer.slope)
        assert isinstance(conv, AzimuthUpsample2d)
        return cls(_upsampling_as_conv(weight), bias.repeat(2), (1, 1), conv.circular, slope=layer.slope)

    @classmethod
    def of_head(cls, head: Head) -> "FoldedConv":
        """A head as it is in eval mode."""
        assert head.conv.bias is not None
        return cls(head.conv.weight, head.conv.bias, (1, 1), head.conv.circular, slope=1.0)

    def forward(self, feature: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'), contiguous. onto: the result is added to it; it may be overwritten."""
        even = feature.size(1) % 2 == 0 and feature.size(2) % 2 == 0
        if self.winograd and even and feature.device.type == "cpu" and feature.dtype == torch.float32:
            return winograd3x3(feature, self.weight, self.bias, self.circular, self.slope, onto)
        out = activate(self._convolve(feature), self.slope)
        return out if onto is None else out.add_(onto)

    def _convolve(self, feature: Tensor) -> Tensor:
        pad = self.reach[1]
        if self.circular and pad > 0:
            feature = torch.cat((feature[:, :, -pad:], feature, feature[:, :, :pad]), dim=2)
            pad = 0
        image = feature.permute(0, 3, 1, 2)
        out = F.conv2d(image, self.weight, self.bias, self.stride, (self.reach[0], pad))
        return out.permute(0, 2, 3, 1).contiguous()  # as it already is where the device's library keeps the layout


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
        self.conv = FoldedConv.of(block.conv)
        self.kernel = block.attention.conv.kernel_size[0]
        self.circular = block.circular
        self.tile_scale = max(1, FULL_TILE_CHANNELS // channels)

    def forward(
        self, feature: Tensor, coordinates: Tensor, columns: Tensor | None, tile_pixels: int, keep: bool
    ) -> Tensor:
        """feature (N, H, W, C), coordinates (N, H, W, 3) -> (N, H, W, C).

        columns: (N, H, W, 3 k k + 1) of the coordinates where somebody has taken them; else every tile takes its own.
        keep: whether somebody needs the feature afterwards; else it may be overwritten.
        """
        mixed = self._mix(feature, coordinates, columns, tile_pixels).relu_()
        if keep:
            return self.conv(mixed).add_(feature)
        return self.conv(mixed, feature)

    def _mix(self, feature: Tensor, coordinates: Tensor, columns: Tensor | None, tile_pixels: int) -> Tensor:
        """The spatially-adaptive convolution itself, without its activation."""
        batch, height, width, channels = feature.size()
        tile_rows, tile_columns = tile_shape(height, width, tile_pixels * self.tile_scale)
        mixed = new_image(feature, [batch, height, width, channels])
        all_factors = new_image(feature, [tile_rows * tile_columns, self.attention.size(1)])
        for n in range(batch):
            for top in range(0, height, tile_rows):
                rows = min(tile_rows, height - top)
                for left in range(0, width, tile_columns):
                    cols = min(tile_columns, width - left)
                    if columns is None:
                        x = coordinate_columns(coordinates[n], top, left, rows, cols, self.kernel, self.circular)
                    else:
                        x = columns[n, top : top + rows, left : left + cols]
                    factors = all_factors[: rows * cols]
                    torch.mm(x.reshape(rows * cols, -1), self.attention, out=factors)
                    factors.exp2_().add_(1.0)
                    seen = feature.new_empty([rows + 2, cols + 2, channels])
                    take_tile(feature[n], top, left, 1, self.circular, seen)
                    adapted = factors.view(rows, cols, 3, 3 * channels)
                    torch.div(windows(seen, 3), adapted, out=adapted)
                    out = mixed[n, top : top + rows, left : left + cols].view(rows * cols, channels)
                    torch.addmm(self.mix_bias, factors, self.mix.t(), out=out)
        return mixed


class DeployedEncoderStage(nn.Module):
    """Deploy form of an `EncoderStage`."""

    def __init__(self, stage: EncoderStage):
        super().__init__()
        self.blocks = nn.ModuleList(
            DeployedBlock(block) for block in cast(Iterable[SpatiallyAdaptiveBlock], stage.blocks)
        )
        self.narrow = nn.ModuleList(FoldedConv.of(layer) for layer in cast(Iterable[ConvNorm], stage.narrow))
        first = cast(SpatiallyAdaptiveBlock, stage.blocks[0])
        self.kernel = first.attention.conv.kernel_size[0]
        self.circular = first.circular

    def forward(self, feature: Tensor, coordinates: Tensor, tile_pixels: int, keep: bool) -> Tensor:
        """feature (N, H, W, C), coordinates (N, 3, H, W) -> (N, H, W or W / 2, C'). keep: as in `DeployedBlock`."""
        height, width = feature.size(1), feature.size(2)
        coordinates = coordinates.permute(0, 2, 3, 1).contiguous()
        columns: Tensor | None = None
        if len(self.blocks) > 1:  # several blocks share what a single one takes tile by tile
            columns = torch.stack(
                [coordinate_columns(c, 0, 0, height, width, self.kernel, self.circular) for c in coordinates.unbind()]
            )
        for block in self.blocks:
            feature = block(feature, coordinates, columns, tile_pixels, keep)
            keep = False
        for narrow in self.narrow:
            feature = narrow(feature)
        return feature


class DeployedDecoderStage(nn.Module):
    """Deploy form of a `DecoderStage`."""

    def __init__(self, stage: DecoderStage):
        super().__init__()
        self.conv = FoldedConv.of(stage.conv)
        self.squeeze = FoldedConv.of(stage.squeeze)
        self.expand = FoldedConv.of(stage.expand)
        self.out_channels = stage.conv.conv.out_channels

    def forward(self, feature: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W or 2 W, C')."""
        feature = self.conv(feature)
        batch, height = feature.size(0), feature.size(1)
        feature = feature.view(batch, height, -1, self.out_channels)
        return self.expand(self.squeeze(feature), feature)


def fold(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, float32, of the convolution that does what `conv` and then `norm` in eval mode do."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.detach().double()
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach().double()
    bias = (bias - norm.running_mean.double()) * scale + norm.bias.detach().double()
    return (weight * scale.view(shape)).float(), bias.float()


def _upsampling_as_conv(weight: Tensor) -> Tensor:
    """Transposed convolution (in, out, 1, 4), stride 2, padding 1 -> plain convolution (2 out, in, 1, 3).

    Its output holds the even columns in the first `out` channels and the odd ones in the others, so that channels last
    it is, read as it lies, the image of double width: even column 2 j sees j - 1 and j, odd column 2 j + 1 sees j and
    j + 1.
    """
    taps = weight.transpose(0, 1)
    nothing = torch.zeros_like(taps[..., 0])
    even = torch.stack((taps[..., 3], taps[..., 1], nothing), dim=-1)
    odd = torch.stack((nothing, taps[..., 2], taps[..., 0]), dim=-1)
    return torch.cat((even, odd))


def coordinate_columns(
    coordinates: Tensor, top: int, left: int, rows: int, cols: int, kernel: int, circular: bool
) -> Tensor:
    """(H, W, 3) -> (rows, cols, 3 k k + 1), for the pixels from (top, left) on what the attention sees, and a 1."""
    seen = coordinates.new_empty([rows + kernel - 1, cols + kernel - 1, 3])
    take_tile(coordinates, top, left, kernel // 2, circular, seen)
    columns = coordinates.new_ones([rows, cols, 3 * kernel * kernel + 1])
    take_columns(seen, columns)
    return columns
