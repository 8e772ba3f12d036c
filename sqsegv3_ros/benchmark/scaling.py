"""A network's name comes in; what a scan costs against points, image size, threads and channels goes out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.child import Child, leaving_on_sigterm
from sqsegv3_ros.benchmark.measure import busy, stage_statistics
from sqsegv3_ros.benchmark.report import COLORS, import_pyplot, save, table
from sqsegv3_ros.benchmark.scene import POINTS, made_up_scan
from sqsegv3_ros.benchmark.variants import STAGES

POINT_COUNTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
WIDTHS = (256, 512, 1024, 2048, 4096)
ROWS = (16, 32, 64, 128)
THREADS = (1, 2)
MULTIPLIERS = ("1/8", "3/16", "1/4", "1/2", "1")
SIZE = {"height": 64, "width": 512}  # where neither is what is varied: small, so that the whole takes minutes
SWEEPS = {
    "points": "points in the cloud",
    "width": "columns of the image",
    "rows": "rows of the image",
    "threads": "threads",
    "channels": "GMAC of the network",
}


def measure(network: str, threads: int | None, repeat: int) -> dict[str, Any]:
    """Measure all of SWEEPS: by sweep a list of {"x", "stages": as in measure.py, "cpu_seconds"}.

    network: its name (networks.py), for all sweeps but the one over channels.
    """
    with (
        leaving_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="sqsegv3_benchmark_") as folder,
        Child("maker", {}) as maker,
    ):
        bench = _Bench(Path(folder), maker, threads, repeat)
        model = bench.model(network)
        sweeps: dict[str, list[dict[str, Any]]] = {name: [] for name in SWEEPS}
        with bench.child(model) as child:
            for count in POINT_COUNTS:
                sweeps["points"].append(bench.sample(child, count, bench.scan(count)))
        for name, values in (("width", WIDTHS), ("rows", ROWS)):
            for value in values:
                with bench.child(model, **{"width" if name == "width" else "height": value}) as child:
                    sweeps[name].append(bench.sample(child, value))
        for count in THREADS:
            with bench.child(model, count, width=2048) as child:
                sweeps["threads"].append(bench.sample(child, count))
        for multiplier in MULTIPLIERS:
            with bench.child(bench.model(multiplier)) as child:
                about = child.ask("describe")
                work = maker.ask("work", **{name: about[name] for name in ("architecture", "height", "width")})
                sweeps["channels"].append(bench.sample(child, work["gmac"]))
        with Child("sgemm", {"threads": threads, "device": "cpu"}) as sgemm:
            rate = [sgemm.ask() for _ in range(5)]
    cpu_per_wall = float(np.median([1e3 * sample["cpu_s"] / sample["wall_ms"] for sample in rate]))
    return {
        "network": network,
        "sweeps": sweeps,
        "sgemm_gflops": float(np.median([sample["gflops"] for sample in rate])),
        "busy": busy(cpu_per_wall, about["threads"]),
    }


class _Bench:
    """Makes models, scans and children, and takes samples."""

    def __init__(self, folder: Path, maker: Child, threads: int | None, repeat: int) -> None:
        self._folder, self._maker, self._threads, self._repeat = folder, maker, threads, repeat
        self._usual_scan = self.scan(POINTS)

    def model(self, network: str) -> str:
        path = self._folder / f"{network.replace('/', '_')}.pt"
        self._maker.ask("run", path=str(path), network=network, **SIZE)
        return str(path)

    def scan(self, points: int) -> str:
        path = self._folder / f"{points}.npy"
        np.save(path, made_up_scan(points))
        return str(path)

    @contextmanager
    def child(self, model: str, threads: int | None = None, **size: int) -> Iterator[Child]:
        parameters = {f"projection.{name}": value for name, value in (SIZE | size).items()}
        settings = {
            "scan": self._usual_scan,
            "model": model,
            "threads": threads or self._threads,
            "parameters": {"device": "cpu", **parameters},
        }
        with Child("ours", settings) as child:
            yield child

    def sample(self, child: Child, x: float, scan: str = "") -> dict[str, Any]:
        runs = [child.ask(scan=scan or self._usual_scan) for _ in range(self._repeat)]
        return {
            "x": x,
            "stages": stage_statistics(runs),
            "cpu_seconds": float(np.median([run["cpu_s"] for run in runs])),
        }


def exponent(samples: list[dict[str, Any]], stage: str) -> float:
    """How a stage grows: the slope of a line through log time against log x; 1 is linear, 0 constant."""
    x = np.log([sample["x"] for sample in samples])
    y = np.log([max(sample["stages"][stage]["median_ms"], 1e-3) for sample in samples])
    return float(np.polyfit(x, y, 1)[0])


def text(result: Mapping[str, Any]) -> str:
    """A table for each sweep: median milliseconds by stage, and below them how each grows."""
    parts = [
        f"sgemm {result['sgemm_gflops']:.1f} GFLOP/s. Median milliseconds; network {result['network']} unless varied."
    ]
    for name, samples in result["sweeps"].items():
        rows = [
            [_number(s["x"]), *(f"{s['stages'][stage]['median_ms']:.2f}" for stage in (*STAGES, "total"))]
            for s in samples
        ]
        if name != "threads":
            rows.append(["grows with x to the", *(f"{exponent(samples, stage):.2f}" for stage in (*STAGES, "total"))])
        parts.append(table([SWEEPS[name], *STAGES, "total"], rows))
    if result["busy"]:
        parts.append(f"Note: {result['busy']}.")
    return "\n\n".join(parts)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a panel for each sweep, time against x, both logarithmic, with a line of proportional growth."""
    pyplot = import_pyplot()
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for panel, (name, samples) in zip(axes.flat, result["sweeps"].items(), strict=False):
        x = [sample["x"] for sample in samples]
        for stage in STAGES:
            times = [sample["stages"][stage]["median_ms"] for sample in samples]
            panel.plot(x, times, color=COLORS[stage], marker="o", ms=3, label=stage)
        total = [sample["stages"]["total"]["median_ms"] for sample in samples]
        panel.plot(x, total, color="black", marker="o", ms=3, label="total")
        # what more threads do is divided among them
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
