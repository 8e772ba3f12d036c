# SPDX-License-Identifier: Apache-2.0
"""The benchmark of one scan: time by stage, memory and work, beside the reference implementation and other runtimes."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.benchmark.child import Child, leaving_on_sigterm
from sqsegv3_ros.benchmark.networks import NAMES
from sqsegv3_ros.benchmark.scene import synthetic_scene
from sqsegv3_ros.benchmark.stages import COMPARED, OtherWork, median, stage_statistics
from sqsegv3_ros.errors import UserError

COMPARABLE = {
    "reference": "benchmark.variants.Reference",
    "onnxruntime": "benchmark.variants.OnnxRuntime",
    "openvino": "benchmark.variants.OpenVino",
}
CODEC_POINTS = 130_000
EDGE = 1e-3  # pixels at 2048 columns, in proportion at more; float32 positions are right to half of it
KNN_SIZES = (5, 7)  # RangeNet++'s and the release's: as many neighbours as the window has columns
_ABOUT = (
    *("model", "backend", "device", "precision", "threads", "cuda_graph", "average_mirrored"),
    *("points", "height", "width", "knn"),
)
_ABOUT_REFERENCE = ("threads", "projection", "normalization", "knn", "classes")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        model: Model file; None: random weights of `network`.
        network: Name of a network, see networks.py.
        scan: (N, 4) float32 x, y, z in metres, remission; None: a synthetic scene.
        labels: (N,) true labels of the scan, on which KNN is compared; None: unknown.
        height: Rows of the image; None: the model's own.
        width: Columns of the image; None: the model's own.
        knn_k: Neighbours that vote; None: the model's own.
        knn_search: KNN window size in pixels; None: the model's own.
        backend: 'auto', 'torch' or 'openvino'.
        device: 'auto', 'cuda', 'cuda:N' or 'cpu'.
        precision: 'auto', 'fp32', 'fp16' or 'bf16'.
        threads: CPU threads; None: one per core.
        cuda_graph: Record the network's kernels once and replay them.
        average_mirrored: Run the network on the mirrored image, too.
        repeat: Scans to measure.
        compare: Which of COMPARABLE are measured too.
    """

    model: Path | None = None
    network: str = NAMES[0]
    scan: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.uint8] | None = None
    height: int | None = None
    width: int | None = None
    knn_k: int | None = None
    knn_search: int | None = None
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    cuda_graph: bool = False
    average_mirrored: bool = False
    repeat: int = 10
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise UserError(f"repeat must be at least 1, found {self.repeat}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"threads must be in 1..1024, found {self.threads}")
        unknown = [name for name in self.compare if name not in COMPARABLE]
        if unknown:
            raise UserError(f"compare takes any of {', '.join(COMPARABLE)}, found '{', '.join(unknown)}'")
        if self.compare and self.device.startswith("cuda"):
            raise UserError("comparisons run on the CPU; use --device cpu")
        if self.compare and self.average_mirrored:
            raise UserError("the others run on the image alone; omit --compare or --average-mirrored")

    @property
    def parameters(self) -> dict[str, Any]:
        """Node parameters that differ from their defaults."""
        given = {
            "projection.height": self.height,
            "projection.width": self.width,
            "knn.k": self.knn_k,
            "knn.search": self.knn_search,
            # the reference has no other mode, and the results must be equal
            "knn.mode": "official" if "reference" in self.compare else None,
        }
        return {
            "backend": self.backend,
            "device": "cpu" if self.compare else self.device,
            "precision": self.precision,
            "threads": self.threads or 0,
            "cuda_graph": self.cuda_graph,
            "average_mirrored": self.average_mirrored,
            **{name: value for name, value in given.items() if value is not None},
        }


def measure(options: Options) -> dict[str, Any]:
    """Measure; docs/performance.md describes the keys of the result. Raises UserError, OperationError."""
    with (
        leaving_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="sqsegv3_benchmark_") as folder,
        OtherWork() as others,
    ):
        load_before = os.getloadavg()[0]
        result = _measure(options, Path(folder))
        result["load_average"] = [load_before, os.getloadavg()[0]]
    result["other_cores"] = others.cores
    result["busy"] = others.busy(result["threads"], result["device"])
    return result


