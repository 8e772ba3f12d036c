"""The weights of a model file come in, a network that can be trained further goes out: the inverse of `deploy`.

In the deploy form every BatchNorm is folded into its convolution. Here each convolution gets its folded weights and a
BatchNorm that changes nothing; `measure_statistics` then makes that one what training expects, mean and variance of the
values that arrive there, without changing what the network computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.layers import AzimuthUpsample2d, ConvNorm
from sqsegv3_ros.network.model import DecoderStage, EncoderStage, Head, SqueezeSegV3
from sqsegv3_ros.network.sac import TAPS, Attention, SpatiallyAdaptiveBlock


def unfold(weights: Mapping[str, Tensor], config: NetworkConfig) -> SqueezeSegV3:
    """A network in eval mode that computes what a `DeployedSqueezeSegV3` with these weights (its state_dict) does.

    The heads that only teach, which the deploy form has not, begin anew.
    """
    network = SqueezeSegV3(config).eval()
    with torch.no_grad():
        _fill(network.stem, weights, "stem")
        for i, stage in enumerate(cast(Iterable[EncoderStage], network.encoder)):
            for j, block in enumerate(cast(Iterable[SpatiallyAdaptiveBlock], stage.blocks)):
                _fill_block(block, weights, f"encoder.{i}.blocks.{j}")
            for j, narrow in enumerate(cast(Iterable[ConvNorm], stage.narrow)):
                _fill(narrow, weights, f"encoder.{i}.narrow.{j}")
        for i, widening in enumerate(cast(Iterable[DecoderStage], network.decoder)):
            for name in ("conv", "squeeze", "expand"):
                _fill(cast(ConvNorm, getattr(widening, name)), weights, f"decoder.{i}.{name}")
        head = cast(Head, network.heads[0])
        head.conv.weight.copy_(weights["head.weight"])
        assert head.conv.bias is not None
        head.conv.bias.copy_(weights["head.bias"])
    return network


def measure_statistics(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Set every BatchNorm's running mean and variance to those of the values that these images bring there.

    images: normalised, (N, 5, H, W) each. Scale and shift are set so that in eval mode nothing changes. The network
    must be in eval mode, and its BatchNorms as `unfold` leaves them.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    sums: dict[nn.Module, Tensor] = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def count(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        # a few channels at a time: all in float64 would be gigabytes for the attention of the 21
        for channels, part in zip(arguments[0].detach().split(16, 1), sums[norm].split(16, 1), strict=True):
            values = channels.double().transpose(0, 1).flatten(1).cpu()
            number = torch.full_like(values[:, 0], values.shape[1])
            part += torch.stack([number, values.sum(1), (values**2).sum(1)])

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    try:
        with torch.no_grad():
            for image in images:
                network(image)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for norm in norms:
            number, total, squares = sums[norm]
            assert norm.running_mean is not None and norm.running_var is not None
            mean = total / number
            variance = (squares / number - mean**2).clamp_min(0)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _fill_block(block: SpatiallyAdaptiveBlock, weights: Mapping[str, Tensor], name: str) -> None:
    channels, kernel = block.mix.conv.out_channels, block.attention.conv.kernel_size[0]
    # rows (ky, kx, xyz) and one for the bias, columns (taps, C), times what the sigmoid's base 2 takes
    attention = weights[f"{name}.attention"].double() / -math.log2(math.e)
    rows = attention[:-1].reshape(kernel, kernel, 3, TAPS, channels).permute(4, 3, 2, 0, 1)
    bias = attention[-1].reshape(TAPS, channels).t().flatten()
    _put(block.attention, rows.reshape(TAPS * channels, 3, kernel, kernel), bias)
    mix = weights[f"{name}.mix"].reshape(channels, TAPS, channels).transpose(1, 2)
    _put(block.mix, mix.reshape(channels, TAPS * channels, 1, 1), weights[f"{name}.mix_bias"])
    _fill(block.conv, weights, f"{name}.conv")


def _fill(layer: ConvNorm, weights: Mapping[str, Tensor], name: str) -> None:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if isinstance(layer.conv, AzimuthUpsample2d):  # even columns in the first half of the channels, odd ones behind
        even, odd = weight.chunk(2)
        weight = torch.stack((odd[..., 2], even[..., 1], odd[..., 1], even[..., 0]), dim=-1).transpose(0, 1)
        bias = bias.chunk(2)[0]
    _put(layer, weight, bias)


def _put(layer: ConvNorm | Attention, weight: Tensor, bias: Tensor) -> None:
    norm = layer.norm
    assert norm.running_mean is not None and norm.running_var is not None
    layer.conv.weight.copy_(weight)
    if layer.conv.bias is not None:
        layer.conv.bias.zero_()
    norm.weight.fill_(1)
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
