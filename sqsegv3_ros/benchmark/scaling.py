# SPDX-License-Identifier: Apache-2.0
"""How the time of a scan grows with points, image size, threads and channels."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.child import Child, leaving_on_sigterm
from sqsegv3_ros.benchmark.scene import POINTS, synthetic_scan
from sqsegv3_ros.benchmark.stages import TABLE_STAGES, OtherWork, median, stage_statistics
from sqsegv3_ros.benchmark.tables import COLORS, import_pyplot, save, table

POINT_COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
WIDTHS = (256, 512, 1024, 2048, 4096)
ROWS = (16, 32, 64, 128)
THREADS = (1, 2)
MULTIPLIERS = ("1/8", "3/16", "1/4", "1/2", "1")
SIZE = {"height": 64, "width": 512}  # unless varied; small, so that all sweeps take minutes
SWEEPS = {
    "points": "points in the cloud",
    "width": "columns of the image",
    "height": "rows of the image",
    "threads": "threads",
    "channels": "GMAC of the network",
}


def measure(network: str, runtime: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Measure all of SWEEPS: by sweep a list of {"x", "stages": as in measure.py, "cpu_seconds"}.

    Args:
        network: Name of the network in all sweeps but the one over channels.
        runtime: Node parameters: backend, device, precision, threads.
        repeat: Scans of each sample.
    """
    with OtherWork() as others:
        sweeps, about = _measure(network, runtime, repeat)
    return {
        "network": network,
        "backend": about["backend"],
        "precision": about["precision"],
        "sweeps": sweeps,
        "other_cores": others.cores,
        "busy": others.busy(about["threads"], about["device"]),
    }


def _measure(
    network: str, runtime: dict[str, Any], repeat: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    with (
        leaving_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="sqsegv3_benchmark_") as folder,
        Child("benchmark.variants.Maker", {}) as maker,
    ):
        bench = _Bench(Path(folder), maker, runtime, repeat)
        model = bench.model(network)
        sweeps: dict[str, list[dict[str, Any]]] = {name: [] for name in SWEEPS}
        with bench.child(model) as child:
            for count in POINT_COUNTS:
                sweeps["points"].append(bench.sample(child, count, bench.scan(count)))
        for name, values in (("width", WIDTHS), ("height", ROWS)):
            for value in values:
                with bench.child(model, **{f"projection.{name}": value}) as child:
                    sweeps[name].append(bench.sample(child, value))
        for count in THREADS:
            with bench.child(model, threads=count, **{"projection.width": 2048}) as child:
                sweeps["threads"].append(bench.sample(child, count))
        for multiplier in MULTIPLIERS:
            with bench.child(bench.model(multiplier)) as child:
                about = child.ask("describe")
                work = maker.ask("work", **{name: about[name] for name in ("architecture", "height", "width")})
                sweeps["channels"].append(bench.sample(child, work["gmac"]))
    return sweeps, about


class _Bench:
    """Writes models and scans, starts children, takes samples."""

    def __init__(self, folder: Path, maker: Child, runtime: dict[str, Any], repeat: int) -> None:
        self._folder, self._maker, self._repeat = folder, maker, repeat
        self._parameters = {**runtime, **{f"projection.{name}": v for name, v in SIZE.items()}}
        self._usual_scan = self.scan(POINTS)

    def model(self, network: str) -> str:
        path = self._folder / f"{network.replace('/', '_')}.pt"
        self._maker.ask("run", path=str(path), network=network, **SIZE)
        return str(path)

    def scan(self, points: int) -> str:
        path = self._folder / f"{points}.npy"
        np.save(path, synthetic_scan(points))
        return str(path)

    def child(self, model: str, **parameters: Any) -> Child:
        settings = {"scan": self._usual_scan, "model": model, "parameters": self._parameters | parameters}
        return Child("benchmark.variants.Pipeline", settings)

    def sample(self, child: Child, x: float, scan: str = "") -> dict[str, Any]:
        runs = [child.ask(scan=scan or self._usual_scan) for _ in range(self._repeat)]
        return {"x": x, "stages": stage_statistics(runs), "cpu_seconds": median([run["cpu_s"] for run in runs])}


def exponent(samples: list[dict[str, Any]], stage: str) -> float:
    """Power of x with which a stage grows, by a line through log time against log x; 1 is linear, 0 constant."""
    x = np.log([sample["x"] for sample in samples])
    y = np.log([max(sample["stages"][stage]["median_ms"], 1e-3) for sample in samples])
    return float(np.polyfit(x, y, 1)[0])


def text(result: Mapping[str, Any]) -> str:
    """One table per sweep: median milliseconds by stage, and how each grows."""
    parts = [
        f"Median milliseconds; network {result['network']} unless varied, {result['backend']} {result['precision']}; "
        f"other processes used {result['other_cores']:.2f} cores."
    ]
    for name, samples in result["sweeps"].items():
        rows = [
            [_number(s["x"]), *(f"{s['stages'][stage]['median_ms']:.2f}" for stage in (*TABLE_STAGES, "total"))]
            for s in samples
        ]
        if name != "threads":
            rows.append(["grows with x to the", *(f"{exponent(samples, s):.2f}" for s in (*TABLE_STAGES, "total"))])
        parts.append(table([SWEEPS[name], *TABLE_STAGES, "total"], rows))
    if result["busy"]:
        parts.append(f"Note: {result['busy']}.")
    return "\n\n".join(parts)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: one panel per sweep, time against x, both logarithmic, with a line of proportional growth."""
    pyplot = import_pyplot()
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for panel, (name, samples) in zip(axes.flat, result["sweeps"].items(), strict=False):
        x = [sample["x"] for sample in samples]
        for stage in TABLE_STAGES:
            times = [sample["stages"][stage]["median_ms"] for sample in samples]
            panel.plot(x, times, color=COLORS[stage], marker="o", ms=3, label=stage)
        total = [sample["stages"]["total"]["median_ms"] for sample in samples]
        panel.plot(x, total, color="black", marker="o", ms=3, label="total")
        # threads divide the work among them
        line = [total[0] * x[0] / v for v in x] if name == "threads" else [total[-1] * v / x[-1] for v in x]
        panel.plot(x, line, color="grey", ls=":", label="in proportion")
        panel.set(xscale="log", yscale="log", xlabel=SWEEPS[name], ylabel="milliseconds (median)")
        panel.set_xticks(x, [f"{v / 1000:.0f} k" if v >= 10_000 else f"{v:.2g}" if v < 100 else f"{v:.0f}" for v in x])
        panel.xaxis.set_minor_locator(NullLocator())
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    save(figure, path)


def _number(x: float) -> str:
    return f"{x:.0f}" if x == int(x) else f"{x:.2f}"
