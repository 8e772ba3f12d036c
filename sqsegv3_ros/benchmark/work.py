# SPDX-License-Identifier: Apache-2.0
"""The arithmetic and memory traffic of a network, counted while it runs without computing.

It runs on torch's 'meta' device, whose tensors have shapes but no values: every convolution and product is seen at its
true size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3


@dataclass(frozen=True)
class Work:
    """What a network computes for one image.

    Attributes:
        parameters: Trained weights.
        macs: Multiply-accumulates of all convolutions, transposed ones included.
        products: Multiplications of one image by another, such as features by attention factors.
        bytes: What the convolutions read and write, weights included, in float32.
    """

    parameters: int
    macs: int
    products: int
    bytes: int


def count(config: NetworkConfig, height: int, width: int, *, heads: int = 5) -> Work:
    """Count the work of a network in eval mode for one image (1, 5, height, width).

    Args:
        config: The network.
        height: Rows of the image.
        width: Columns of the image.
        heads: Heads that run, full resolution first: 5 in training, 1 in the exported form.
    """
    with torch.device("meta"), torch.no_grad(), _Counter() as counter:
        network = SqueezeSegV3(config).eval()
        network.heads = network.heads[:heads]
        counter.macs = counter.products = counter.bytes = 0  # making the weights counts nothing
        network(torch.zeros(1, config.in_channels, height, width))
    return Work(sum(p.numel() for p in network.parameters()), counter.macs, counter.products, counter.bytes)


class _Counter(TorchDispatchMode):
    """Adds up the work of the operators that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.products = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            image, weight, transposed = args[0], args[1], args[6]
            # a plain convolution multiplies in * k * k times for an output, a transposed one out * k * k for an input
            self.macs += (image if transposed else out).numel() * (weight.numel() // weight.shape[0])
            self.bytes += 4 * (image.numel() + weight.numel() + out.numel())
        elif func is torch.ops.aten.mul.Tensor:
            self.products += out.numel()
        return out
