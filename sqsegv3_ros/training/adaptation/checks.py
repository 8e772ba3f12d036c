# SPDX-License-Identifier: Apache-2.0
"""Checks that self-training did not collapse, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import OperationError

LEAST_AGREEMENT = 0.4
"""With the start; with a sensor that the model did not know, 40 % of the labels may change for the better."""

COMMON_SHARE, VANISHED, SHRUNK = 0.02, 0.05, 0.5
"""A class of the first share of the points must keep the second share of it; below the third, it is named."""

DOMINANT_SHARE = 0.85
"""A class with this share of the points has swallowed the others, unless it was as common at the start."""


def shrunk_classes(start: Mapping[str, Any], end: Mapping[str, Any]) -> list[str]:
    """Describe the common classes that became rare: "parking 2.8 -> 0.25 %".

    Args:
        start: Record of the start.
        end: Record of the result.
    """
    return [
        f"{name} {100 * before:.1f} -> {100 * end['shares'].get(name, 0.0):.2f} %"
        for name, before in start["shares"].items()
        if before >= COMMON_SHARE and end["shares"].get(name, 0.0) < SHRUNK * before
    ]


def require_sound(start: Mapping[str, Any], end: Mapping[str, Any], workspace: Path) -> None:
    """Check the result of an adaptation against its start.

    Args:
        start: Record of the start.
        end: Record of the result.
        workspace: Folder that is kept, for the message.

    Raises:
        OperationError: The labels collapsed; the message says what was seen.
    """
    found = []
    if end["start_agreement"] < LEAST_AGREEMENT:
        found.append(f"only {100 * end['start_agreement']:.0f} % of the points kept their label")
    for name, before in start["shares"].items():
        after = end["shares"].get(name, 0.0)
        if before >= COMMON_SHARE and after < VANISHED * before:
            found.append(f"{name} fell from {100 * before:.1f} to {100 * after:.2f} % of the points")
        if after > DOMINANT_SHARE > before:
            found.append(f"{name} rose from {100 * before:.0f} to {100 * after:.0f} % of the points")
    if not math.isfinite(end["confidence"]):
        found.append("the probabilities are not finite")
    if found:
        raise OperationError(
            f"the adapted model collapsed and is not written: {'; '.join(found)}. Check the sensor's parameters "
            f"(--params) and whether the recording shows streets; the run is kept in {workspace}"
        )