def _measure(options: Options, folder: Path) -> dict[str, Any]:
    points, labels = synthetic_scene() if options.scan is None else (options.scan, options.labels)
    scan, clear_scan = folder / "scan.npy", folder / "clear.npy"
    np.save(scan, points)
    with ExitStack() as stack:
        maker = stack.enter_context(Child("benchmark.variants.Maker", {}))
        model = options.model or folder / "random.pt"
        if options.model is None:
            height, width = options.height or 64, options.width or 2048
            maker.ask(path=str(model), network=options.network, height=height, width=width)
        settings = {"scan": str(scan), "model": str(model)}
        children = {
            "ours": stack.enter_context(
                Child("benchmark.variants.Pipeline", {**settings, "parameters": options.parameters})
            )
        }
        about = children["ours"].ask("describe")
        work = maker.ask("work", **{name: about[name] for name in ("architecture", "height", "width")})
        clear_points = off_the_edges(points, about["projection"])
        np.save(clear_scan, clear_points)
        if options.compare:
            filled = _write_image(points, clear_points, about, folder)
            network = {"image": str(folder / "image.npy"), "onnx": str(folder / "model.onnx")}
            from sqsegv3_ros.inference.backends import OPENVINO_TYPES, openvino_settings

            maker.ask("expect", model=str(model), image=network["image"], folder=str(folder))
            if set(options.compare) & {"onnxruntime", "openvino"}:
                height, width = about["height"], about["width"]
                maker.ask("onnx", model=str(model), path=network["onnx"], height=height, width=width)
            settings_of = {
                "reference": {**settings, **{name: about[name] for name in _ABOUT_REFERENCE}},
                "onnxruntime": {**network, "threads": about["threads"]},
                "openvino": {
                    **network,
                    "settings": openvino_settings(about["threads"], about["precision"]),
                    "types": OPENVINO_TYPES,
                },
            }
            for name in options.compare:
                children[name] = stack.enter_context(Child(COMPARABLE[name], settings_of[name]))

        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in children}
        for _ in range(options.repeat):
            for name, child in children.items():
                samples[name].append(child.ask())
        ends = {name: child.ask("finish", folder=str(folder), scan=str(clear_scan)) for name, child in children.items()}
        knn = {}
        if "reference" in options.compare and labels is not None:
            knn = _compare_knn(children, folder, points, labels, about, options.repeat)
    with Child("benchmark.codec.Codec", {"points": CODEC_POINTS}) as codec:
        layouts = [codec.ask()["layouts"] for _ in range(options.repeat + 2)][2:]

    result = summarize(about, work, samples, ends)
    result["codec"] = {
        name: {
            f"{what}_ms": median([sample[name][column] for sample in layouts])
            for column, what in enumerate(("decode", "encode"))
        }
        for name in layouts[0]
    }
    result["scan"] = "synthetic" if options.scan is None else "given"
    result["weights"] = str(options.model) if options.model else "random"
    result["repeat"] = options.repeat
    if options.compare:
        exact = about["precision"] == "fp32" and about["weights_dtype"] == "float32"
        result["equal"] = _agreement(folder, filled, result["variants"], ends, exact=exact)
        result["points_at_edges"] = len(points) - len(clear_points)
    if "reference" in options.compare:
        result["knn_on_true_labels"] = knn
    return result


