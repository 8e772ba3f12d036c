# SPDX-License-Identifier: Apache-2.0
"""Convolutions that know whether the left and the right edge of the range image are neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_azimuth(image: Tensor, columns: int) -> Tensor:
    """Pad circularly: continue the image beyond each edge by columns of the other one.

    Args:
        image: (..., H, W).
        columns: Columns to add on either side.

    Returns:
        (..., H, W + 2 columns).
    """
    if columns == 0:
        return image
    return torch.cat((image[..., -columns:], image, image[..., :columns]), dim=-1)


class AzimuthConv2d(nn.Conv2d):
    """A convolution with "same" padding, zero or, in azimuth, circular.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the square kernel, odd.
        circular: Pad left and right by the other edge; above and below the padding is always zero.
        stride: Vertical and horizontal stride.
        bias: Whether there is a bias.
    """

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
        """Convolve (N, in, H, W) to (N, out, H / stride, W / stride)."""
        if self.circular:
            reach = self.kernel_size[1] // 2
            return F.conv2d(pad_azimuth(image, reach), self.weight, self.bias, self.stride, (reach, 0))
        return F.conv2d(image, self.weight, self.bias, self.stride, self.padding)


class AzimuthUpsample2d(nn.ConvTranspose2d):
    """A transposed convolution that doubles the width: kernel (1, 4), stride (1, 2), with a bias."""

    def __init__(self, in_channels: int, out_channels: int, *, circular: bool):
        super().__init__(in_channels, out_channels, (1, 4), stride=(1, 2), padding=(0, 1))
        self.circular = circular

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Upsample (N, in, H, W) to (N, out, H, 2 W)."""
        if self.circular:
            # one more column on either side becomes two in the output, which the larger padding crops
            return F.conv_transpose2d(pad_azimuth(image, 1), self.weight, self.bias, self.stride, (0, 3))
        return F.conv_transpose2d(image, self.weight, self.bias, self.stride, (0, 1))


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, activation.

    Args:
        conv: The convolution.
        momentum: Momentum of the BatchNorm.
        slope: Negative slope of the LeakyReLU; 0 for a ReLU.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, *, momentum: float, slope: float):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, momentum=momentum)
        self.slope = slope

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        normalized = self.norm(self.conv(image))
        return F.relu(normalized) if self.slope == 0 else F.leaky_relu(normalized, self.slope)
