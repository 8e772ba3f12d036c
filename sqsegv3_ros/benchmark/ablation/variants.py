# SPDX-License-Identifier: Apache-2.0
"""The networks in the paper's tables 3-5, with the published numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqsegv3_ros.network.config import NetworkConfig

BASELINE = "conv"
"""The variant with which the paper compares the others: SqueezeSegV3 with standard convolutions."""
CONFIG = "config/train/ablation.yaml"
LAST_HEAD_ONLY = (1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Published:
    """The published numbers: percent, milliseconds (table 3 counts in 1e-4 s); None if not published."""

    miou: float
    accuracy: float
    latency_ms: float | None = None
    extra_parameters: float | None = None
    extra_macs: float | None = None


@dataclass(frozen=True)
class Variant:
    """A network that the paper compares with others.

    tables: the paper's tables (3, 4, 5) that it stands in, with what each calls it. settings: how it differs from
    SqueezeSegV3, as arguments of `NetworkConfig`. multi_layer: whether all five heads are taught, or the last alone.
    """

    name: str
    title: str
    tables: Mapping[int, str]
    published: Published
    settings: Mapping[str, Any] = field(default_factory=dict)
    multi_layer: bool = True

    def network(self, layers: str = "21", multiplier: float = 1.0) -> NetworkConfig:
        """The network with the depth of the 21 or the 53 and `multiplier` times its channels."""
        from sqsegv3_ros.network.config import NetworkConfig

        changes = dict(self.settings)
        rangenet = changes.pop("halvings", 3) == 5
        make = {
            ("21", False): NetworkConfig.ssgv3_21,
            ("53", False): NetworkConfig.ssgv3_53,
            ("21", True): NetworkConfig.rangenet_21,
            ("53", True): NetworkConfig.rangenet_53,
        }[layers, rangenet]
        return make(**changes).scaled(multiplier)

    def training_options(self, multiplier: float) -> list[str]:
        """Options of `sqsegv3 train` that make its configuration train this network: its row of the tables."""
        network = self.network(multiplier=multiplier)
        heads = [1.0] * 5 if self.multi_layer else list(LAST_HEAD_ONLY)
        return [
            *("--model.name", self.name),
            *("--model.network.block", network.block),
            *("--model.network.attention_kernel", str(network.attention_kernel)),
            *("--model.network.halvings", str(network.halvings)),
            *("--model.network.channels", json.dumps(network.channels)),
            *("--model.loss.heads", json.dumps(heads)),
        ]


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "conv", "standard convolution", {3: "Baseline", 4: "baseline", 5: "+ Multi-layer loss"},
        Published(44.0, 86.8, 0.30), {"block": "conv"},
    ),
    Variant("sac-s", "SAC-S", {3: "SAC-S"}, Published(44.9, 87.6, 0.53, 1.1, 2.4), {"block": "sac-s"}),
    Variant("sac-is", "SAC-IS", {3: "SAC-IS"}, Published(44.0, 86.9, 0.46, 2.2, 6.2), {"block": "sac-is"}),
    Variant("sac-sk", "SAC-SK", {3: "SAC-SK"}, Published(45.4, 88.2, 1.50, 1.9, 3.1), {"block": "sac-sk"}),
    Variant(
        "sac-isk", "SAC-ISK, 7x7", {3: "SAC-ISK", 4: "7x7", 5: "+ SAC-ISK"},
        Published(46.3, 88.6, 0.52, 14.9, 24.8), {"block": "sac-isk"},
    ),
    Variant("pac", "PAC", {3: "PAC"}, Published(45.2, 88.2, 1.84), {"block": "pac"}),
    Variant("se", "SE", {3: "SE"}, Published(44.2, 87.0, 5.45), {"block": "se"}),
    Variant("cbam", "CBAM", {3: "CBAM"}, Published(44.8, 87.5, 1.58), {"block": "cbam"}),
    Variant("cam", "CAM", {3: "CAM"}, Published(42.1, 85.8, 1.06), {"block": "cam"}),
    Variant("sac-isk-1x1", "SAC-ISK, 1x1", {4: "1x1"}, Published(45.5, 88.4), {"attention_kernel": 1}),
    Variant("sac-isk-3x3", "SAC-ISK, 3x3", {4: "3x3"}, Published(44.5, 87.6), {"attention_kernel": 3}),
    Variant("sac-isk-5x5", "SAC-ISK, 5x5", {4: "5x5"}, Published(45.4, 88.2), {"attention_kernel": 5}),
    Variant(
        "rangenet", "RangeNet's shape", {5: "Baseline"}, Published(38.6, 84.7),
        {"block": "conv", "halvings": 5}, multi_layer=False,
    ),
    Variant(
        "conv-last-head", "standard convolution, one loss", {5: "+ DS removal"}, Published(42.5, 86.2),
        {"block": "conv"}, multi_layer=False,
    ),
)  # fmt: skip


def training_commands(
    seeds: Sequence[int], *, root: str, output: str, config: str = CONFIG, multiplier: float = 0.25
) -> Iterator[str]:
    """The commands, for a shell, that train every variant once with every seed, each in its own folder.

    Seed by seed, so that a run that is cut short has all variants of the seeds that it completed.
    """
    for seed in seeds:
        for variant in VARIANTS:
            words = ["sqsegv3", "train", "--config", config, "--data.root", root]
            words += ["--run.output", f"{output}/{variant.name}-seed{seed}", "--seed_everything", str(seed)]
            yield shlex.join([*words, *variant.training_options(multiplier)])
