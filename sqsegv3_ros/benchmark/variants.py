"""Settings come in, things to measure go out: this package's pipeline, the release's way, sgemm, the cloud codec.

They run in child processes (`child.py`), which is why heavy modules are imported where a variant needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros import process
from sqsegv3_ros.benchmark.child import peak_rss_mb, timed
from sqsegv3_ros.errors import UserError

STAGES = ("decode", "project", "network", "restore", "knn", "encode")
MARGIN = 1e-4  # of the two best softmax probabilities; below it rounding decides which is best
_BELONGS_TO = {"upload": "project", "download": "restore"}  # on a CPU next to nothing, and the confidences
SGEMM_SIZE = 2048


@dataclass
class PointField:
    """Stands in for sensor_msgs/PointField, so that no ROS is needed."""

    name: str = ""
    offset: int = 0
    datatype: int = 0
    count: int = 0


@dataclass
class PointCloud2:
    """Stands in for sensor_msgs/PointCloud2."""

    header: Any = None
    height: int = 0
    width: int = 0
    fields: list[PointField] = field(default_factory=list)
    is_bigendian: bool = False
    point_step: int = 0
    row_step: int = 0
    data: Any = None
    is_dense: bool = False


def make_variant(kind: str, settings: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> Any:
    """The variant of that name; every method takes the arguments of a command. answer: for those that speak unasked."""
    if kind == "peer":
        from sqsegv3_ros.benchmark.peer import Peer

        return Peer(answer=answer, **settings)
    if kind == "load":
        from sqsegv3_ros.benchmark.load import Load

        return Load(**settings)
    return _VARIANTS[kind](**settings)


class Ours:
    """The node's pipeline, from message to message, without ROS."""

    def __init__(self, scan: str, model: str, threads: int | None, parameters: dict[str, Any]) -> None:
        process.prepare()
        from sqsegv3_ros.parameters import SPECS, Settings
        from sqsegv3_ros.pipeline import Pipeline

        own = {"model": model, "threads": threads or 0, **parameters}
        self._pipeline = Pipeline(Settings({spec.name: spec.default for spec in SPECS} | own))
        self._load(scan)
        self.run()

    def _load(self, scan: str) -> None:
        from sqsegv3_ros.cloud import make_cloud

        self._scan = scan
        self._points = np.load(scan)
        self._cloud = make_cloud(self._points, PointCloud2, PointField)

    def describe(self) -> dict[str, Any]:
        """What runs: the model's own words, and how many bytes its clouds have."""
        import torch

        segmenter = self._pipeline.segmenter
        result = self._pipeline.process(self._cloud, ("points",))
        return {
            **self._pipeline.description(),
            "architecture": segmenter.info.architecture,
            "height": segmenter.projection.height,
            "width": segmenter.projection.width,
            "knn": segmenter.knn.to_dict(),
            "projection": segmenter.projection.to_dict(),
            "normalization": segmenter.info.normalization.to_dict(),
            "classes": len(segmenter.info.labels),
            "threads": segmenter.threads,
            "torch": torch.__version__,
            "points": len(self._points),
            "cloud_in_bytes": len(self._cloud.data),
            "cloud_out_bytes": len(result.clouds["points"].data),
        }

    def run(self, scan: str = "") -> dict[str, Any]:
        """Label the cloud of a scan (the last one's if none is named): milliseconds by stage."""
        if scan and scan != self._scan:
            self._load(scan)
            self._pipeline.process(self._cloud, ("points",))
        result, times = timed(lambda: self._pipeline.process(self._cloud, ("points",)))
        stages = dict.fromkeys(STAGES, 0.0)
        for name, milliseconds in result.timings_ms.items():
            stages[_BELONGS_TO.get(name, name)] += milliseconds
        return {"stages": stages, **times}

    def vote(self, label_image: str, size: int) -> dict[str, float]:
        """KNN alone, `size` neighbours of a window of that side, on given labels of the pixels."""
        import torch

        from sqsegv3_ros.knn import KnnConfig, refine
        from sqsegv3_ros.projection import project

        segmenter = self._pipeline.segmenter
        labels = torch.from_numpy(np.load(label_image)).to(segmenter.device)
        config = KnnConfig("official", size, size)
        with torch.inference_mode(), segmenter.sharing():
            image = project(torch.from_numpy(self._points).to(segmenter.device), segmenter.projection)
            return timed(lambda: refine(labels, image, config, len(segmenter.info.labels)).cpu())[1]

    def finish(self, folder: str, scan: str) -> dict[str, Any]:
        """Peak memory; the labels of a scan's points and pixels are written into the folder."""
        peak = peak_rss_mb()
        result = self._pipeline.segmenter.segment(np.load(scan))
        np.savez(
            Path(folder) / "ours.npz",
            labels=result.labels,
            label_image=result.label_image.cpu(),
            range=result.image.range.cpu(),
        )
        return {"peak_rss_mb": peak}


