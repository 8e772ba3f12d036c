"""The paper's variants come in; what each costs, beside what the paper says, goes out as plain JSON types."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sqsegv3_ros.ablation.variants import BASELINE, VARIANTS, Variant

LIKE_ANOTHER = ("conv-last-head",)
"""Variants that differ from another in training only."""


def cost(
    *,
    layers: str = "21",
    height: int = 64,
    width: int = 2048,
    repeat: int = 10,
    device: str = "cpu",
    threads: int | None = None,
    variants: Sequence[Variant] = VARIANTS,
) -> dict[str, Any]:
    """Count the work of each variant for one image, and time one block of each.

    layers: '21' or '53'. height, width: of the image that the work is counted for; blocks are timed at 64 x 512.
    repeat: how often each block is timed; 0: not at all. Raises UserError for a device that is not there.
    """
    import torch

    from sqsegv3_ros.ablation import latency
    from sqsegv3_ros.ablation.work import Work, count
    from sqsegv3_ros.segmenter import resolve_device

    where = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = {v.name: v for v in variants if v.name not in LIKE_ANOTHER}
    work: dict[str, Work] = {}
    for name, variant in chosen.items():
        work[name] = count(variant.network(layers), height, width)
    rows = {name: _row(variant, work[name], work[BASELINE]) for name, variant in chosen.items()}
    if repeat:
        blocks = {name: v.network() for name, v in chosen.items() if v.settings.get("halvings", 3) == 3}
        fast = {name: config for name, config in blocks.items() if config.has_deploy_form}
        for key, networks in (("block", blocks), ("deployed_block", fast)):
            times = latency.measure(networks, repeat=repeat, device=where, deployed=key != "block")
            for name, found in times.items():
                rows[name][key] = {unit: round(value, 3) for unit, value in found.items()}
    return {
        "network": layers,
        "height": height,
        "width": width,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeat": repeat,
        "load_average": os.getloadavg()[0],
        "variants": list(rows.values()),
    }


def _row(variant: Variant, work: Any, baseline: Any) -> dict[str, Any]:
    def extra(value: float, base: float) -> float:
        return round(100 * (value / base - 1), 3)

    published = variant.published
    return {
        "name": variant.name,
        "title": variant.title,
        "tables": {str(table): called for table, called in variant.tables.items()},
        "parameters": work.parameters,
        "macs": work.macs,
        "products": work.products,
        "extra_parameters_percent": extra(work.parameters, baseline.parameters),
        "extra_macs_percent": extra(work.macs, baseline.macs),
        "extra_macs_and_products_percent": extra(work.macs + work.products, baseline.macs + baseline.products),
        "paper": {
            "extra_parameters_percent": published.extra_parameters,
            "extra_macs_percent": published.extra_macs,
            "block_ms": published.latency_ms,
            "miou_percent": published.miou,
            "accuracy_percent": published.accuracy,
        },
    }
