# SPDX-License-Identifier: Apache-2.0
"""Configuration of a SqueezeSegV3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import settings_from_dict

STAGES = 5
WIDTH_DIVISOR = 8
"""The width of crops and images must be a multiple of this, because three stages halve it."""

ATTENTION_KERNELS = (1, 3, 5, 7)
AZIMUTH_PADDINGS = ("zero", "circular")
SAC_BLOCKS = ("sac-s", "sac-is", "sac-sk", "sac-isk")
BLOCKS = (*SAC_BLOCKS, "conv", "se", "cbam", "cam", "pac")
HALVINGS = (3, 5)
_POOL_REACH = 3
"""Pixels to either side in CBAM's convolution and CAM's pooling, which are 7x7."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a SqueezeSegV3. The defaults are the SqueezeSegV3-21 of the official release.

    Attributes:
        blocks: Blocks of each of the five encoder stages.
        channels: Feature channels of each encoder stage; the decoder mirrors them.
        attention_kernel: Side of the attention convolution over the coordinates: 1, 3, 5 or 7 (paper and release: 7).
        num_classes: Classes of every head; training sets it from the label set.
        in_channels: Channels of the input image; channels 1 to 3 are x, y, z.
        azimuth_padding: Padding at the left and right edge of the image: 'zero' (release) or 'circular', the other edge
            of a full turn, in every convolution. Circular padding makes the network equivariant to rotation by 8
            columns.
        dropout: Probability of dropping a channel after each encoder stage, in training.
        decoder_dropout: Probability of dropping a channel after the decoder, in training.
        head_dropout: Probability of dropping a channel before each head, in training.
        bn_momentum: Momentum of the BatchNorms outside the blocks; inside them it is 0.1, as in the release.
        block: Block of the encoder: 'sac-isk' (release), or one that the paper compares with it: 'conv' (no attention),
            'sac-s', 'sac-is', 'sac-sk', 'se', 'cbam', 'cam', 'pac'.
        halvings: Encoder stages that halve the width: 3 (release) or 5 (RangeNet). With 5 the last two stages may have
            different channels, and the output of the fifth has twice its channels.
    """

    blocks: tuple[int, ...] = (1, 1, 2, 2, 1)
    channels: tuple[int, ...] = (32, 64, 128, 256, 256)
    attention_kernel: int = 7
    num_classes: int = 20
    in_channels: int = 5
    azimuth_padding: str = "zero"
    dropout: float = 0.01
    decoder_dropout: float = 0.01
    head_dropout: float = 0.01
    bn_momentum: float = 0.01
    block: str = "sac-isk"
    halvings: int = 3

    def __post_init__(self) -> None:
        for name in ("blocks", "channels"):
            values = tuple(getattr(self, name))
            if len(values) != STAGES or not all(isinstance(v, int) and v > 0 for v in values):
                raise UserError(f"network: {name} must be {STAGES} positive whole numbers, found {values}")
            object.__setattr__(self, name, values)
        self._check_choice("halvings", HALVINGS)
        if self.halvings == 3 and self.channels[3] != self.channels[4]:
            raise UserError(
                "network: the last two stages must have equally many channels, because no convolution connects them, "
                f"found {self.channels[3]} and {self.channels[4]}"
            )
        self._check_choice("attention_kernel", ATTENTION_KERNELS)
        self._check_choice("azimuth_padding", AZIMUTH_PADDINGS)
        self._check_choice("block", BLOCKS)
        if self.num_classes < 2:
            raise UserError(f"network: num_classes must be 2 or more, found {self.num_classes}")
        if self.in_channels < 4:
            raise UserError(
                f"network: in_channels must be 4 or more, because channels 1..3 are x, y, z; found {self.in_channels}"
            )
        for name in ("dropout", "decoder_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"network: {name} must be in [0, 1), found {getattr(self, name)}")
        if not 0 < self.bn_momentum <= 1:
            raise UserError(f"network: bn_momentum must be in (0, 1], found {self.bn_momentum}")

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        if getattr(self, name) not in choices:
            listed = ", ".join(map(str, choices))
            raise UserError(f"network: {name} must be one of {listed}, found {getattr(self, name)!r}")

    @property
    def circular(self) -> bool:
        """Whether the left and the right edge of the image are neighbours."""
        return self.azimuth_padding == "circular"

    @property
    def width_divisor(self) -> int:
        """Divisor of the image width."""
        return int(2**self.halvings)

    @property
    def minimum_width(self) -> int:
        """Smallest image width: circular padding cannot be wider than the image."""
        reach = 1
        if self.circular and self.block in SAC_BLOCKS:
            reach = max(1, self.attention_kernel // 2)
        elif self.circular and self.block in ("cbam", "cam"):
            reach = _POOL_REACH
        return self.width_divisor * reach

    @property
    def output_channels(self) -> tuple[int, ...]:
        """Output channels of each encoder stage."""
        c = self.channels
        return (*c[1:], c[4] if self.halvings == 3 else 2 * c[4])

    @classmethod
    def ssgv3_21(cls, **changes: Any) -> NetworkConfig:
        """Return SqueezeSegV3-21 with `changes` to single settings."""
        return cls(**{"blocks": (1, 1, 2, 2, 1), **changes})

    @classmethod
    def ssgv3_53(cls, **changes: Any) -> NetworkConfig:
        """Return SqueezeSegV3-53 with `changes` to single settings."""
        return cls(**{"blocks": (1, 2, 8, 8, 4), **changes})

    @classmethod
    def rangenet_21(cls, **changes: Any) -> NetworkConfig:
        """Return RangeNet21's shape: five halvings, its channels and standard convolutions (the paper's table 5)."""
        shape = {"blocks": (1, 1, 2, 2, 1), "channels": (32, 64, 128, 256, 512), "halvings": 5, "block": "conv"}
        return cls(**{**shape, **changes})

    @classmethod
    def rangenet_53(cls, **changes: Any) -> NetworkConfig:
        """Return RangeNet53's shape: five halvings, its channels and standard convolutions."""
        return cls.rangenet_21(**{"blocks": (1, 2, 8, 8, 4), **changes})

    def scaled(self, multiplier: float) -> NetworkConfig:
        """Return the network with `multiplier` times the channels, rounded to multiples of 8 (at least 8).

        Raises:
            UserError: The multiplier is not positive.
        """
        if not multiplier > 0:
            raise UserError(f"network: the width multiplier must be positive, found {multiplier}")
        channels = tuple(max(8, 8 * int(c * multiplier / 8 + 0.5)) for c in self.channels)
        return dataclasses.replace(self, channels=channels)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in plain JSON types; `from_dict` is the inverse."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Make a configuration from the settings of `to_dict`.

        Raises:
            UserError: A setting is unknown or invalid.
        """
        return settings_from_dict(cls, data, "network")
