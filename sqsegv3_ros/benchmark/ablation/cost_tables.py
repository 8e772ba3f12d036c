# SPDX-License-Identifier: Apache-2.0
"""Markdown tables and a plot of the ablations' cost, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.benchmark.ablation.variants import BASELINE
from sqsegv3_ros.benchmark.tables import import_pyplot, save, table

_HERE, _PAPER = "#4e79a7", "#f28e2b"


def text(result: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [_work(result)]
    if result["repeat"]:
        parts.append(_latency(result))
    return "\n\n".join(parts)


def _work(result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["variants"]:
        paper = row["paper"]
        rows.append(
            (
                row["title"],
                f"{row['parameters'] / 1e6:.3f}",
                f"{row['extra_parameters_percent']:.2f}",
                _number(paper["extra_parameters_percent"], 1),
                f"{row['macs'] / 1e9:.2f}",
                f"{row['extra_macs_percent']:.2f}",
                f"{row['extra_macs_and_products_percent']:.2f}",
                _number(paper["extra_macs_percent"], 1),
            )
        )
    header = ("block", "M parameters", "extra %", "paper", "GMAC", "extra %", "with products %", "paper")
    return (
        f"Work of SqueezeSegV3-{result['network']} for one image of {result['height']} x {result['width']} pixels, all "
        "five heads, over the standard convolution's;\nthe paper's numbers: its table 1.\n\n" + table(header, rows)
    )


def _latency(result: Mapping[str, Any]) -> str:
    timed = [row for row in result["variants"] if "block" in row]
    base = next(row for row in timed if row["name"] == BASELINE)
    unit = compared_unit(result)
    rows = []
    for row in result["variants"]:
        published, block, exported = row["paper"]["block_ms"], row.get("block"), row["exported_network"]
        rows.append(
            (
                row["title"],
                _number(block and block["median_ms"], 2),
                _number(block and block["min_ms"], 2),
                _number(block and block.get("cpu_ms"), 2),
                _number(block and block[unit] / base["block"][unit], 2),
                _number(published, 2),
                _number(published and published / base["paper"]["block_ms"], 2),
                _number(exported[unit], 1),
                _number(exported[unit] / base["exported_network"][unit], 2),
            )
        )
    what = "CPU" if unit == "cpu_ms" else "median"
    header = ["block", "median ms", "min ms", "CPU ms", f"x baseline ({what})", "paper, ms", "x baseline"]
    header += [f"exported network, {what} ms", "x baseline"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return (
        "One block at 32 channels and a 3x3 convolution 32 -> 64, at 64 x 512, in its training form; the paper's "
        "numbers: its table 3.\nBeside it the whole "
        f"SqueezeSegV3-{result['network']} in its exported form, {result['backend']} fp32, at 64 x 512.\n"
        f"{result['device']}, {threads}, torch {result['torch']}, {result['repeat']} times in turn, load average "
        f"{result['load_average']:.1f}.\n\n" + table(header, rows)
    )


def compared_unit(result: Mapping[str, Any]) -> str:
    """The time that variants are compared by: CPU time of a single thread if there is one, else the median."""
    timed = [row["block"] for row in result["variants"] if "block" in row]
    return "cpu_ms" if result["threads"] == 1 and all("cpu_ms" in block for block in timed) else "median_ms"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: extra parameters and MACs beside the paper's table 1, latency over the baseline beside its table 3.

    Raises UserError if matplotlib is not installed.
    """
    pyplot = import_pyplot()
    unit = compared_unit(result) if result["repeat"] else ""
    figure, axes = pyplot.subplots(1, 3 if unit else 2, figsize=(13 if unit else 9, 3.6), layout="constrained")
    counted = [row for row in result["variants"] if row["paper"]["extra_macs_percent"] is not None]
    for panel, key, name in (
        (axes[0], "extra_parameters_percent", "parameters"), (axes[1], "extra_macs_percent", "MACs"),
    ):  # fmt: skip
        _bars(panel, counted, [row[key] for row in counted], [row["paper"][key] for row in counted])
        panel.set_title(f"extra {name}, % of the standard convolution's", fontsize=9)
    if unit:
        timed = [row for row in result["variants"] if "block" in row and row["paper"]["block_ms"]]
        base = next(row for row in timed if row["name"] == BASELINE)
        here = [row["block"][unit] / base["block"][unit] for row in timed]
        paper = [row["paper"]["block_ms"] / base["paper"]["block_ms"] for row in timed]
        _bars(axes[2], timed, here, paper)
        axes[2].set_title("time of one block, standard convolution = 1", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def _bars(panel: Any, rows: list[Any], here: list[float], paper: list[float]) -> None:
    for shift, values, color, name in ((-0.2, here, _HERE, "here"), (0.2, paper, _PAPER, "paper")):
        places = [i + shift for i in range(len(rows))]
        panel.bar(places, values, 0.38, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            digits = 1 if value >= 1 or value == 0 else 2
            panel.annotate(f"{value:.{digits}f}", (place, value), ha="center", va="bottom", fontsize=6)
    titles = ["conv" if row["name"] == BASELINE else row["title"].split(",")[0] for row in rows]
    panel.set_xticks(range(len(rows)), titles, rotation=40, ha="right", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.12)