class Startup:
    """What a node does first: load and warm up a model, and label a cloud."""

    def __init__(self, scan: str, model: str, threads: int | None, parameters: dict[str, Any]) -> None:
        process.prepare()
        _, importing = timed(lambda: __import__("torch"))
        _, starting = timed(lambda: Ours(scan, model, threads, parameters))
        self._times = {"import_torch_s": importing["wall_ms"] / 1e3, "first_cloud_s": starting["wall_ms"] / 1e3}
        self._times["first_cloud_cpu_s"] = starting["cpu_s"]

    def run(self) -> dict[str, Any]:
        """Seconds for torch, and from then on to the first labelled cloud."""
        return self._times


class Reference:
    """The release's way, with the system's default malloc and OpenMP, on the CPU."""

    def __init__(
        self,
        scan: str,
        architecture: dict[str, Any],
        threads: int | None,
        projection: dict[str, Any],
        normalization: dict[str, Any],
        knn: dict[str, Any],
        classes: int,
    ) -> None:
        import torch

        from sqsegv3_ros.benchmark.networks import random_network
        from sqsegv3_ros.benchmark.reference import ReferenceSegmenter
        from sqsegv3_ros.knn import KnnConfig
        from sqsegv3_ros.network.config import NetworkConfig
        from sqsegv3_ros.projection import Normalization, ProjectionConfig

        if threads:
            torch.set_num_threads(threads)
        self._segmenter = ReferenceSegmenter(
            random_network(NetworkConfig.from_dict(architecture)),
            ProjectionConfig.from_dict(projection),
            Normalization.from_dict(normalization),
            KnnConfig.from_dict(knn),
            classes,
        )
        points = np.load(scan)
        usable = np.isfinite(points).all(1) & (np.abs(points[:, :3]).max(1) > 0)
        if not usable.all():
            raise UserError(
                f"{len(points) - int(usable.sum())} points of the scan are NaN, infinite or at the origin, which the "
                "release cannot project; compare with another scan"
            )
        self._points = points
        self.run()

    def run(self) -> dict[str, Any]:
        """Label the scan: milliseconds by stage."""
        (_, _, stages), times = timed(lambda: self._segmenter.segment(self._points))
        return {"stages": stages, **times}

    def vote(self, label_image: str, size: int) -> dict[str, Any]:
        """KNN alone, as `Ours.vote`; and how many labels this package's KNN gives otherwise."""
        import torch

        from sqsegv3_ros.benchmark import reference
        from sqsegv3_ros.knn import KnnConfig, refine
        from sqsegv3_ros.projection import project

        segmenter = self._segmenter
        labels, config = torch.from_numpy(np.load(label_image)), KnnConfig("official", size, size)
        with torch.inference_mode():
            image = reference.project(self._points, segmenter.projection)
            voted, times = timed(lambda: reference.vote(labels, image, config, segmenter.num_classes))
            own = refine(
                labels, project(torch.from_numpy(self._points), segmenter.projection), config, segmenter.num_classes
            )
        return {**times, "labels_differ": int((own != voted).sum())}

    def finish(self, folder: str, scan: str) -> dict[str, Any]:
        """Peak memory, and how far this package's projection and KNN agree, given the same; the rest is written."""
        import torch

        from sqsegv3_ros.benchmark import reference
        from sqsegv3_ros.knn import refine
        from sqsegv3_ros.projection import project

        peak = peak_rss_mb()
        segmenter, points = self._segmenter, np.load(scan)
        labels, label_image, _ = segmenter.segment(points)
        image = reference.project(points, segmenter.projection)
        own_image = project(torch.from_numpy(points), segmenter.projection)
        own_labels = refine(label_image, own_image, segmenter.knn, segmenter.num_classes)
        differ = own_labels != torch.as_tensor(labels)
        tied = reference.tied(image, segmenter.knn) if bool(differ.any()) else torch.zeros_like(differ)
        with torch.no_grad():
            network_input = reference.normalize(image, segmenter.normalization, segmenter.projection.official_mask)
            best = segmenter.network(network_input)[0].softmax(1)[0].topk(2, 0).values
        np.savez(
            Path(folder) / "reference.npz", labels=labels, label_image=label_image, clear=(best[0] - best[1]) > MARGIN
        )
        return {
            "peak_rss_mb": peak,
            "pixels_differ": int((own_image.range.numpy() != image.range).sum()),
            "knn_labels_differ": int((differ & ~tied).sum()),
            "knn_ties_differ": int((differ & tied).sum()),
        }


