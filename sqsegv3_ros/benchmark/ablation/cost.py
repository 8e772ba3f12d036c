# SPDX-License-Identifier: Apache-2.0
"""Cost of each of the paper's variants, beside the published numbers, as plain JSON types."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sqsegv3_ros.benchmark.ablation.variants import BASELINE, VARIANTS, Variant

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
    """Count the work of each variant for one image, and time it.

    Args:
        layers: '21' or '53'.
        height: Rows of the image whose work is counted; times are for 64 x 512.
        width: Columns of that image.
        repeat: Timings of each; 0: none.
        device: Where they run.
        threads: CPU threads; None: one per core.
        variants: The paper's variants.

    Raises:
        UserError: There is no such device.
    """
    import torch

    from sqsegv3_ros.benchmark.ablation import latency
    from sqsegv3_ros.benchmark.work import count
    from sqsegv3_ros.inference.backends import resolve_runtime

    runtime = resolve_runtime(device=device, precision="fp32", threads=threads)
    torch.set_num_threads(runtime.threads)
    chosen = {v.name: v for v in variants if v.name not in LIKE_ANOTHER}
    networks = {name: variant.network(layers) for name, variant in chosen.items()}
    work = {name: count(config, height, width) for name, config in networks.items()}
    rows = {name: _row(variant, work[name], work[BASELINE]) for name, variant in chosen.items()}
    if repeat:
        blocks = {name: config for name, config in networks.items() if config.halvings == 3}
        times = {
            "block": latency.measure_blocks(blocks, runtime.device, repeat),
            "exported_network": latency.measure_exported(networks, runtime, repeat),
        }
        for key, found in times.items():
            for name, units in found.items():
                rows[name][key] = {unit: round(value, 3) for unit, value in units.items()}
    return {
        "network": layers,
        "height": height,
        "width": width,
        "device": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU",
        "backend": runtime.backend,
        "threads": runtime.threads,
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
