"""The summary of an evaluation goes in, a table for the terminal comes out."""

from __future__ import annotations

from typing import Any


def format_summary(summary: dict[str, Any]) -> str:
    """The summary of `Evaluator` as text: IoU by class, the means, IoU by range. Numbers are percent."""
    return "\n\n".join((_by_class(summary), _overall(summary), _by_range(summary), _legend(summary)))


def _by_class(summary: dict[str, Any]) -> str:
    border = summary.get("border")
    lines = [f"{'class':<18}{'IoU':>8}{'strict':>8}" + (f"{'border':>8}" if border else "") + f"{'points':>14}"]
    for name, points in summary["support"].items():
        cells = [_of_class(summary, name, points), _of_class(summary["strict"], name, points)]
        if border:
            cells.append(_of_class(border, name, border["support"][name]))
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
        f"{title:<18}" + "".join(f"{_percent(column[key]):>8}" for column in columns) for title, key in rows
    )


def _by_range(summary: dict[str, Any]) -> str:
    lines = [f"{'range':<18}{'mIoU':>8}{'present':>8}{'accuracy':>10}{'points':>14}"]
    for band in summary["by_range"]:
        if not band["evaluated_points"]:
            lines.append(f"{band_title(band):<18}{'-':>8}{'-':>8}{'-':>10}{0:>14}")
            continue
        cells = f"{_percent(band['miou']):>8}{_percent(band['miou_present']):>8}{_percent(band['accuracy']):>10}"
        lines.append(f"{band_title(band):<18}{cells}{band['evaluated_points']:>14,}")
    return "\n".join(lines)


def _legend(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['scan_count']:,} scans, {summary['evaluated_points']:,} of {summary['points']:,} points evaluated, "
        f"{summary['left_unlabeled']:,} of them predicted as unlabeled (dropped; wrong in 'strict').",
        "Percent. A class that the ground truth does not hold ('-') counts as 0 in the mIoU over all classes.",
    ]
    border = summary.get("border")
    if border:
        lines.append(
            f"'border': the {border['evaluated_points']:,} points within {border['pixels']} pixel of another class "
            f"({border['connectivity']} neighbours)."
        )
    return "\n".join(lines)


def band_title(band: dict[str, Any]) -> str:
    """What a range band is called: '10-20 m', '50 m and more', 'no range'."""
    if band["from_m"] is None:
        return "no range"
    if band["to_m"] is None:
        return f"{band['from_m']:g} m and more"
    return f"{band['from_m']:g}-{band['to_m']:g} m"


def _of_class(scores: dict[str, Any], name: str, points: int) -> str:
    return _percent(scores["iou"][name]) if points else "-"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
