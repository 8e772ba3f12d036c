"""What to measure comes in; times of all stages, memory, work and the comparison with the release go out as a dict."""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.benchmark.child import Child, leaving_on_sigterm
from sqsegv3_ros.benchmark.networks import NAMES
from sqsegv3_ros.benchmark.scene import made_up_street
from sqsegv3_ros.benchmark.variants import STAGES
from sqsegv3_ros.errors import UserError

QUIET_CPU_PER_WALL = 0.95  # of each thread; below it another process had the core
CODEC_POINTS = 130_000
EDGE = 1e-3  # pixels at 2048 columns, in proportion at more; float32 positions are right to half of it
_KNN_VARIANTS = ("ours", "reference")
KNN_SIZES = (5, 7)  # RangeNet++'s and the release's: as many neighbours as the window has columns
_ABOUT = ("model", "device", "precision", "threads", "points", "height", "width", "knn")
COMPARED = ("project", "network", "restore", "knn")


@dataclass(frozen=True)
class Options:
    """What is measured.

    model: a model file; None: random weights of `network`. scan: (N, 4) float32; None: a made-up street. labels: the
        scan's true labels (N,), where they are known, on which KNN is compared.
    height, width: of the image; None: the model's own (64 x 2048). knn_k, knn_search: None: the model's own.
    threads: CPU threads; None: torch's choice. compare: also measure the release's way.
    """

    model: Path | None = None
    network: str = NAMES[0]
    scan: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.uint8] | None = None
    height: int | None = None
    width: int | None = None
    knn_k: int | None = None
    knn_search: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    repeat: int = 10
    compare: bool = False

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise UserError(f"repeat must be at least 1, found {self.repeat}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"threads must lie in 1..1024, found {self.threads}")
        if self.compare and self.device.startswith("cuda"):
            raise UserError("the release's way is measured on the CPU only; compare with --device cpu")

    @property
    def parameters(self) -> dict[str, Any]:
        """The node's parameters that differ from their defaults."""
        given = {
            "projection.height": self.height,
            "projection.width": self.width,
            "knn.k": self.knn_k,
            "knn.search": self.knn_search,
            # the release has no other way, and the result is to be equal
            "knn.mode": "official" if self.compare else None,
        }
        device = "cpu" if self.compare else self.device
        return {"device": device, "precision": self.precision, **{n: v for n, v in given.items() if v is not None}}


def measure(options: Options) -> dict[str, Any]:
    """Measure. The keys of the result are described in docs/performance.md. Raises UserError, OperationError."""
    with ExitStack() as stack:
        stack.enter_context(leaving_on_sigterm())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sqsegv3_benchmark_"))
        scan = Path(folder) / "scan.npy"
        points, labels = made_up_street() if options.scan is None else (options.scan, options.labels)
        np.save(scan, points)
        maker = stack.enter_context(Child("maker", {}))
        model = options.model or _random_model(maker, Path(folder), options)
        common = {"scan": str(scan), "threads": options.threads}

        own = {**common, "model": str(model), "parameters": options.parameters}
        with Child("startup", own) as child:
            startup = child.ask()
        ours = stack.enter_context(Child("ours", own))
        about = ours.ask("describe")
        work = maker.ask("work", **{name: about[name] for name in ("architecture", "height", "width")})
        sgemm = stack.enter_context(Child("sgemm", {"threads": options.threads, "device": about["device"]}))
        variants = {"sgemm": sgemm, "ours": ours}
        if options.compare:
            names = ("architecture", "projection", "normalization", "knn", "classes")
            settings = {**common, **{name: about[name] for name in names}}
            variants["reference"] = stack.enter_context(Child("reference", settings))

        load_before = os.getloadavg()
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for _ in range(options.repeat):
            for name, child in variants.items():
                samples[name].append(child.ask())
        with Child("codec", {"points": CODEC_POINTS}) as codec:
            layouts = [codec.ask()["layouts"] for _ in range(options.repeat + 2)][2:]

        knn = _compare_knn(variants, Path(folder), points, labels, about, options.repeat) if options.compare else {}
        clear = Path(folder) / "clear.npy"
        np.save(clear, off_the_edges(points, about["projection"]))
        end_settings = {"folder": folder, "scan": str(clear)}
        ends = {name: variants[name].ask("finish", **end_settings) for name in variants if name != "sgemm"}
        result = summarize(about, work, samples, ends)
        result["codec"] = {
            name: {
                "decode_ms": float(np.median([sample[name][0] for sample in layouts])),
                "encode_ms": float(np.median([sample[name][1] for sample in layouts])),
            }
            for name in layouts[0]
        }
        result["startup"] = startup
        result["load_average"] = [load_before[0], os.getloadavg()[0]]
        result["scan"] = "given" if options.scan is not None else "made up"
        result["weights"] = str(options.model) if options.model else "random"
        result["repeat"] = options.repeat
        if options.compare:
            result["knn_on_true_labels"] = knn
            result["points_at_edges"] = len(points) - len(np.load(clear))
            result["equal"] = _agreement(Path(folder), ends["reference"], same_weights=options.model is None)
        return result


def summarize(
    about: Mapping[str, Any],
    work: Mapping[str, float],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    ends: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The result from what the children have said; see `measure`."""
    own, rate = samples["ours"], samples["sgemm"]
    stages = stage_statistics(own)
    cpu_per_wall = _median(s["cpu_s"] for s in rate) / _median(s["wall_ms"] for s in rate) * 1e3
    result: dict[str, Any] = {
        "stages": stages,
        "cpu_seconds": _median(s["cpu_s"] for s in own),
        "cpu_per_wall": _median(s["cpu_s"] / s["wall_ms"] * 1e3 for s in own),
        "peak_rss_mb": ends["ours"]["peak_rss_mb"],
        "gmac": work["gmac"],
        "gflops": 2e3 * work["gmac"] / stages["network"]["median_ms"],
        "sgemm_gflops": _median(s["gflops"] for s in rate),
        "sgemm_best_gflops": max(s["gflops"] for s in rate),
        "sgemm_cpu_per_wall": cpu_per_wall,
        "busy": busy(cpu_per_wall, about["threads"], str(about["device"])),
        "bytes": {
            "cloud_in": about["cloud_in_bytes"],
            "network": work["bytes"],
            "cloud_out": about["cloud_out_bytes"],
        },
        "machine": f"{_processor()}, {os.cpu_count()} cores, torch {about['torch']}",
        **{
            name: about[name]
            for name in ("model", "device", "precision", "threads", "points", "height", "width", "knn")
        },
    }
    if "reference" in samples:
        reference = stage_statistics(samples["reference"], COMPARED)
        result["reference"] = {
            "stages": reference,
            "cpu_seconds": _median(s["cpu_s"] for s in samples["reference"]),
            "cpu_per_wall": _median(s["cpu_s"] / s["wall_ms"] * 1e3 for s in samples["reference"]),
            "peak_rss_mb": ends["reference"]["peak_rss_mb"],
        }
        result["speedup"] = {
            stage: reference[stage]["median_ms"] / max(stages[stage]["median_ms"], 1e-6)
            for stage in ("project", "network", "knn")
        }
        same_part = _median(sum(s["stages"][name] for name in COMPARED) for s in own)
        result["speedup"]["total"] = reference["total"]["median_ms"] / same_part
        result["rss_ratio"] = result["peak_rss_mb"] / result["reference"]["peak_rss_mb"]
    return result


def stage_statistics(
    samples: Sequence[Mapping[str, Any]], stages: Sequence[str] = STAGES
) -> dict[str, dict[str, float]]:
    """min_ms, median_ms and p95_ms of each stage and of the whole, `total`."""
    columns = {stage: [sample["stages"][stage] for sample in samples] for stage in stages}
    columns["total"] = [sample["wall_ms"] for sample in samples]
    return {
        name: {
            "min_ms": float(min(values)),
            "median_ms": float(np.median(values)),
            "p95_ms": float(np.percentile(values, 95)),
        }
        for name, values in columns.items()
    }


def busy(cpu_per_wall: float, threads: int, device: str = "cpu") -> str | None:
    """What is wrong with the figures, in words, where other processes had the cores; None where nothing is.

    cpu_per_wall: CPU seconds a second of a product of matrices, which keeps all of its threads busy.
    """
    cores = min(threads, os.cpu_count() or threads)
    if device != "cpu" or cpu_per_wall >= QUIET_CPU_PER_WALL * cores:
        return None
    return (
        f"the machine was busy: {cpu_per_wall:.2f} CPU seconds a second of sgemm, expected at least "
        f"{QUIET_CPU_PER_WALL * cores:.2f} for {cores} thread{'s' * (cores > 1)}; "
        "times are upper bounds, CPU seconds hold"
    )


def _compare_knn(
    variants: Mapping[str, Child],
    folder: Path,
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8] | None,
    about: Mapping[str, Any],
    repeat: int,
) -> dict[str, Any]:
    """KNN of both on the scan's true labels: neighbours mostly agree there, as behind a good network."""
    if labels is None:
        return {}
    from sqsegv3_ros.benchmark.reference import project
    from sqsegv3_ros.projection import ProjectionConfig

    image = project(points, ProjectionConfig.from_dict(about["projection"]))
    np.save(folder / "label_image.npy", np.where(image.index >= 0, labels[image.index], 0).astype(np.int64))
    result = {}
    for size in KNN_SIZES:
        runs = [
            {n: variants[n].ask("vote", label_image=str(folder / "label_image.npy"), size=size) for n in _KNN_VARIANTS}
            for _ in range(repeat + 1)
        ][1:]  # the first warms up
        own, other = (_median(run[name]["wall_ms"] for run in runs) for name in _KNN_VARIANTS)
        differ = runs[0]["reference"]["labels_differ"]
        result[f"{size}/{size}"] = {
            "median_ms": own,
            "reference_median_ms": other,
            "speedup": other / own,
            "labels_differ": differ,
        }
    return result


def _random_model(maker: Child, folder: Path, options: Options) -> Path:
    path = folder / "random.pt"
    maker.ask("run", path=str(path), network=options.network, height=options.height or 64, width=options.width or 2048)
    return path


def off_the_edges(points: npt.NDArray[np.float32], projection: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The points that lie so far from their pixel's edges that every float32 arithmetic puts them into that pixel.

    What an arctangent's last bit is differs between numpy, torch and the C library, and between processors.
    """
    x, y, z = points[:, :3].astype(np.float64).T
    with np.errstate(invalid="ignore"):
        elevation = np.arcsin(z / np.sqrt(x * x + y * y + z * z))
    down, up = abs(np.radians(projection["fov_down_deg"])), abs(np.radians(projection["fov_up_deg"]))
    u = 0.5 * (1 - np.arctan2(y, x) / np.pi) * projection["width"]
    v = (1 - (elevation + down) / (up + down)) * projection["height"]
    edge = EDGE * max(1.0, projection["width"] / 2048)
    at_edge = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) < edge
    return points[~at_edge]


def _agreement(folder: Path, end: Mapping[str, Any], *, same_weights: bool) -> dict[str, Any]:
    """Whether the release's way gives the same: pixels, KNN given one label image, and the networks where they are one.

    Where the two best classes of a pixel lie within MARGIN, rounding may choose either; where two neighbours are
    equally far and one of them votes, each KNN takes one.
    """
    own, reference = np.load(folder / "ours.npz"), np.load(folder / "reference.npz")
    result = {name: end[name] for name in ("pixels_differ", "knn_labels_differ", "knn_ties_differ")}
    if same_weights:
        seen = own["range"] >= 0
        other = (own["label_image"] != reference["label_image"]) & seen
        result["classes_differ"] = int((other & reference["clear"]).sum())
        result["classes_within_margin_differ"] = int((other & ~reference["clear"]).sum())
        result["labels_differ"] = int((own["labels"] != reference["labels"]).sum())
    result["all"] = not (end["pixels_differ"] or end["knn_labels_differ"] or result.get("classes_differ"))
    return result


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _median(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.median(values)) if values else math.nan
