# SPDX-License-Identifier: Apache-2.0
"""Mean and spread of finished runs, as in the paper's tables 3-5.

A run is the output of one of the `training_commands`: a folder NAME-seedN with a `history.jsonl`. Its last validation
counts, not its best one, which would be selected on the scans that evaluate it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqsegv3_ros.benchmark.ablation.variants import BASELINE, VARIANTS, Variant
from sqsegv3_ros.benchmark.tables import table
from sqsegv3_ros.errors import UserError

TABLES = {3: "blocks", 4: "attention kernels of SAC-ISK", 5: "shape and losses"}
_FOLDER = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Score:
    """The last validation of a run. step: of training. miou, accuracy: percent."""

    step: int
    miou: float
    accuracy: float


def read_scores(runs: Path) -> dict[str, dict[int, Score]]:
    """By variant and seed. Raises UserError if there is no run of a variant, or a history cannot be read."""
    if not runs.is_dir():
        raise UserError(f"{runs} is not a folder; set --runs to the output of `sqsegv3 ablate --commands`")
    scores: dict[str, dict[int, Score]] = {}
    for history in sorted(runs.glob("*-seed*/history.jsonl")):
        found = _FOLDER.fullmatch(history.parent.name)
        if found and found["name"] in {variant.name for variant in VARIANTS}:
            scores.setdefault(found["name"], {})[int(found["seed"])] = _last(history)
    if not scores:
        names = ", ".join(f"{variant.name}-seed0" for variant in VARIANTS[:3])
        raise UserError(f"{runs} has no run with a validation (expected folders like {names}, ...)")
    return scores


def _last(history: Path) -> Score:
    try:
        entry = json.loads(history.read_text().splitlines()[-1])
        return Score(entry["step"], 100 * entry["val/miou"], 100 * entry["val/accuracy"])
    except (OSError, IndexError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{history}: its last line is not the validation of a run ({error})") from None


def collect(scores: Mapping[str, Mapping[int, Score]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and of the differences from the baseline with the same seed.

    As plain JSON types, in percent.
    """
    base = scores.get(BASELINE, {})
    rows = []
    for variant in VARIANTS:
        runs = scores.get(variant.name)
        if not runs:
            continue
        shared = sorted(runs.keys() & base.keys())
        rows.append(
            {
                "name": variant.name,
                "title": variant.title,
                "seeds": sorted(runs),
                "steps": sorted({score.step for score in runs.values()}),
                "miou_percent": _spread([runs[seed].miou for seed in sorted(runs)]),
                "accuracy_percent": _spread([runs[seed].accuracy for seed in sorted(runs)]),
                "miou_over_baseline": _spread([runs[seed].miou - base[seed].miou for seed in shared]),
                "paper": {"miou_percent": variant.published.miou, "accuracy_percent": variant.published.accuracy},
            }
        )
    return {"variants": rows}


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": round(statistics.mean(values), 3),
        "standard_deviation": None if deviation is None else round(deviation, 3),
        "each": [round(value, 3) for value in values],
    }


def text(result: Mapping[str, Any]) -> str:
    """The tables as Markdown, and notes on differences between the runs."""
    found = {row["name"]: row for row in result["variants"]}
    base = next(variant.published.miou for variant in VARIANTS if variant.name == BASELINE)
    header = ("row", "name", "seeds", "mIoU %", "over the baseline", "accuracy %", "paper: mIoU", "over its baseline")
    parts = []
    for number, what in TABLES.items():
        rows = [_row(number, variant, found[variant.name], base) for variant in _rows(number) if variant.name in found]
        if rows:
            parts.append(f"Table {number}, {what}:\n\n" + table(header, rows))
    steps = sorted({step for row in found.values() for step in row["steps"]})
    if len(steps) > 1:
        parts.append(f"The runs' last validations are from different steps ({', '.join(map(str, steps))}).")
    missing = [variant.name for variant in VARIANTS if variant.name not in found]
    if missing:
        parts.append(f"Variants without a run: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _rows(number: int) -> list[Variant]:
    """The variants of a table in the paper's order."""
    rows = [variant for variant in VARIANTS if number in variant.tables]
    if number == 4:
        return sorted(rows, key=lambda variant: (variant.name != BASELINE, variant.tables[number]))
    return sorted(rows, key=lambda variant: variant.published.miou) if number == 5 else rows


def _row(number: int, variant: Variant, found: Mapping[str, Any], base: float) -> tuple[str, ...]:
    over = found["miou_over_baseline"]
    return (
        variant.tables[number],
        f"`{variant.name}`",
        str(len(found["seeds"])),
        _format(found["miou_percent"]),
        "" if variant.name == BASELINE or over is None else _format(over, "+"),
        _format(found["accuracy_percent"]),
        f"{variant.published.miou:.1f}",
        "" if variant.name == BASELINE else f"{variant.published.miou - base:+.1f}",
    )


def _format(spread: Mapping[str, Any], sign: str = "") -> str:
    deviation = spread["standard_deviation"]
    return f"{spread['mean']:{sign}.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