def summarize(
    about: Mapping[str, Any],
    work: Mapping[str, float],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    ends: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The result from the answers of the children; see `measure`."""
    own = samples["ours"]
    stages = stage_statistics(own)
    passes = 2 if about["average_mirrored"] else 1
    gmac = passes * work["gmac"]
    result: dict[str, Any] = {
        "stages": stages,
        "cpu_seconds": median([s["cpu_s"] for s in own]),
        "cpu_per_wall": _cpu_per_wall(own),
        "peak_rss_mb": ends["ours"]["peak_rss_mb"],
        "gmac": gmac,
        "gflops": 2e3 * gmac / stages["network"]["median_ms"],
        "bytes": {
            "cloud_in": about["cloud_in_bytes"],
            "network": passes * work["bytes"],
            "cloud_out": about["cloud_out_bytes"],
        },
        "machine": f"{_processor()}, {os.cpu_count()} cores, torch {about['torch']}",
        "startup": about["startup"],
        **{name: about[name] for name in _ABOUT},
        "variants": {
            name: {
                "network_ms": median([s["stages"]["network"] for s in samples[name]]),
                "peak_rss_mb": ends[name]["peak_rss_mb"],
                "precision": about["precision"] if name == "ours" else ends[name].get("precision", "fp32"),
                "cpu_per_wall": _cpu_per_wall(samples[name]),
            }
            for name in samples
        },
    }
    if "reference" in samples:
        reference = stage_statistics(samples["reference"], COMPARED)
        result["reference"] = {
            "stages": reference,
            "cpu_seconds": median([s["cpu_s"] for s in samples["reference"]]),
            "cpu_per_wall": _cpu_per_wall(samples["reference"]),
            "peak_rss_mb": ends["reference"]["peak_rss_mb"],
        }
        result["speedup"] = {
            stage: reference[stage]["median_ms"] / max(stages[stage]["median_ms"], 1e-6)
            for stage in ("project", "network", "knn")
        }
        same_part = median([sum(s["stages"][name] for name in COMPARED) for s in own])
        result["speedup"]["total"] = reference["total"]["median_ms"] / same_part
        result["rss_ratio"] = result["peak_rss_mb"] / result["reference"]["peak_rss_mb"]
    return result


def _cpu_per_wall(samples: Sequence[Mapping[str, Any]]) -> float:
    return median([1e3 * s["cpu_s"] / s["wall_ms"] for s in samples])


def _write_image(
    points: npt.NDArray[np.float32],
    clear_points: npt.NDArray[np.float32],
    about: Mapping[str, Any],
    folder: Path,
) -> npt.NDArray[np.bool_]:
    """Write the reference's normalised image of `clear_points`. Returns (H, W): pixels with a point."""
    from sqsegv3_ros.benchmark import reference
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig

    unusable = int((~np.isfinite(points).all(1) | (np.abs(points[:, :3]).max(1) == 0)).sum())
    if unusable:
        raise UserError(
            f"{unusable} points of the scan are NaN, infinite or at the origin, which the reference implementation "
            "cannot project; compare on another scan"
        )
    projection = ProjectionConfig.from_dict(about["projection"])
    image = reference.project(clear_points, projection)
    normalization = Normalization.from_dict(about["normalization"])
    np.save(folder / "image.npy", reference.normalize(image, normalization, projection.official_mask).numpy())
    return image.index >= 0


def _compare_knn(
    children: Mapping[str, Child],
    folder: Path,
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    about: Mapping[str, Any],
    repeat: int,
) -> dict[str, Any]:
    """KNN of both on the scan's true labels: neighbours mostly agree there, as they do after a good network."""
    from sqsegv3_ros.benchmark.reference import project
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    image = project(points, ProjectionConfig.from_dict(about["projection"]))
    label_image = folder / "label_image.npy"
    np.save(label_image, np.where(image.index >= 0, labels[image.index], 0).astype(np.int64))
    result = {}
    for size in KNN_SIZES:
        runs = [
            [children[name].ask("vote", label_image=str(label_image), size=size) for name in ("ours", "reference")]
            for _ in range(repeat + 1)
        ]
        own, other = (median([run[i]["wall_ms"] for run in runs[1:]]) for i in range(2))  # the first run warms up
        result[f"{size}/{size}"] = {
            "median_ms": own,
            "reference_median_ms": other,
            "speedup": other / own,
            "labels_differ": runs[0][1]["labels_differ"],
        }
    return result


def off_the_edges(points: npt.NDArray[np.float32], projection: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The points far enough from their pixel's edges that float32 rounding cannot move them to another pixel.

    The last bit of an arctangent differs between numpy, torch and the C library, and between processors.
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


def _agreement(
    folder: Path,
    filled: npt.NDArray[np.bool_],
    variants: Mapping[str, dict[str, Any]],
    ends: Mapping[str, Mapping[str, Any]],
    *,
    exact: bool,
) -> dict[str, Any]:
    """Whether this package's results equal those of the reference implementation; sets `labels_equal` of the variants.

    labels_equal is the share of the pixels with a point whose label is that of the reference network in fp32.

    Args:
        folder: Where the variants wrote their label images.
        filled: (H, W), pixels that hold a point.
        variants: Entries to add `labels_equal` to.
        ends: The variants' last answers.
        exact: Whether labels may differ by rounding alone: fp32, and weights not stored in fp16.

    Returns:
        Counts of pixels, KNN labels (given one label image) and classes that differ; `all`: whether none does that
        must not. If the two best classes of a pixel are closer than MARGIN, or one of two equally far neighbours
        votes, either result is right.
    """
    expected = np.load(folder / "expected.npz")
    labelled = {name: np.load(folder / f"{name}.npz") for name in variants}
    differ = {name: (found["label_image"] != expected["label_image"])[filled] for name, found in labelled.items()}
    for name, variant in variants.items():
        variant["labels_equal"] = 1 - float(differ[name].mean())
    clear = expected["clear"][filled]
    counts = {
        "classes_differ": int((differ["ours"] & clear).sum()),
        "classes_within_margin_differ": int((differ["ours"] & ~clear).sum()),
    }
    must_not = ["classes_differ"] if exact else []
    if "reference" in variants:
        for name in ("pixels_differ", "knn_labels_differ", "knn_ties_differ"):
            counts[name] = ends["reference"][name]
        counts["labels_differ"] = int((labelled["ours"]["labels"] != labelled["reference"]["labels"]).sum())
        must_not += ["pixels_differ", "knn_labels_differ"]
    return {**counts, "exact": exact, "all": not any(counts[name] for name in must_not)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
