# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, and a plot of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqsegv3_ros.benchmark.stages import TABLE_STAGES
from sqsegv3_ros.errors import missing_package

_PALETTE = ("#4e79a7", "#59a14f", "#e15759", "#edc948", "#b07aa1", "#76b7b2", "#9c755f")
COLORS = dict(zip(TABLE_STAGES, _PALETTE, strict=True))


def text(result: Mapping[str, Any]) -> str:
    """The whole report as Markdown tables and sentences."""
    parts = [_heading(result), _stages(result), _work(result), _codec(result)]
    if "equal" in result:
        parts[2:2] = [_variants(result), _equality(result)]
    if result["busy"]:
        parts.append(f"Note: {result['busy']}.")
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: first column left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        + " |"
        for row in cells
    ]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def _heading(result: Mapping[str, Any]) -> str:
    knn = result["knn"]
    vote = "no KNN" if knn["mode"] == "off" else f"KNN {knn['k']} of {knn['search']} x {knn['search']} ({knn['mode']})"
    load, graph = result["load_average"], ", CUDA graph" if result["cuda_graph"] else ""
    mirrored = ", mirrored image too" if result["average_mirrored"] else ""
    return (
        f"{result['model']} ({result['weights']}), {result['height']} x {result['width']}, {vote}, "
        f"{result['backend']} {result['precision']}{graph}{mirrored}\n"
        f"{result['points']} points ({result['scan']}), {result['repeat']} times, {result['threads']} threads, "
        f"{result['device']}: {result['machine']}\n"
        f"CPU seconds a second: {result['cpu_per_wall']:.2f} in a scan; other processes used "
        f"{result['other_cores']:.2f} cores; load average {load[0]:.1f} before, {load[1]:.1f} after"
    )


def _stages(result: Mapping[str, Any]) -> str:
    columns = ("min_ms", "median_ms", "p95_ms")
    header = ["stage", "min ms", "median ms", "p95 ms"]
    compare = "reference" in result
    if compare:
        header += ["reference, median ms", "times faster"]
    rows = []
    for stage in (*TABLE_STAGES, "total"):
        row = [stage, *(f"{result['stages'][stage][column]:.2f}" for column in columns)]
        if compare:
            other = result["reference"]["stages"].get(stage)
            speedup = result["speedup"].get(stage)
            row += [f"{other['median_ms']:.2f}" if other else "", f"{speedup:.2f}" if speedup else ""]
        rows.append(row)
    return table(header, rows)


def _variants(result: Mapping[str, Any]) -> str:
    """The network alone, in every runtime."""
    own = result["variants"]["ours"]
    rows = [
        [
            "this package" if name == "ours" else name,
            found["precision"],
            f"{found['network_ms']:.2f}",
            f"{found['network_ms'] / own['network_ms']:.2f}",
            f"{found['cpu_per_wall']:.2f}",
            f"{found['peak_rss_mb']:.0f}",
            f"{100 * found['labels_equal']:.3f}",
        ]
        for name, found in result["variants"].items()
    ]
    header = ["network", "precision", "median ms", "x this package", "CPU s/s", "peak MB", "labels equal %"]
    return table(header, rows)


def _equality(result: Mapping[str, Any]) -> str:
    equal = result["equal"]
    classes = (
        f"{equal['classes_differ']} pixels get another class than by the reference network in fp32, and "
        f"{equal['classes_within_margin_differ']} whose best two classes are too close to tell"
    )
    if not equal["exact"]:
        classes += " (weights or arithmetic are not fp32, so they may)"
    lines = [f"{'Equal' if equal['all'] else 'NOT EQUAL'}: {classes}."]
    if "reference" in result:
        reference = result["reference"]
        lines += [
            f"{equal['pixels_differ']} pixels of the projection differ, {equal['knn_labels_differ']} labels of KNN on "
            f"one label image, {equal['knn_ties_differ']} of tied neighbours; "
            f"{equal['labels_differ']} labels of {result['points'] - result['points_at_edges']} points at the end.",
            f"Beside the reference: {result['cpu_seconds']:.2f} against {reference['cpu_seconds']:.2f} CPU seconds a "
            f"scan, {result['rss_ratio']:.2f} of its memory. Total compares project to knn, which both have.",
        ]
    lines.append(f"Compared without {result['points_at_edges']} points at the edge of a pixel, where rounding decides.")
    for name, knn in result.get("knn_on_true_labels", {}).items():
        lines.append(
            f"KNN {name} on the scan's true labels: {knn['median_ms']:.1f} ms against "
            f"{knn['reference_median_ms']:.1f} ms, {knn['speedup']:.1f} times faster; "
            f"{knn['labels_differ']} labels differ."
        )
    return "\n".join(lines)


def _work(result: Mapping[str, Any]) -> str:
    moved, startup = result["bytes"], result["startup"]
    return (
        f"Network: {result['gmac']:.2f} GMAC at {result['gflops']:.1f} GFLOP/s\n"
        f"CPU: {result['cpu_seconds']:.3f} s a scan. Peak memory of the process: {result['peak_rss_mb']:.0f} MB\n"
        f"Start: torch imported in {startup['import_torch_s']:.2f} s; from there {startup['first_cloud_s']:.2f} s "
        f"({startup['first_cloud_cpu_s']:.2f} CPU) to the first labelled cloud, with loading and warm-up\n"
        f"Bytes a scan: cloud in {moved['cloud_in'] / 1e6:.1f} MB, convolutions {moved['network'] / 1e6:.0f} MB "
        f"(float32), cloud out {moved['cloud_out'] / 1e6:.1f} MB"
    )


def _codec(result: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{t:.2f}" for t in (times["decode_ms"], times["encode_ms"], times["decode_ms"] + times["encode_ms"]))]
        for name, times in result["codec"].items()
    ]
    return table(["cloud of 130,000 points", "decode ms", "encode ms", "both ms"], rows)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the stages of a scan as one bar, and those of the reference implementation below it.

    Raises UserError if matplotlib is not installed.
    """
    pyplot = import_pyplot()
    bars = {"this package": result["stages"]}
    if "reference" in result:
        bars["reference"] = result["reference"]["stages"]
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.7 * len(bars)), layout="constrained")
    for row, stages in enumerate(bars.values()):
        left = 0.0
        for stage in TABLE_STAGES:
            width = stages.get(stage, {}).get("median_ms", 0.0)
            axes.barh(row, width, left=left, color=COLORS[stage], label=stage if row == 0 else None)
            left += width
        axes.annotate(f"{left:.0f} ms", (left, row), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds a scan (median)")
    axes.set_title(f"{result['model']}, {result['height']} x {result['width']}, {result['points']} points", fontsize=10)
    axes.legend(ncols=len(TABLE_STAGES), loc="upper center", bbox_to_anchor=(0.5, -0.32), frameon=False, fontsize=8)
    save(figure, path)


def import_pyplot() -> Any:
    """matplotlib.pyplot without a display. Raises UserError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package("matplotlib", "drawing a plot", "tools") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    import io

    from sqsegv3_ros.files import write_atomically

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
