"""The name of a network comes in; its settings, its work for one scan, and a model file with random weights go out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.network.model import SqueezeSegV3

NAMES = ("21", "53", "3/16", "1/4")
"""SqueezeSegV3-21 and -53, and the 21 with that share of its channels."""


def network_config(name: str) -> NetworkConfig:
    """The settings of a network of that name; any fraction is a width multiplier. Raises UserError for others."""
    from fractions import Fraction

    from sqsegv3_ros.network.config import NetworkConfig

    if name in ("21", "53"):
        return NetworkConfig.ssgv3_21() if name == "21" else NetworkConfig.ssgv3_53()
    try:
        multiplier = Fraction(name)
    except (ValueError, ZeroDivisionError):
        multiplier = Fraction(0)
    if not 0 < multiplier <= 2:
        raise UserError(f"a network is one of {', '.join(NAMES)} or another width multiplier up to 2, found '{name}'")
    return NetworkConfig.ssgv3_21().scaled(float(multiplier))


def random_network(config: NetworkConfig, seed: int = 0) -> SqueezeSegV3:
    """The training form with random weights, always the same, whose labels vary over the image."""
    import torch

    from sqsegv3_ros.network.model import SqueezeSegV3

    torch.manual_seed(seed)
    return SqueezeSegV3(config).eval()


def write_random_model(path: Path, config: NetworkConfig, height: int, width: int, seed: int = 0) -> None:
    """Write a model file with `random_network`'s weights and SemanticKITTI's classes; official KNN, as released."""
    import torch

    from sqsegv3_ros.artifact import ModelInfo, save_artifact
    from sqsegv3_ros.knn import KnnConfig
    from sqsegv3_ros.labels import SEMANTIC_KITTI
    from sqsegv3_ros.network.deploy import deploy
    from sqsegv3_ros.projection import Normalization, ProjectionConfig

    info = ModelInfo(
        name="random weights",
        architecture=config.to_dict(),
        labels=SEMANTIC_KITTI,
        projection=ProjectionConfig(height=height, width=width),
        normalization=Normalization(),
        knn=KnnConfig(),
        provenance={"source": "random weights, for measurements only"},
    )
    save_artifact(path, torch.jit.script(deploy(random_network(config, seed))), info)


_SLIVER = 64  # pixels, in one row


@dataclass(frozen=True)
class Work:
    """What a network has to do for one scan.

    macs: multiplications with additions, of all heads and of the full-width head alone. bytes: that the deploy form has
    to move at least, in float32: what every convolution reads and writes, once, where attention, product and 1x1
    convolution are one step and nothing between them goes to memory, and every weight once.
    """

    macs_all_heads: int
    macs: int
    bytes: int


def count_work(config: NetworkConfig, height: int, width: int) -> Work:
    """Count by running the network on a sliver of the image; all but the weights grows with its pixels.

    MACs are outputs times weights, by convolution, as the fact sheet's table 1.7 has them.
    """
    import torch
    from torch import nn

    from sqsegv3_ros.network.model import SqueezeSegV3
    from sqsegv3_ros.network.sac import Attention, SpatiallyAdaptiveBlock

    network = SqueezeSegV3(config).eval()
    image = torch.zeros(1, config.in_channels, 1, _SLIVER)
    scale = height * width / _SLIVER
    macs: dict[str, float] = {}
    moved: dict[str, float] = {}
    inside_attention = {m.conv for m in network.modules() if isinstance(m, Attention)}
    after_product = {m.mix.conv for m in network.modules() if isinstance(m, SpatiallyAdaptiveBlock)}

    def count(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            source = inputs[0]
            transposed = isinstance(module, nn.ConvTranspose2d)
            channels = module.in_channels if transposed else module.out_channels
            macs[name] = scale * (source if transposed else output).numel() * module.weight.numel() / channels
            read = source.numel() // 9 if module in after_product else source.numel()
            written = 0 if module in inside_attention else output.numel()
            moved[name] = 4 * (scale * (read + written) + module.weight.numel())

        return hook

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count(name))
    with torch.no_grad():
        network(image)
    other_heads = [name for name in macs if name.startswith("heads.") and not name.startswith("heads.0.")]
    everything = sum(macs.values())
    return Work(
        macs_all_heads=round(everything),
        macs=round(everything - sum(macs[name] for name in other_heads)),
        bytes=round(sum(moved.values()) - sum(moved[name] for name in other_heads)),
    )
