# SPDX-License-Identifier: Apache-2.0
"""Advice to take the model `small` if a CPU labels clouds more slowly than they arrive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.ros.diagnostics import NodeDiagnostics

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

SMALL = "small"  # the quickest of the shipped models


def advise_smaller_model(logger: Any, segmenter: CloudSegmenter | None, diagnostics: NodeDiagnostics) -> None:
    """Log the advice, once for as long as the process runs.

    Args:
        logger: Logger of the node.
        segmenter: What labels the clouds. A GPU, the network of `small` and an installation without it get no advice.
        diagnostics: Times of the last clouds.
    """
    pace = diagnostics.pace(time.monotonic())
    if pace is None or segmenter is None:
        return
    labelling_ms, period_ms = pace
    inner = segmenter.segmenter
    if labelling_ms <= period_ms or inner.runtime.device.type != "cpu":
        return
    if _small_network() in (None, inner.info.architecture):
        return
    logger.warning(
        f"labelling takes {labelling_ms:.0f} ms per cloud, but a cloud arrives every {period_ms:.0f} ms: clouds are "
        f"dropped. The model '{SMALL}' is faster and less accurate: launch with model:={SMALL} or run with "
        f"-p model:={SMALL}",
        once=True,
    )


@lru_cache(maxsize=1)
def _small_network() -> Mapping[str, Any] | None:
    from sqsegv3_ros.inference.model_file import read_info, shipped_models

    path = shipped_models().get(SMALL)
    return None if path is None else read_info(path).architecture
