"""Sections of the HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.evaluation.pictures import display_colors
from sqsegv3_ros.evaluation.summary import band_title, percent

LATENCY_PERCENTILES = (50, 95, 99)


def about(summary: dict[str, Any], label_set: LabelSet) -> str:
    """List what was evaluated, and the numbers of a live evaluation."""
    rows = [
        ("Data set", summary.get("dataset")),
        ("Predictions", summary.get("predictions")),
        ("Sequences", ", ".join(summary.get("sequences") or [])),
        ("Label set", f"{label_set.name}, {len(label_set.evaluated)} classes evaluated"),
        ("Scans", f"{summary['scan_count']:,}"),
        ("Points", f"{summary['points']:,}, {summary['evaluated_points']:,} of them evaluated"),
    ]
    live = (summary.get("live") or {}).items()
    rows += [(str(name), f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in live]
    items = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value)
    return f'<dl class="about">{"".join(items)}</dl>'


def key_numbers(summary: dict[str, Any]) -> str:
    """Show the most important numbers."""
    present = sum(1 for points in summary["support"].values() if points)
    cards = [
        (percent(summary["miou"]), f"mIoU, all {len(summary['support'])} classes"),
        (percent(summary["miou_present"]), f"mIoU, the {present} classes present"),
        (percent(summary["accuracy"]), "accuracy"),
        (percent(summary["strict"]["miou_present"]), "mIoU present, strict"),
    ]
    if summary.get("border"):
        cards.append((percent(summary["border"]["miou_present"]), "mIoU present, at borders"))
    if summary.get("latency_ms"):
        cards.append((f"{np.percentile(summary['latency_ms'], 95):.0f} ms", "latency, 95th percentile"))
    items = (f'<div class="number"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in cards)
    return f'<div class="numbers">{"".join(items)}</div>'


def by_class(summary: dict[str, Any], label_set: LabelSet) -> str:
    """Tabulate the IoU of every evaluated class, with a bar."""
    border = summary.get("border")
    head = '<th>class</th><th colspan="2">IoU</th><th class="n">strict</th>'
    head += ('<th class="n">border</th>' if border else "") + '<th class="n">points</th>'
    rows = []
    for name, points in summary["support"].items():
        iou = summary["iou"][name]
        cells = f'<td>{swatch(label_set, name)}{escape(name)}</td><td><span class="bar">'
        cells += f'<i style="width:{100 * iou:.1f}%"></i></span></td>'
        cells += _number(percent(iou) if points else "-")
        cells += _number(percent(summary["strict"]["iou"][name]) if points else "-")
        if border:
            cells += _number(percent(border["iou"][name]) if border["support"][name] else "-")
        rows.append(cells + _number(f"{points:,}"))
    return _table(head, rows)


def by_range(summary: dict[str, Any], label_set: LabelSet) -> str:
    """Tabulate the means by range, and the IoU of every class by range as a heat map."""
    bands = summary["by_range"]
    rows = []
    for band in bands:
        evaluated = band["evaluated_points"]
        values = (band["miou_present"], band["miou"], band["accuracy"])
        cells = "".join(_number(percent(value) if evaluated else "-") for value in values)
        rows.append(f"<td>{band_title(band)}</td>{cells}{_number(f'{evaluated:,}')}")
    titles = ("mIoU present", "mIoU", "accuracy", "points evaluated")
    means = _table("<th>range</th>" + "".join(f'<th class="n">{title}</th>' for title in titles), rows)
    heat = []
    for name in summary["support"]:
        cells = "".join(
            _heat_cell(band["iou"][name], f"{points:,} points") if points else "<td></td>"
            for band in bands
            for points in [band["support"][name]]
        )
        heat.append(f"<th>{swatch(label_set, name)}{escape(name)}</th>{cells}")
    heat_head = "<th>IoU</th>" + "".join(f"<th>{band_title(band)}</th>" for band in bands)
    return f"{means}<h3>By class and range</h3>{_table(heat_head, heat, 'heat')}"


def confusion(summary: dict[str, Any], label_set: LabelSet) -> str:
    """Tabulate the confusion matrix, each column as shares of its true class."""
    names = summary["confusion"]["classes"]
    counts = np.array(summary["confusion"]["counts"], dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    rows = []
    for row, predicted in enumerate(names):
        cells = "".join(
            _heat_cell(share, f"{truth} predicted as {predicted}: {count:,} points") if count else "<td></td>"
            for share, count, truth in zip(shares[row].tolist(), counts[row].tolist(), names, strict=True)
        )
        rows.append(f"<th>{swatch(label_set, predicted)}{escape(predicted)}</th>{cells}")
    head = "<th>predicted \\ true</th>" + "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<p>Columns are true classes and add up to 100; rows are predictions.</p>{_table(head, rows, 'heat')}"


def latency(values_ms: Sequence[float]) -> str:
    """Draw a histogram of latencies in milliseconds, with percentiles marked."""
    width, height, left, right, top, bottom = 720, 220, 46, 710, 30, 194
    longest = max(float(np.percentile(values_ms, 99.5)) * 1.1, 1e-3)
    counts, _ = np.histogram(
        np.minimum(values_ms, longest), bins=48, range=(0, longest)
    )  # the last bin counts the rest
    across, upward = (right - left) / len(counts), (bottom - top) / int(counts.max())
    parts = [
        f'<rect class="bars" x="{left + i * across + 0.5:.1f}" y="{bottom - count * upward:.1f}" '
        f'width="{across - 1:.1f}" height="{count * upward:.1f}"><title>{count} scans</title></rect>'
        for i, count in enumerate(counts.tolist())
    ]
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{left - 6}" y="{top + 4}" text-anchor="end">{counts.max()}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * (right - left)
        anchor = "end" if share == 1 else "middle"
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18}" text-anchor="{anchor}">{share * longest:.3g} ms</text>')
    for number, percentile in enumerate(LATENCY_PERCENTILES):
        x = left + min(float(np.percentile(values_ms, percentile)) / longest, 1) * (right - left)
        y = 12 + 10 * (number % 2)  # different heights, so that neighbouring captions do not overlap
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{bottom}"/>')
        parts.append(f'<text x="{x + 3:.1f}" y="{y}">p{percentile}</text>')
    percentiles = ", ".join(f"p{p} {np.percentile(values_ms, p):.1f} ms" for p in LATENCY_PERCENTILES)
    return (
        f"<p>{len(values_ms):,} scans: {percentiles}, longest {max(values_ms):.1f} ms.</p>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="latency histogram">'
        f"{''.join(parts)}</svg>"
    )


def swatch(label_set: LabelSet, name: str) -> str:
    """Draw a small square in a class's colour."""
    red, green, blue = display_colors(label_set)[label_set.index(name)].tolist()
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _table(head: str, rows: Iterable[str], kind: str = "") -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(text: str) -> str:
    return f'<td class="n">{text}</td>'


def _heat_cell(share: float, title: str) -> str:
    """Format a cell of a heat map in percent; a dot stands for less than half a percent."""
    hot = ' class="hot"' if share > 0.55 else ""
    text = "·" if share < 0.005 else f"{100 * share:.0f}"
    return f'<td{hot} style="--v:{share:.3f}" title="{escape(title)}">{text}</td>'
