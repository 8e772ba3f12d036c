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
    border = summary.get("border")
    lines = [f"{'class':<18}{'IoU':>8}{'strict':>8}" + (f"{'border':>8}" if border else "") + f"{'points':>14}"]
    for name, points in summary["support"].items():
        cells = [_class_iou(summary, name, points), _class_iou(summary["strict"], name, points)]
        if border:
            cells.append(_class_iou(border, name, border["support"][name]))
        lines.append(f"{name:<18}" + "".join(f"{cell:>8}" for cell in cells) + f"{points:>14,}")
    return "\n".join(lines)


def _overall(summary: dict[str, Any]) -> str:
    columns = [summary, summary["strict"]] + ([summary["border"]] if summary.get("border") else [])
    present = sum(1 for points in summary["support"].values() if points)
    rows = (
        (f"mIoU, {len(summary['support'])} classes", "miou"),
        (f"mIoU, {present} present", "miou_present"),
        ("accuracy", "accuracy"),
    )
    return "\n".join(
        f"{title:<18}" + "".join(f"{percent(column[key]):>8}" for column in columns) for title, key in rows
    )


def _by_range(summary: dict[str, Any]) -> str:
    lines = [f"{'range':<18}{'mIoU':>8}{'present':>8}{'accuracy':>10}{'points':>14}"]
    for band in summary["by_range"]:
        if not band["evaluated_points"]:
            lines.append(f"{band_title(band):<18}{'-':>8}{'-':>8}{'-':>10}{0:>14}")
            continue
        cells = f"{percent(band['miou']):>8}{percent(band['miou_present']):>8}{percent(band['accuracy']):>10}"
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


def _class_iou(scores: dict[str, Any], name: str, points: int) -> str:
    return percent(scores["iou"][name]) if points else "-"


def percent(fraction: float) -> str:
    """Format a fraction in percent: '12.3' for 0.1234."""
    return f"{100 * fraction:.1f}"
