"""(N, C, H, W) features -> (N, C', H, W') features: the convolutions of the network, aware of the azimuth seam."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_azimuth(image: Tensor, columns: int) -> Tensor:
    """(..., H, W) -> (..., H, W + 2 columns): `columns` of the right edge put left, and of the left edge put right."""
    if columns == 0:
        return image
    return torch.cat((image[..., -columns:], image, image[..., :columns]), dim=-1)


class AzimuthConv2d(nn.Conv2d):
    """A convolution that keeps height and width (but for the stride); beyond the top and bottom lies zero, beyond
    left and right either zero or, with `circular`, the other edge."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        circular: bool,
        stride: tuple[int, int] = (1, 1),
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.circular = circular

    def forward(self, image: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        if self.circular:
            reach = self.kernel_size[1] // 2
            return F.conv2d(pad_azimuth(image, reach), self.weight, self.bias, self.stride, (reach, 0))
        return F.conv2d(image, self.weight, self.bias, self.stride, self.padding)


class AzimuthUpsample2d(nn.ConvTranspose2d):
    """A transposed convolution that doubles the width: kernel (1, 4), stride (1, 2), with a bias."""

    def __init__(self, in_channels: int, out_channels: int, *, circular: bool):
        super().__init__(in_channels, out_channels, (1, 4), stride=(1, 2), padding=(0, 1))
        self.circular = circular

    def forward(self, image: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in, H, W) -> (N, out, H, 2 W). output_size is there for nn.ConvTranspose2d's sake and not used."""
        if self.circular:
            # one more column on either side becomes two in the output, which the larger padding crops away
            return F.conv_transpose2d(pad_azimuth(image, 1), self.weight, self.bias, self.stride, (0, 3))
        return F.conv_transpose2d(image, self.weight, self.bias, self.stride, (0, 1))


class ConvNorm(nn.Module):
    """Convolution -> BatchNorm -> activation: LeakyReLU with `slope`, ReLU where it is 0."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, *, momentum: float, slope: float):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, momentum=momentum)
        self.slope = slope

    def forward(self, image: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        normalized = self.norm(self.conv(image))
        if self.slope == 0:
            return F.relu(normalized)
        return F.leaky_relu(normalized, self.slope)
