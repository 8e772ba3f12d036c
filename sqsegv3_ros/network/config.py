"""Settings of a SqueezeSegV3 -> a validated, immutable description from which the network can be built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqsegv3_ros.errors import UserError

STAGES = 5
WIDTH_DIVISOR = 8
"""The image width is halved after each of the first three stages, so it must be a multiple of this."""

ATTENTION_KERNELS = (1, 3, 5, 7)
AZIMUTH_PADDINGS = ("zero", "circular")
SAC_BLOCKS = ("sac-s", "sac-is", "sac-sk", "sac-isk")
BLOCKS = (*SAC_BLOCKS, "conv", "se", "cbam", "cam", "pac")
HALVINGS = (3, 5)
POOLED_REACH = 3
"""How many pixels to either side CBAM's convolution and CAM's pooling see: both are 7x7."""


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a SqueezeSegV3. The defaults are the SqueezeSegV3-21 of the official release.

    blocks: blocks in each of the five encoder stages.
    channels: feature channels at which each encoder stage works; the decoder mirrors them.
    attention_kernel: size of the attention convolution over the coordinates: 1, 3, 5 or 7 (paper and release).
    num_classes: channels of every head.
    in_channels: channels of the input image; 1..3 are x, y, z.
    azimuth_padding: what lies beyond the left and the right edge of the image. "zero" as released; "circular" takes
        the other edge, as a rotating sensor sees it, in every convolution, the transposed ones, the unfold and the
        attention, and makes the whole network equivariant to rotation by `WIDTH_DIVISOR` columns.
    dropout, decoder_dropout, head_dropout: probability that a channel is dropped in training, after every encoder
        stage, after the decoder and before every head.
    bn_momentum: of every BatchNorm outside the blocks (inside them the release uses 0.1 whatever is configured).
    block: the block that the encoder repeats: "sac-isk" as released, or one that the paper compares with it (its table
        3): "conv" (no attention), "sac-s", "sac-is", "sac-sk", "se", "cbam", "cam", "pac".
    halvings: how many stages halve the width: the first 3, as released, or all 5, as in RangeNet; then the last two
        stages may differ in channels, and what the fifth hands to the decoder has twice its channels.
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
                "network: the last two stages must have equally many channels, because nothing lies between them, "
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
                raise UserError(f"network: {name} must lie in [0, 1), found {getattr(self, name)}")
        if not 0 < self.bn_momentum <= 1:
            raise UserError(f"network: bn_momentum must lie in (0, 1], found {self.bn_momentum}")

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
        """What the image width must be a multiple of."""
        return int(2**self.halvings)

    @property
    def minimum_width(self) -> int:
        """The narrowest image: where its edges are neighbours, no pixel may see past the whole of it."""
        reach = {"cbam": POOLED_REACH, "cam": POOLED_REACH}.get(self.block, 1)
        if self.block in SAC_BLOCKS:
            reach = self.attention_kernel // 2
        return self.width_divisor * max(1, reach if self.circular else 1)

    @property
    def output_channels(self) -> tuple[int, ...]:
        """Channels of what each stage hands on."""
        c = self.channels
        return (*c[1:], c[4] if self.halvings == 3 else 2 * c[4])

    @classmethod
    def ssgv3_21(cls, **changes: Any) -> NetworkConfig:
        """SqueezeSegV3-21, with `changes` to single settings."""
        return cls(**{"blocks": (1, 1, 2, 2, 1), **changes})

    @classmethod
    def ssgv3_53(cls, **changes: Any) -> NetworkConfig:
        """SqueezeSegV3-53, with `changes` to single settings."""
        return cls(**{"blocks": (1, 2, 8, 8, 4), **changes})

    @classmethod
    def rangenet_21(cls, **changes: Any) -> NetworkConfig:
        """SqueezeSegV3-21 with RangeNet21's five halvings, channels and plain convolutions (the paper's table 5)."""
        shape = {"blocks": (1, 1, 2, 2, 1), "channels": (32, 64, 128, 256, 512), "halvings": 5, "block": "conv"}
        return cls(**{**shape, **changes})

    @classmethod
    def rangenet_53(cls, **changes: Any) -> NetworkConfig:
        """SqueezeSegV3-53 with RangeNet53's five halvings, channels and plain convolutions."""
        return cls.rangenet_21(**{"blocks": (1, 2, 8, 8, 4), **changes})

    def scaled(self, multiplier: float) -> NetworkConfig:
        """The same network with `multiplier` times the channels, rounded to multiples of 8 (at least 8)."""
        if not multiplier > 0:
            raise UserError(f"network: the width multiplier must be positive, found {multiplier}")
        channels = tuple(max(8, 8 * int(c * multiplier / 8 + 0.5)) for c in self.channels)
        return dataclasses.replace(self, channels=channels)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types; `from_dict` is the inverse."""
        settings = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `to_dict`. Raises UserError naming unknown or unusable settings."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UserError(f"network: unknown settings {', '.join(unknown)} (known: {', '.join(sorted(known))})")
        try:
            return cls(**data)
        except TypeError as error:
            raise UserError(f"network: unusable settings {dict(data)}: {error}") from error
