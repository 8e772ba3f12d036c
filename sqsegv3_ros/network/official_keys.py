# SPDX-License-Identifier: Apache-2.0
"""Parameter names of the official release's checkpoints."""

from __future__ import annotations

import re

BACKBONE = "backbone"
DECODER = "segmentation_decoder"
HEADS = tuple(f"segmentation_head{5 - i}" for i in range(5))
"""Files of the heads in the order of the network's outputs, full width first."""

FILES = (BACKBONE, DECODER, *reversed(HEADS))

# (pattern of our module name, file, their module name). {1} is the second group, the block; {up} and {down} are
# the stage, which the release counts from 1, downwards in the decoder.
_RULES: tuple[tuple[str, str, str], ...] = (
    (r"stem\.conv", BACKBONE, "conv1"),
    (r"stem\.norm", BACKBONE, "bn1"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.attention\.conv", BACKBONE, "enc{up}.residual_{1}.attention_x.0"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.attention\.norm", BACKBONE, "enc{up}.residual_{1}.attention_x.1"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.mix\.conv", BACKBONE, "enc{up}.residual_{1}.position_mlp_2.0"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.mix\.norm", BACKBONE, "enc{up}.residual_{1}.position_mlp_2.1"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.conv\.conv", BACKBONE, "enc{up}.residual_{1}.position_mlp_2.3"),
    (r"encoder\.(\d)\.blocks\.(\d+)\.conv\.norm", BACKBONE, "enc{up}.residual_{1}.position_mlp_2.4"),
    (r"encoder\.(\d)\.narrow\.0\.conv", BACKBONE, "enc{up}.conv"),
    (r"encoder\.(\d)\.narrow\.0\.norm", BACKBONE, "enc{up}.bn"),
    (r"decoder\.([01])\.conv\.conv", DECODER, "dec{down}.conv"),
    (r"decoder\.([234])\.conv\.conv", DECODER, "dec{down}.upconv"),
    (r"decoder\.(\d)\.conv\.norm", DECODER, "dec{down}.bn"),
    (r"decoder\.(\d)\.squeeze\.conv", DECODER, "dec{down}.residual.conv1"),
    (r"decoder\.(\d)\.squeeze\.norm", DECODER, "dec{down}.residual.bn1"),
    (r"decoder\.(\d)\.expand\.conv", DECODER, "dec{down}.residual.conv2"),
    (r"decoder\.(\d)\.expand\.norm", DECODER, "dec{down}.residual.bn2"),
    (r"heads\.(\d)\.conv", "segmentation_head{down}", "1"),
)


def official_key(key: str) -> tuple[str, str]:
    """Translate a parameter name into that of the official release.

    Args:
        key: Name as in `SqueezeSegV3.state_dict()`.

    Returns:
        Checkpoint file and the name in it.

    Raises:
        KeyError: The release has no such parameter.
    """
    prefix, _, name = key.rpartition(".")
    for pattern, file, template in _RULES:
        match = re.fullmatch(pattern, prefix)
        if match:
            groups = match.groups()
            stage = int(groups[0]) if groups else 0
            fields = {"up": stage + 1, "down": 5 - stage}
            return file.format(*groups, **fields), f"{template.format(*groups, **fields)}.{name}"
    raise KeyError(key)
