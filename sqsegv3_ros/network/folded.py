"""Features (N, H, W, C) -> features (N, H', W', C'): a convolution of the deploy form, everything folded into it.

Threads share its rows. Each computes its stripe from the first operation to the last, so that they wait for each other
once a layer and not once an operation: to wake a thread costs more than many an operation of a narrow network.
"""

# No `from __future__ import annotations` here: TorchScript needs the annotations of the classes as types.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, AzimuthUpsample2d, ConvNorm
from sqsegv3_ros.network.memory import scratch, take
from sqsegv3_ros.network.model import Head
from sqsegv3_ros.network.tiles import stripe_bounds, take_tile, tile_shape, windows
from sqsegv3_ros.network.winograd import activate, pays, scratch_values, transform_weights, winograd3x3

BAND_VALUES = 1 << 17
"""Values that a convolution computes at a time where threads share it: half a MiB, which fits into a core's cache, and
which the C library keeps for the next piece instead of giving it back to the kernel."""
TILE_PIXELS = 1024
"""Pixels that a product of matrices computes at a time."""
PRODUCT_CHANNELS = 64
"""From so many channels on, or for single pixels, a product of matrices is faster than oneDNN's convolution."""


class FoldedConv(nn.Module):
    """A convolution with whatever followed it folded in, features (N, H, W, C) -> (N, H', W', C').

    Here by the device's own library. A subclass has a better way for float32 on a CPU, and this one for the rest.
    """

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
        self.band_values = BAND_VALUES

    def forward(
        self,
        feature: Tensor,
        stripes: int,
        spare: list[Tensor],
        onto: Tensor | None = None,
        keep: bool = False,
        also: Tensor | None = None,
    ) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'), contiguous.

        stripes: how many threads share the rows on a CPU. spare: see `memory`. onto: the result is added to it, in
        place unless it is to be kept. also: and this to the sum.
        """
        batch, height, width = feature.size(0), feature.size(1), feature.size(2)
        own_way = self.has_own_way(feature)
        alone = stripes <= 1 and feature.numel() <= 8 * self.band_values
        if feature.device.type != "cpu" or (alone and not own_way):
            return self._at_once(feature, onto, keep, also)
        if onto is not None and not keep:
            out = onto
        else:
            out = take(spare, feature, [batch, height, width // self.stride[1], self.weight.size(0)])
        bounds = stripe_bounds(height, stripes)
        rows = max([bottom - top for top, bottom in bounds])
        common, each = self.own_sizes(feature, rows, onto is not None) if own_way else (0, self._band_size(out, rows))
        shared, pieces = scratch(spare, feature, common + len(bounds) * each).split([common, len(bounds) * each])
        pieces = pieces.view(len(bounds), each)
        if own_way:
            self.prepare(shared)
        tasks: list[torch.jit.Future[Tensor]] = []
        for i in range(1, len(bounds)):
            top, bottom = bounds[i]
            tasks.append(
                torch.jit.fork(self.fill_rows, feature, onto, also, out, top, bottom, own_way, shared, pieces[i])
            )
        self.fill_rows(feature, onto, also, out, 0, bounds[0][1], own_way, shared, pieces[0])
        for task in tasks:
            torch.jit.wait(task)
        return out

    def has_own_way(self, feature: Tensor) -> bool:
        """Whether this class has a better way for this feature on the CPU than torch's library."""
        return False

    def own_sizes(self, feature: Tensor, rows: int, add: bool) -> tuple[int, int]:
        """Values that the own way needs in between: all threads together, and each of them for so many rows."""
        return 0, 0

    def prepare(self, shared: Tensor) -> None:
        """Compute what all threads share."""

    def fill_own_way(
        self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int, shared: Tensor, piece: Tensor
    ) -> None:
        """Rows [top, bottom) of the result, with `onto`, are written into `out`, which may be `onto`."""

    def fill_rows(
        self,
        feature: Tensor,
        onto: Tensor | None,
        also: Tensor | None,
        out: Tensor,
        top: int,
        bottom: int,
        own_way: bool,
        shared: Tensor,
        piece: Tensor,
    ) -> Tensor:
        """Rows [top, bottom) of the result are written into `out`, which is returned and may be `onto`."""
        if own_way:
            self.fill_own_way(feature, onto, out, top, bottom, shared, piece)
        else:
            self._fill_bands(feature, onto, out, top, bottom, piece)
        if also is not None:
            out[:, top:bottom].add_(also[:, top:bottom])
        return out

    def _fill_bands(
        self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int, piece: Tensor
    ) -> None:
        # few rows at a time: what lies between the operations then stays small and in the cache
        (reach, pad), band = self.reach, self._band(out)
        columns, channels = feature.size(2) + 2 * pad, feature.size(3)
        for n in range(out.size(0)):
            for first in range(top, bottom, band):
                last = min(first + band, bottom)
                rows = last - first + 2 * reach
                seen = piece[: rows * columns * channels].view(rows, columns, channels)
                take_tile(feature[n], first - reach, -pad, self.circular, seen)
                result = F.conv2d(seen.permute(2, 0, 1).unsqueeze(0), self.weight, self.bias, self.stride)
                result = activate(result.squeeze(0).permute(1, 2, 0), self.slope)
                if onto is None:
                    out[n, first:last].copy_(result)
                else:
                    torch.add(result, onto[n, first:last], out=out[n, first:last])

    def _band(self, out: Tensor) -> int:
        return max(1, self.band_values // (out.size(2) * out.size(3)))

    def _band_size(self, out: Tensor, rows: int) -> int:
        reach, pad = self.reach
        columns = out.size(2) * self.stride[1] + 2 * pad
        return (min(rows, self._band(out)) + 2 * reach) * columns * self.weight.size(1)

    def _at_once(self, feature: Tensor, onto: Tensor | None, keep: bool, also: Tensor | None) -> Tensor:
        reach, pad = self.reach
        if self.circular and pad > 0:
            batch, height, width, channels = feature.size()
            padded = feature.new_empty([batch, height, width + 2 * pad, channels])
            padded[:, :, pad:-pad].copy_(feature)
            padded[:, :, :pad].copy_(feature[:, :, -pad:])
            padded[:, :, -pad:].copy_(feature[:, :, :pad])
            feature, pad = padded, 0
        result = F.conv2d(feature.permute(0, 3, 1, 2), self.weight, self.bias, self.stride, (reach, pad))
        # contiguous as it already is where the device's library keeps the layout
        result = activate(result.permute(0, 2, 3, 1), self.slope).contiguous()
        if onto is not None:
            result = result.add_(onto) if keep else onto.add_(result)
        return result if also is None else result.add_(also)


class ProductConv(FoldedConv):
    """A convolution of many channels, which on a CPU is best a product of matrices: windows of a tile times weights.

    In front of it lies a copy of what each pixel sees, unless that is the pixel alone. Nothing is allocated, and of an
    upsampling convolution the third of the weights that is zero is left out.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        circular: bool,
        *,
        slope: float,
        upsampling: bool = False,
    ):
        super().__init__(weight, bias, stride, circular, slope=slope)
        self.upsampling = upsampling
        self.tile_pixels = TILE_PIXELS
        self.tile_scale = max(1, PRODUCT_CHANNELS // weight.shape[1])

    def has_own_way(self, feature: Tensor) -> bool:
        """Whether it is on the CPU and in float32, for which the libraries are made."""
        return feature.device.type == "cpu" and feature.dtype == torch.float32

    def own_sizes(self, feature: Tensor, rows: int, add: bool) -> tuple[int, int]:
        """As `FoldedConv.own_sizes`."""
        return 0, sum(self._sizes(feature, rows, add))

    def fill_own_way(
        self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int, shared: Tensor, piece: Tensor
    ) -> None:
        """As `FoldedConv.fill_own_way`."""
        (reach, pad), step = self.reach, self.stride[1]
        batch, width, channels, out_channels = out.size(0), out.size(2), feature.size(3), out.size(3)
        tile_rows, tile_columns = tile_shape(bottom - top, width, self.tile_pixels * self.tile_scale)
        sizes = self._sizes(feature, bottom - top, onto is not None)
        all_seen, all_columns, all_results = piece[: sum(sizes)].split(sizes)
        weight = self.weight.permute(0, 2, 3, 1).reshape(out_channels, -1).t()
        for n in range(batch):
            for row in range(top, bottom, tile_rows):
                rows = min(tile_rows, bottom - row)
                for left in range(0, width, tile_columns):
                    cols = min(tile_columns, width - left)
                    pixels = rows * cols
                    if reach + pad == 0 and step == 1:
                        columns = feature[n, row : row + rows, left : left + cols].reshape(pixels, channels)
                    else:
                        shape = [rows + 2 * reach, (cols - 1) * step + 1 + 2 * pad, channels]
                        seen = all_seen[: shape[0] * shape[1] * channels].view(shape)
                        take_tile(feature[n], row - reach, left * step - pad, self.circular, seen)
                        seen = windows(seen, 2 * reach + 1, 2 * pad + 1, step)
                        columns = all_columns[: pixels * weight.size(0)]
                        columns.view(seen.size()).copy_(seen)
                        columns = columns.view(pixels, -1)
                    target = out[n, row : row + rows, left : left + cols].view(pixels, out_channels)
                    result = target
                    if onto is not None:
                        result = all_results[: pixels * out_channels].view(pixels, out_channels)
                    if self.upsampling:  # see `_upsampling_as_conv`
                        half, seen_twice = out_channels // 2, 2 * channels
                        even, odd = result[:, :half], result[:, half:]
                        torch.addmm(self.bias[:half], columns[:, :seen_twice], weight[:seen_twice, :half], out=even)
                        torch.addmm(self.bias[half:], columns[:, channels:], weight[channels:, half:], out=odd)
                    else:
                        torch.addmm(self.bias, columns, weight, out=result)
                    activate(result, self.slope)
                    if onto is not None:
                        added = onto[n, row : row + rows, left : left + cols].view(pixels, out_channels)
                        torch.add(result, added, out=target)

    def _sizes(self, feature: Tensor, rows: int, add: bool) -> list[int]:
        """Values of a tile with what lies around it, of its windows, and of results to be added."""
        (reach, pad), step = self.reach, self.stride[1]
        channels, out_channels = feature.size(3), self.weight.size(0)
        tile_rows, cols = tile_shape(rows, feature.size(2) // step, self.tile_pixels * self.tile_scale)
        pixels = tile_rows * cols
        results = pixels * out_channels if add else 0
        if reach + pad == 0 and step == 1:
            return [0, 0, results]
        seen = (tile_rows + 2 * reach) * ((cols - 1) * step + 1 + 2 * pad) * channels
        return [seen, pixels * (2 * reach + 1) * (2 * pad + 1) * channels, results]


class WinogradConv(FoldedConv):
    """A 3x3 convolution of many channels, which on a CPU takes fewer multiplications (see `winograd3x3`)."""

    def has_own_way(self, feature: Tensor) -> bool:
        """Whether the image can be computed so: its sides are even, it is float32 and on the CPU."""
        even = feature.size(1) % 2 == 0 and feature.size(2) % 2 == 0
        return even and feature.device.type == "cpu" and feature.dtype == torch.float32

    def own_sizes(self, feature: Tensor, rows: int, add: bool) -> tuple[int, int]:
        """As `FoldedConv.own_sizes`."""
        out_channels, channels = self.weight.size(0), self.weight.size(1)
        return 16 * channels * out_channels, scratch_values(rows, feature.size(2), channels, out_channels, add)

    def prepare(self, shared: Tensor) -> None:
        """As `FoldedConv.prepare`: the transformed weights."""
        transform_weights(self.weight, shared.view(self.weight.size(0), 16, self.weight.size(1)))

    def fill_own_way(
        self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int, shared: Tensor, piece: Tensor
    ) -> None:
        """As `FoldedConv.fill_own_way`."""
        if onto is not None and onto is not out:
            out[:, top:bottom].copy_(onto[:, top:bottom])
        kernels = shared.view(self.weight.size(0), 16, self.weight.size(1))
        add = onto is not None
        winograd3x3(feature, kernels, self.bias, self.circular, out, self.slope, add, top, bottom, piece)


def folded_conv(layer: ConvNorm) -> FoldedConv:
    """The same function as convolution, BatchNorm and activation."""
    weight, bias = fold(layer.conv, layer.norm)
    conv = layer.conv
    if isinstance(conv, AzimuthUpsample2d):
        wide, bias = _upsampling_as_conv(weight), bias.repeat(2)
        if weight.shape[0] >= PRODUCT_CHANNELS:
            return ProductConv(wide, bias, (1, 1), conv.circular, slope=layer.slope, upsampling=True)
        return FoldedConv(wide, bias, (1, 1), conv.circular, slope=layer.slope)
    assert isinstance(conv, AzimuthConv2d)
    stride = (conv.stride[0], conv.stride[1])
    way = FoldedConv
    if weight.shape[1] >= PRODUCT_CHANNELS or (stride == (1, 1) and conv.kernel_size == (1, 1)):
        way = ProductConv
    if stride == (1, 1) and conv.kernel_size == (3, 3) and pays(weight.shape[1], weight.shape[0]):
        way = WinogradConv
    return way(weight, bias, stride, conv.circular, slope=layer.slope)


def folded_head(head: Head) -> FoldedConv:
    """A head as it is in eval mode."""
    assert head.conv.bias is not None
    return FoldedConv(head.conv.weight, head.conv.bias, (1, 1), head.conv.circular, slope=1.0)


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
