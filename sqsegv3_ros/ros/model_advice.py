# SPDX-License-Identifier: Apache-2.0
"""Advice on what makes labelling faster, if clouds arrive more quickly than they are labelled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.ros.diagnostics import NodeDiagnostics

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

SMALL = "small"  # the quickest of the shipped models


def advise_faster_settings(logger: Any, segmenter: CloudSegmenter | None, diagnostics: NodeDiagnostics) -> None:
    """Log the advice, once for as long as the process runs.

    Args:
        logger: Logger of the node.
        segmenter: What labels the clouds. There is advice if it averages with the mirrored image, or runs the network
            of a shipped model other than `small` on a CPU.
        diagnostics: Times of the last clouds.
    """
    pace = diagnostics.pace(time.monotonic())
    if pace is None or segmenter is None:
        return
    labelling_ms, period_ms = pace
    inner = segmenter.segmenter
    if labelling_ms <= period_ms:
        return
    if inner.average_mirrored:
        advice = "average_mirrored runs the network twice: run with -p average_mirrored:=false"
    elif inner.runtime.device.type == "cpu" and inner.info.architecture in _slower_architectures():
        openvino = f"{inner.runtime.hint}. " if inner.runtime.hint else ""
        advice = (
            f"{openvino}The model '{SMALL}' is faster, with a lower mIoU: launch with model:={SMALL} or run with "
            f"-p model:={SMALL}"
        )
    else:
        return
    logger.warning(
        f"labelling takes {labelling_ms:.0f} ms per cloud, but a cloud arrives every {period_ms:.0f} ms: clouds are "
        f"dropped. {advice}",
        once=True,
    )


@lru_cache(maxsize=1)
def _slower_architectures() -> list[Mapping[str, Any]]:
    """Those of the shipped models but `small`; none if `small` cannot be used."""
    from sqsegv3_ros.inference.model_file import read_info, shipped_models

    found = {}
    for name, path in shipped_models().items():
        with suppress(UserError):  # damaged
            found[name] = read_info(path).architecture
    small = found.get(SMALL)
    return [] if small is None else [architecture for architecture in found.values() if architecture != small]
