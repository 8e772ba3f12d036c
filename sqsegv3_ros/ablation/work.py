"""The settings of a network come in; its parameters and what it computes for one image go out, counted while it runs.

It runs on torch's 'meta' device, where tensors have shapes but no values: every convolution and product is seen at its
true size, and nothing is computed.
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
    """parameters: weights that are trained. macs: multiplications with additions in convolutions, transposed ones
    included, all five heads. products: multiplications of one image by another, such as features by their factors.
    """

    parameters: int
    macs: int
    products: int


def count(config: NetworkConfig, height: int, width: int) -> Work:
    """What the training form does for one image (1, 5, height, width) in eval mode."""
    with torch.device("meta"), torch.no_grad(), _Counter() as counter:
        network = SqueezeSegV3(config).eval()
        counter.macs = counter.products = 0  # making the weights counts nothing
        network(torch.zeros(1, config.in_channels, height, width))
    return Work(sum(p.numel() for p in network.parameters()), counter.macs, counter.products)


class _Counter(TorchDispatchMode):
    """Adds up what the operators below it have to do."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            image, weight, transposed = args[0], args[1], args[6]
            # a plain convolution multiplies in * k * k times for an output, a transposed one out * k * k for an input
            self.macs += (image if transposed else out).numel() * (weight.numel() // weight.shape[0])
        elif func is torch.ops.aten.mul.Tensor:
            self.products += out.numel()
        return out
