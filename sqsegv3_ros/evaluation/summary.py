# SPDX-License-Identifier: Apache-2.0
"""The summary of an evaluation: its JSON file, and its table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import write_atomically

FORMAT = "sqsegv3-evaluation"
FORMAT_VERSION = 1
_REQUIRED_KEYS = (
    *("label_set", "scan_count", "points", "evaluated_points", "left_unlabeled", "support", "scans"),
    *("miou", "miou_present", "accuracy", "iou", "strict", "by_range", "confusion"),
)


def write_summary(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as JSON, completely or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    write_atomically(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def read_summary(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_summary` wrote.

    Raises:
        UserError: The file cannot be read or is not a complete evaluation.
    """
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read evaluation {path}: {error}") from error
    if not isinstance(summary, Mapping) or summary.get("format") != FORMAT:
        raise UserError(f"{path} is not an evaluation: expected a file from 'sqsegv3 evaluate --json'")
    if summary.get("format_version") != FORMAT_VERSION:
        version = summary.get("format_version")
        raise UserError(f"{path} has format version {version}, expected {FORMAT_VERSION}; evaluate again")
    missing = [key for key in _REQUIRED_KEYS if key not in summary]
    if missing:
        raise UserError(f"evaluation {path} lacks {', '.join(missing)}; evaluate again")
    latency_ms = summary.get("latency_ms") or []
    if not isinstance(latency_ms, list) or not all(isinstance(v, (int, float)) and v >= 0 for v in latency_ms):
        raise UserError(f"evaluation {path}: latency_ms must be a list of milliseconds, one number per scan")
    return dict(summary)


def format_summary(summary: dict[str, Any]) -> str:
    """Format a summary as tables: IoU by class, the means, IoU by range; in percent."""
    return "\n\n".join((_by_class(summary), _overall(summary), _by_range(summary), _legend(summary)))


def _by_class(summary: dict[str, Any]) -> str:
    columns = _columns(summary)
    lines = [f"{'class':<18}" + "".join(f"{title:>8}" for title in columns) + f"{'points':>14}"]
    for name, points in summary["support"].items():
        supports = [column.get("support", summary["support"])[name] for column in columns.values()]
        cells = zip(columns.values(), supports, strict=True)
        row = "".join(f"{percent(column['iou'][name]) if support else '-':>8}" for column, support in cells)
        lines.append(f"{name:<18}{row}{points:>14,}")
    return "\n".join(lines)


def _overall(summary: dict[str, Any]) -> str:
    present = sum(1 for points in summary["support"].values() if points)
    titles = (f"mIoU, {len(summary['support'])} classes", f"mIoU, {present} present", "accuracy")
    lines = []
    for title, key in zip(titles, ("miou", "miou_present", "accuracy"), strict=True):
        lines.append(f"{title:<18}" + "".join(f"{percent(column[key]):>8}" for column in _columns(summary).values()))
    return "\n".join(lines)


def _columns(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    columns = {"IoU": summary, "strict": summary["strict"], "border": summary.get("border")}
    return {title: scores for title, scores in columns.items() if scores}


def _by_range(summary: dict[str, Any]) -> str:
    lines = [f"{'range':<18}{'mIoU':>8}{'present':>8}{'accuracy':>10}{'points':>14}"]
    for band in summary["by_range"]:
        scores = [
            percent(band[key]) if band["evaluated_points"] else "-" for key in ("miou", "miou_present", "accuracy")
        ]
        cells = f"{scores[0]:>8}{scores[1]:>8}{scores[2]:>10}"
        lines.append(f"{band_title(band):<18}{cells}{band['evaluated_points']:>14,}")
    return "\n".join(lines)


def _legend(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['scan_count']:,} scans, {summary['evaluated_points']:,} of {summary['points']:,} points evaluated, "
        f"{summary['left_unlabeled']:,} of them predicted as unlabeled (dropped; wrong in 'strict').",
        "Percent. A class that the ground truth does not contain ('-') counts as 0 in the mIoU over all classes.",
    ]
    border = summary.get("border")
    if border:
        lines.append(
            f"'border': the {border['evaluated_points']:,} points within {border['pixels']} pixel of another class "
            f"({border['connectivity']} neighbours)."
        )
    return "\n".join(lines)


def band_title(band: dict[str, Any]) -> str:
    """Name a range band: '10-20 m', '50 m and more', 'no range'."""
    if band["from_m"] is None:
        return "no range"
    if band["to_m"] is None:
        return f"{band['from_m']:g} m and more"
    return f"{band['from_m']:g}-{band['to_m']:g} m"


def percent(fraction: float) -> str:
    """Format a fraction in percent: '12.3' for 0.1234."""
    return f"{100 * fraction:.1f}"
