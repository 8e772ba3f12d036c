"""A key of our state_dict -> the file and the key under which the official release stores it. The only such place."""

from __future__ import annotations

import re

BACKBONE = "backbone"
DECODER = "segmentation_decoder"
HEADS = tuple(f"segmentation_head{5 - i}" for i in range(5))
"""Files of the heads in the order of the network's outputs, full width first."""

FILES = (BACKBONE, DECODER, *reversed(HEADS))

# (our key up to the parameter's own name, file, their key). {0}, {1}: what the pattern's groups matched; stages count
# from 1 in the release, and its decoder counts them down.
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
    """Our key, as in `SqueezeSegV3.state_dict()` -> (file, key in that file).

    Raises KeyError for a key that the release has no counterpart of.
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