class Sgemm:
    """The product of two square float32 matrices: what the machine can do at most."""

    def __init__(self, threads: int | None, device: str) -> None:
        process.prepare()
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._cuda = device.startswith("cuda")
        self._matrices = [torch.randn(SGEMM_SIZE, SGEMM_SIZE, device=device) for _ in range(3)]
        self.run()

    def run(self) -> dict[str, Any]:
        """Multiply: GFLOP/s."""
        _, times = timed(self._multiply)
        return {"gflops": 2 * SGEMM_SIZE**3 / times["wall_ms"] / 1e6, **times}

    def _multiply(self) -> None:
        import torch

        a, b, out = self._matrices
        torch.mm(a, b, out=out)
        if self._cuda:
            torch.cuda.synchronize()


class Codec:
    """Reading clouds of all usual layouts and writing the labelled ones."""

    def __init__(self, points: int) -> None:
        process.prepare()
        from sqsegv3_ros.cloud import make_cloud
        from sqsegv3_ros.labels import SEMANTIC_KITTI

        generator = np.random.default_rng(0)
        self._colors = SEMANTIC_KITTI.colors
        self._labels = generator.integers(0, len(self._colors), points).astype(np.uint8)
        self._confidences = generator.random(points, np.float32)
        values = generator.normal(0, 10, (points, 4)).astype(np.float32)
        self._clouds = {
            name: make_cloud(_filled(dtype, values, shape), PointCloud2, PointField)
            for name, (dtype, shape) in _layouts(points).items()
        }

    def run(self) -> dict[str, Any]:
        """Milliseconds of decoding and encoding by layout."""
        from sqsegv3_ros.cloud import LabelledCloudWriter, decode

        writer = LabelledCloudWriter(self._colors)
        result = {}
        for name, cloud in self._clouds.items():
            _, reading = timed(lambda cloud=cloud: decode(cloud))  # type: ignore[misc]
            _, writing = timed(lambda cloud=cloud: writer.write(cloud, self._labels, self._confidences))  # type: ignore[misc]
            result[name] = [reading["wall_ms"], writing["wall_ms"]]
        return {"layouts": result}


def _layouts(points: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Layouts of points as sensors and drivers give them, and the shape of the cloud."""
    flat, rows = (points,), (points // 1000, 1000)
    xyz = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    padded = {"names": ["x", "y", "z", "intensity", "ring", "time"], "formats": ["<f4"] * 4 + ["<u2", "<f4"]}
    return {
        "16 B: x y z intensity": ([*xyz, ("intensity", "<f4")], flat),
        "22 B: velodyne, packed": ([*xyz, ("intensity", "<f4"), ("ring", "<u2"), ("time", "<f4")], flat),
        "32 B: velodyne, PCL padding": ({**padded, "offsets": [0, 4, 8, 16, 20, 24], "itemsize": 32}, flat),
        "32 B: organised": ({**padded, "offsets": [0, 4, 8, 16, 20, 24], "itemsize": 32}, rows),
        "16 B: big-endian": ([(name, ">f4") for name in ("x", "y", "z", "intensity")], flat),
        "28 B: float64 x y z": ([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("intensity", "<f4")], flat),
        "15 B: intensity uint8, ring uint16": ([*xyz, ("intensity", "u1"), ("ring", "<u2")], flat),
    }


def _filled(layout: Any, values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = np.dtype(layout)
    cloud = np.zeros(len(values), dtype)
    for column, name in enumerate(("x", "y", "z", "intensity")):
        cloud[name] = np.abs(values[:, column]) if name == "intensity" else values[:, column]
    return cloud[: int(np.prod(shape))].reshape(shape)


class Maker:
    """Writes model files with random weights."""

    def run(self, path: str, network: str, height: int, width: int) -> dict[str, Any]:
        """Write one."""
        from sqsegv3_ros.benchmark.networks import network_config, write_random_model

        write_random_model(Path(path), network_config(network), height, width)
        return {}

    def work(self, architecture: dict[str, Any], height: int, width: int) -> dict[str, Any]:
        """What a network of that architecture has to do for one image."""
        from sqsegv3_ros.benchmark.networks import count_work
        from sqsegv3_ros.network.config import NetworkConfig

        work = count_work(NetworkConfig.from_dict(architecture), height, width)
        return {"gmac": work.macs / 1e9, "gmac_all_heads": work.macs_all_heads / 1e9, "bytes": work.bytes}


_VARIANTS: dict[str, Callable[..., Any]] = {
    "ours": Ours,
    "startup": Startup,
    "reference": Reference,
    "sgemm": Sgemm,
    "codec": Codec,
    "maker": Maker,
}
