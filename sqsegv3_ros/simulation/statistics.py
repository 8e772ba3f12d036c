# SPDX-License-Identifier: Apache-2.0
"""Comparison of the statistics of simulated and real scans: tables and figures.

Run as `python -m sqsegv3_ros.simulation.statistics REAL SIMULATED --output DIR`. The output has only sums and
histograms, never a scan.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data import semantic_kitti as kitti
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError, missing_package
from sqsegv3_ros.files import write_atomically

ROWS, COLUMNS = 64, 2048
LABELLED_M = 50.0  # SemanticKITTI leaves points beyond unlabeled
RANGE_BINS = np.geomspace(1.5, 85.0, 49)
REMISSION_BINS = np.linspace(-0.005, 1.005, 102)
Counts = npt.NDArray[np.float64]


@dataclass
class ScanStatistics:
    """Sums over scans.

    Attributes:
        scans: Number of scans.
        points: Number of points.
        by_range: (classes, bins) points within 50 m by range.
        by_remission: (classes, bins) points within 50 m by remission.
        occupied: (rows,) sum over the scans of the share of an image row's pixels that have a point.
        row_range: (rows, bins) pixels of each image row by range.
    """

    scans: int = 0
    points: int = 0
    by_range: Counts = field(default_factory=lambda: np.zeros((len(SEMANTIC_KITTI), len(RANGE_BINS) - 1)))
    by_remission: Counts = field(default_factory=lambda: np.zeros((len(SEMANTIC_KITTI), len(REMISSION_BINS) - 1)))
    occupied: Counts = field(default_factory=lambda: np.zeros(ROWS))
    row_range: Counts = field(default_factory=lambda: np.zeros((ROWS, len(RANGE_BINS) - 1)))

    def add(self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> None:
        """Add a scan: (N, 4) points and their (N,) classes."""
        import torch

        from sqsegv3_ros.inference.range_image import ProjectionConfig, project

        image = project(torch.from_numpy(points), ProjectionConfig(height=ROWS, width=COLUMNS))
        distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
        near = distance < LABELLED_M
        self.scans += 1
        self.points += len(points)
        classes = np.arange(len(SEMANTIC_KITTI) + 1)
        self.by_range += np.histogram2d(labels[near], distance[near], bins=(classes, RANGE_BINS))[0]
        self.by_remission += np.histogram2d(labels[near], points[near, 3], bins=(classes, REMISSION_BINS))[0]
        mask, pixel_range = image.mask.numpy(), image.range.numpy()
        self.occupied += mask.mean(axis=1)
        rows = np.nonzero(mask)[0]
        self.row_range += np.histogram2d(rows, pixel_range[mask], bins=(np.arange(ROWS + 1), RANGE_BINS))[0]


def count_scans(root: Path, sequences: list[str] | None = None) -> ScanStatistics:
    """Sum over the labelled scans of a data set.

    Raises:
        UserError: There are no scans, or labels do not fit.
    """
    total = ScanStatistics()
    for scan in kitti.find_scans(root, sequences):
        points = kitti.read_scan(scan.path)
        total.add(points, SEMANTIC_KITTI.to_labels(kitti.read_labels(scan.labels_path, len(points))))
    return total


def histogram_quantile(counts: Counts, bins: npt.NDArray[np.float64], share: float) -> float:
    """Compute a quantile of a histogram, linear within a bin; nan if it is empty."""
    total = counts.sum()
    if not total:
        return float("nan")
    return float(np.interp(share * total, np.concatenate([[0.0], np.cumsum(counts)]), bins))


def wasserstein_distance(a: Counts, b: Counts, bins: npt.NDArray[np.float64]) -> float:
    """Compute the 1-Wasserstein distance of two histograms, in the unit of the bins; nan if one is empty."""
    if not a.sum() or not b.sum():
        return float("nan")
    difference = np.cumsum(a / a.sum()) - np.cumsum(b / b.sum())
    return float(np.abs(difference[:-1]) @ np.diff(0.5 * (bins[1:] + bins[:-1])))


def class_table(real: ScanStatistics, simulated: ScanStatistics) -> str:
    """Tabulate share, range and remission by class, in Markdown.

    Share of labelled points, range as median and 10th..90th percentile, remission as mean and share of zeros.
    """
    middle = 0.5 * (REMISSION_BINS[1:] + REMISSION_BINS[:-1])

    def cells(counted: ScanStatistics, label: int) -> list[str]:
        near, bright = counted.by_range[label], counted.by_remission[label]
        share = f"{100 * near.sum() / counted.by_range[1:].sum():.2f}"
        if not near.any() or not bright.any():
            return [share, "-", "-", "-"]
        median, low, high = (histogram_quantile(near, RANGE_BINS, q) for q in (0.5, 0.1, 0.9))
        mean, zeros = bright @ middle / bright.sum(), 100 * bright[0] / bright.sum()
        return [share, f"{median:.0f} ({low:.0f}..{high:.0f})", f"{mean:.2f}", f"{zeros:.0f}"]

    whole = np.array([c.frequency or 0.0 for c in SEMANTIC_KITTI.classes])
    lines = [
        "| class | share %: data set | real scans | simulated | range m: real | simulated "
        "| remission: real | simulated | zeros %: real | simulated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label in range(1, len(SEMANTIC_KITTI)):
        pairs = zip(cells(real, label), cells(simulated, label), strict=True)
        share = f"{100 * whole[label] / whole[1:].sum():.2f}"
        lines.append("| " + " | ".join([SEMANTIC_KITTI.names[label], share, *chain(*pairs)]) + " |")
    return "\n".join(lines)


def summary_table(real: ScanStatistics, simulated: ScanStatistics) -> str:
    """Tabulate the numbers of whole scans, in Markdown."""
    log_bins = np.log2(RANGE_BINS)
    by_row = [wasserstein_distance(a, b, log_bins) for a, b in zip(real.row_range, simulated.row_range, strict=True)]
    occupied = [100 * counted.occupied / counted.scans for counted in (real, simulated)]
    points = [f"{counted.points / counted.scans:.0f}" for counted in (real, simulated)]
    rows = [["scans", str(real.scans), str(simulated.scans)], ["points a scan", *points]]
    for name, first, last in (
        ("whole image", 0, 64),
        ("rows 0-15", 0, 16),
        ("rows 16-47", 16, 48),
        ("rows 48-63", 48, 64),
    ):
        rows.append([f"pixels with a point, {name} %", *(f"{o[first:last].mean():.1f}" for o in occupied)])
    difference = np.abs(occupied[0] - occupied[1]).mean()
    rows.append(["mean difference of a row's occupancy, points", "", f"{difference:.1f}"])
    rows.append(["mean shift of a row's ranges, octaves", "", f"{np.nanmean(by_row):.2f}"])
    return "\n".join(["| | real | simulated |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def draw_figures(real: ScanStatistics, simulated: ScanStatistics, folder: Path) -> None:
    """Plot rows.png (occupancy and range by image row) and remission.png (remission by class).

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "plotting statistics", "tools") from error
    pairs = (("real", real, "tab:blue"), ("simulated", simulated, "tab:orange"))

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, counted, color in pairs:
        left.plot(100 * counted.occupied / counted.scans, color=color, label=name)
        for share, style in ((0.1, ":"), (0.5, "-"), (0.9, "--")):
            line = [histogram_quantile(row, RANGE_BINS, share) for row in counted.row_range]
            right.plot(line, style, color=color, label=f"{name}, {share:.0%} nearer")
    left.set(xlabel="image row", ylabel="pixels with a point, %", ylim=(0, 100))
    right.set(xlabel="image row", ylabel="range, m", yscale="log")
    left.legend()
    right.legend(fontsize=7)
    FigureCanvasAgg(figure).print_png(str(folder / "rows.png"))

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, label in zip(figure.subplots(4, 5).ravel(), range(1, len(SEMANTIC_KITTI)), strict=False):
        for name, counted, color in pairs:
            counts = counted.by_remission[label]
            if counts.sum():
                smooth = np.add.reduceat(counts[:100], np.arange(0, 100, 4)) / counts.sum()
                axes.step(np.arange(0, 1, 0.04), smooth, where="post", color=color, label=name, linewidth=1)
        axes.set_title(SEMANTIC_KITTI.names[label], fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=6)
    figure.suptitle("remission by class (blue: real, orange: simulated)", fontsize=9)
    FigureCanvasAgg(figure).print_png(str(folder / "remission.png"))


def main(arguments: list[str] | None = None) -> int:
    """Run the script. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare the statistics of simulated scans with those of real ones.")
    parser.add_argument("real", type=Path, help="SemanticKITTI data set with labels")
    parser.add_argument("simulated", type=Path, help="SemanticKITTI data set from `sqsegv3 simulate`")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for statistics.md and the figures"
    )
    args = parser.parse_args(arguments)
    try:
        real, simulated = count_scans(args.real), count_scans(args.simulated)
        text = f"{summary_table(real, simulated)}\n\n{class_table(real, simulated)}\n"
        write_atomically(args.output / "statistics.md", text.encode())
        draw_figures(real, simulated, args.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
