"""Features (N, H, W, C) -> features (N, H', W', C'): a convolution of the deploy form, everything folded into it.

Threads share its rows. Each computes its stripe from the first operation to the last, so that they wait for each other
once a layer and not once an operation: to wake a thread costs more than many an operation of a narrow network.
"""

# No `from __future__ import annotations` here: TorchScript needs the annotations of the classes as types.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.network.layers import AzimuthConv2d, AzimuthUpsample2d, ConvNorm
from sqsegv3_ros.network.model import Head
from sqsegv3_ros.network.tiles import new_image, stripe_bounds
from sqsegv3_ros.network.winograd import activate, pays, winograd3x3

BAND_VALUES = 1 << 17
"""Values that a convolution computes at a time where threads share it: half a MiB, which fits into a core's cache, and
which the C library keeps for the next piece instead of giving it back to the kernel."""


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
        self.band_values = BAND_VALUES

    def forward(self, feature: Tensor, stripes: int, onto: Tensor | None = None, keep: bool = False) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'), contiguous.

        stripes: how many threads share the rows. onto: the result is added to it, in place unless it is to be kept.
        """
        batch, height, width = feature.size(0), feature.size(1), feature.size(2)
        bounds = stripe_bounds(height, stripes)
        if len(bounds) == 1 and not self.prefers_rows(feature):
            # contiguous as it already is where the device's library keeps the layout
            result = self._convolve(feature, 0, height).contiguous()
            if onto is None:
                return result
            return result.add_(onto) if keep else onto.add_(result)
        if onto is not None and not keep:
            out = onto
        else:
            out = new_image(feature, [batch, height, width // self.stride[1], self.weight.size(0)])
        tasks: list[torch.jit.Future[Tensor]] = []
        for top, bottom in bounds[1:]:
            tasks.append(torch.jit.fork(self.fill_rows, feature, onto, out, top, bottom))
        self.fill_rows(feature, onto, out, 0, bounds[0][1])
        for task in tasks:
            torch.jit.wait(task)
        return out

    def prefers_rows(self, feature: Tensor) -> bool:
        """Whether `fill_rows` is the better way also for the whole image."""
        return False

    def fill_rows(self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of the result are written into `out`, which is returned and may be `onto`."""
        # few rows at a time: what lies between the operations then stays small and in the cache
        band = max(1, self.band_values // (out.size(2) * out.size(3)))
        for first in range(top, bottom, band):
            last = min(first + band, bottom)
            result = self._convolve(feature, first, last)
            if onto is None:
                out[:, first:last].copy_(result)
            else:
                torch.add(result, onto[:, first:last], out=out[:, first:last])
        return out

    def _convolve(self, feature: Tensor, top: int, bottom: int) -> Tensor:
        """(N, H, W, C) -> (N, bottom - top, W', C'): these rows of the result."""
        reach, pad = self.reach
        height = feature.size(1)
        rows = feature[:, max(top - reach, 0) : min(bottom + reach, height)]
        above, below = max(reach - top, 0), max(bottom + reach - height, 0)
        if above != below:  # an edge of the image; on the other side lie the rows of another stripe
            rows = F.pad(rows, [0, 0, 0, 0, above, below])
            above = 0
        if self.circular and pad > 0:
            rows = torch.cat((rows[:, :, -pad:], rows, rows[:, :, :pad]), dim=2)
            pad = 0
        out = F.conv2d(rows.permute(0, 3, 1, 2), self.weight, self.bias, self.stride, (above, pad))
        return activate(out.permute(0, 2, 3, 1), self.slope)


class WinogradConv(FoldedConv):
    """A 3x3 convolution of many channels, which on a CPU takes fewer multiplications (see `winograd3x3`)."""

    def prefers_rows(self, feature: Tensor) -> bool:
        """Whether the image can be computed so: its sides are even, it is float32 and on the CPU."""
        even = feature.size(1) % 2 == 0 and feature.size(2) % 2 == 0
        return even and feature.device.type == "cpu" and feature.dtype == torch.float32

    def fill_rows(self, feature: Tensor, onto: Tensor | None, out: Tensor, top: int, bottom: int) -> Tensor:
        """As `FoldedConv.fill_rows`."""
        if not self.prefers_rows(feature):
            result = self._convolve(feature, top, bottom)
            if onto is not None:
                result = result.add_(onto[:, top:bottom])
            out[:, top:bottom].copy_(result)
            return out
        if onto is not None and onto is not out:
            out[:, top:bottom].copy_(onto[:, top:bottom])
        winograd3x3(feature, self.weight, self.bias, self.circular, out, self.slope, onto is not None, top, bottom)
        return out


def folded_conv(layer: ConvNorm) -> FoldedConv:
    """The same function as convolution, BatchNorm and activation."""
    weight, bias = fold(layer.conv, layer.norm)
    conv = layer.conv
    if isinstance(conv, AzimuthUpsample2d):
        return FoldedConv(_upsampling_as_conv(weight), bias.repeat(2), (1, 1), conv.circular, slope=layer.slope)
    assert isinstance(conv, AzimuthConv2d)
    stride = (conv.stride[0], conv.stride[1])
    cheaper = stride == (1, 1) and conv.kernel_size == (3, 3) and pays(weight.shape[1], weight.shape[0])
    return (WinogradConv if cheaper else FoldedConv)(weight, bias, stride, conv.circular, slope=layer.slope)


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
