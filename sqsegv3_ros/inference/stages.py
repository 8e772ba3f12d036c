# SPDX-License-Identifier: Apache-2.0
"""The stages of a cloud."""

from __future__ import annotations

STAGES = (
    "decode", "upload", "project", "network", "classify", "knn", "download", "sweeps",
    "encode", "input_checks", "publish",
)  # fmt: skip
"""In order. `Segmenter` times upload to download, `CloudSegmenter` decode to input_checks, the node all of them."""
