"""The result of `measure` comes in; tables for the terminal and a picture of the stages go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqsegv3_ros.benchmark.variants import STAGES
from sqsegv3_ros.errors import missing_package

COLORS = dict(zip(STAGES, ("#4e79a7", "#59a14f", "#e15759", "#edc948", "#b07aa1", "#76b7b2"), strict=True))


def text(result: Mapping[str, Any]) -> str:
    """The whole report for a terminal."""
    parts = [_heading(result), _stages(result), _work(result), _codec(result)]
    if "reference" in result:
        parts.insert(2, _comparison(result))
    if result["busy"]:
        parts.append(f"Note: {result['busy']}.")
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns are aligned: the first to the left, the others to the right."""
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
    load = result["load_average"]
    return (
        f"{result['model']} ({result['weights']}), {result['height']} x {result['width']}, {vote}, "
        f"{result['precision']}\n"
        f"{result['points']} points ({result['scan']}), {result['repeat']} times, {result['threads']} threads, "
        f"{result['device']}: {result['machine']}\n"
        f"CPU seconds a second: {result['sgemm_cpu_per_wall']:.2f} in sgemm, {result['cpu_per_wall']:.2f} in a scan; "
        f"load average {load[0]:.1f} before, {load[1]:.1f} after"
    )


def _stages(result: Mapping[str, Any]) -> str:
    columns = ("min_ms", "median_ms", "p95_ms")
    header = ["stage", "min ms", "median ms", "p95 ms"]
    compare = "reference" in result
    if compare:
        header += ["release's way, median ms", "times faster"]
    rows = []
    for stage in (*STAGES, "total"):
        row = [stage, *(f"{result['stages'][stage][column]:.2f}" for column in columns)]
        if compare:
            other = result["reference"]["stages"].get(stage)
            speedup = result["speedup"].get(stage)
            row += [f"{other['median_ms']:.2f}" if other else "", f"{speedup:.2f}" if speedup else ""]
        rows.append(row)
    return table(header, rows)


def _comparison(result: Mapping[str, Any]) -> str:
    reference, equal = result["reference"], result["equal"]
    lines = [
        f"Beside the release's way: CPU {result['cpu_seconds']:.2f} s a scan against {reference['cpu_seconds']:.2f} s, "
        f"peak memory {result['peak_rss_mb']:.0f} MB against {reference['peak_rss_mb']:.0f} MB "
        f"({result['rss_ratio']:.2f}). Total compares project to knn, which both do.",
        f"{'Equal' if equal['all'] else 'NOT EQUAL'}: {equal['pixels_differ']} pixels of the projection differ, "
        f"{equal['knn_labels_differ']} labels of KNN on one label image, and {equal['knn_ties_differ']} where two "
        "neighbours are equally far",
    ]
    if "labels_differ" in equal:
        lines[-1] += (
            f"; classes of {equal['classes_differ']} pixels, and of {equal['classes_within_margin_differ']} whose best "
            f"two are too close to tell, which leaves {equal['labels_differ']} other labels of "
            f"{result['points'] - result['points_at_edges']}"
        )
    else:
        lines[-1] += "; the networks have different weights (a model file does not hold those of the training form)"
    lines[1] += f". Compared without {result['points_at_edges']} points at an edge of a pixel, where rounding decides."
    for name, knn in result["knn_on_true_labels"].items():
        lines.append(
            f"KNN {name} on the scan's true labels: {knn['median_ms']:.1f} ms against "
            f"{knn['reference_median_ms']:.1f} ms, {knn['speedup']:.1f} times faster; "
            f"{knn['labels_differ']} labels differ."
        )
    return "\n".join(lines)


def _work(result: Mapping[str, Any]) -> str:
    moved, startup = result["bytes"], result["startup"]
    return (
        f"Network: {result['gmac']:.2f} GMAC at {result['gflops']:.1f} GFLOP/s, "
        f"{result['gflops'] / result['sgemm_gflops']:.2f} of sgemm's {result['sgemm_gflops']:.1f} "
        f"(best {result['sgemm_best_gflops']:.1f})\n"
        f"CPU: {result['cpu_seconds']:.3f} s a scan. Peak memory of the process: {result['peak_rss_mb']:.0f} MB\n"
        f"Start: {startup['first_cloud_s']:.2f} s ({startup['first_cloud_cpu_s']:.2f} CPU) from torch, imported in "
        f"{startup['import_torch_s']:.2f} s, to the first labelled cloud, with loading and warm-up\n"
        f"Bytes a scan moves at least: cloud in {moved['cloud_in'] / 1e6:.1f} MB, "
        f"network {moved['network'] / 1e6:.0f} MB, cloud out {moved['cloud_out'] / 1e6:.1f} MB"
    )


def _codec(result: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{t:.2f}" for t in (times["decode_ms"], times["encode_ms"], times["decode_ms"] + times["encode_ms"]))]
        for name, times in result["codec"].items()
    ]
    return table(["cloud of 130,000 points", "decode ms", "encode ms", "both ms"], rows)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the stages of a scan as one bar, and those of the release's way below it.

    Raises UserError where matplotlib is not installed.
    """
    pyplot = import_pyplot()
    bars = {"this package": result["stages"]}
    if "reference" in result:
        bars["the release's way"] = result["reference"]["stages"]
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.7 * len(bars)), layout="constrained")
    for row, stages in enumerate(bars.values()):
        left = 0.0
        for stage in STAGES:
            width = stages.get(stage, {}).get("median_ms", 0.0)
            axes.barh(row, width, left=left, color=COLORS[stage], label=stage if row == 0 else None)
            left += width
        axes.annotate(f"{left:.0f} ms", (left, row), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds a scan (median)")
    axes.set_title(f"{result['model']}, {result['height']} x {result['width']}, {result['points']} points", fontsize=10)
    axes.legend(ncols=len(STAGES), loc="upper center", bbox_to_anchor=(0.5, -0.32), frameon=False, fontsize=8)
    save(figure, path)


def import_pyplot() -> Any:
    """matplotlib.pyplot, drawing without a screen."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package("matplotlib", "drawing a plot", "tools") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    import io

    from sqsegv3_ros.kitti import write_whole

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())
