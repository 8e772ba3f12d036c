# SPDX-License-Identifier: Apache-2.0
"""What the benchmark measures: this package's pipeline, the reference implementation, other runtimes.

Each runs in a child process (`child.py`), so heavy modules are imported where a variant needs them. Every variant has
`run`, which labels one scan, and `finish`, which reports peak memory and writes the label image of a given input.
`Maker` is not a variant: it prepares their files in a child process, so that the parent does not import torch.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros import process
from sqsegv3_ros.benchmark.messages import PointCloud2, PointField
from sqsegv3_ros.benchmark.stages import TABLE_STAGES, peak_rss_mb, timed
from sqsegv3_ros.errors import OperationError, missing_package

MARGIN = 1e-4
"""If the two best softmax probabilities of a pixel are closer than this, rounding decides which is best."""
_BELONGS_TO = {"upload": "project", "download": "classify", "sweeps": "knn"}


class Pipeline:
    """This package's pipeline, from message to message, without ROS."""

    def __init__(self, scan: str, model: str, parameters: dict[str, Any]) -> None:
        process.prepare()
        _, importing = timed(lambda: __import__("torch"))
        _, starting = timed(lambda: self._start(scan, {"model": model, **parameters}))
        self._startup = {
            "import_torch_s": importing["wall_ms"] / 1e3,
            "first_cloud_s": starting["wall_ms"] / 1e3,
            "first_cloud_cpu_s": starting["cpu_s"],
        }

    def _start(self, scan: str, parameters: dict[str, Any]) -> None:
        from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
        from sqsegv3_ros.pointcloud2 import make_cloud

        self._cloud_segmenter = CloudSegmenter.from_parameters(parameters)
        self._points = np.load(scan)
        self._cloud = make_cloud(self._points, PointCloud2, PointField)
        self.run()

    def describe(self) -> dict[str, Any]:
        """What runs: model, settings and runtime as resolved, seconds of the start, and sizes."""
        import torch

        segmenter = self._cloud_segmenter.segmenter
        runtime, info = segmenter.runtime, segmenter.info
        result = self._cloud_segmenter.process(self._cloud, ("points",))
        return {
            "model": info.name,
            "weights_dtype": info.weights_dtype,
            "backend": runtime.backend,
            "device": str(runtime.device),
            "precision": runtime.precision,
            "threads": runtime.threads,
            "cuda_graph": runtime.cuda_graph,
            "average_mirrored": segmenter.average_mirrored,
            "architecture": info.architecture,
            "height": segmenter.projection.height,
            "width": segmenter.projection.width,
            "knn": segmenter.knn.to_dict(),
            "projection": segmenter.projection.to_dict(),
            "normalization": info.normalization.to_dict(),
            "classes": len(info.labels),
            "torch": torch.__version__,
            "points": len(self._points),
            "cloud_in_bytes": len(self._cloud.data),
            "cloud_out_bytes": len(result.clouds["points"].data),
            "startup": self._startup,
        }

    def run(self) -> dict[str, Any]:
        """Label the cloud: milliseconds by stage."""
        result, times = timed(lambda: self._cloud_segmenter.process(self._cloud, ("points",)))
        stages = dict.fromkeys(TABLE_STAGES, 0.0)
        for name, milliseconds in result.timings_ms.items():
            stages[_BELONGS_TO.get(name, name)] += milliseconds
        return {"stages": stages, **times}

    def vote(self, label_image: str, size: int) -> dict[str, float]:
        """KNN alone on given labels of the pixels: `size` neighbours in a window of that side."""
        import torch

        from sqsegv3_ros.inference.knn import KnnConfig, refine
        from sqsegv3_ros.inference.range_image import project

        segmenter = self._cloud_segmenter.segmenter
        device, threads = segmenter.runtime.device, segmenter.runtime.threads
        labels = torch.from_numpy(np.load(label_image)).to(device)
        config, classes = KnnConfig("official", size, size), len(segmenter.info.labels)
        with torch.inference_mode():
            image = project(torch.from_numpy(self._points).to(device), segmenter.projection)
            return timed(lambda: refine(labels, image, config, classes, threads=threads).cpu())[1]

    def finish(self, folder: str, scan: str) -> dict[str, Any]:
        """Peak memory; writes labels and label image of `scan`."""
        peak = peak_rss_mb()
        result = self._cloud_segmenter.segmenter.segment(np.load(scan))
        _write(folder, "ours", label_image=result.label_image.cpu().numpy(), labels=result.labels)
        return {"peak_rss_mb": peak}


class Reference:
    """The reference implementation on the CPU, with the system's default malloc and OpenMP."""

    def __init__(
        self,
        scan: str,
        model: str,
        threads: int,
        projection: dict[str, Any],
        normalization: dict[str, Any],
        knn: dict[str, Any],
        classes: int,
    ) -> None:
        import torch

        from sqsegv3_ros.benchmark.networks import training_model
        from sqsegv3_ros.benchmark.reference import ReferenceSegmenter
        from sqsegv3_ros.inference.knn import KnnConfig
        from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig

        torch.set_num_threads(threads)
        self._segmenter = ReferenceSegmenter(
            training_model(Path(model)),
            ProjectionConfig.from_dict(projection),
            Normalization.from_dict(normalization),
            KnnConfig.from_dict(knn),
            classes,
        )
        self._points = np.load(scan)
        self.run()

    def run(self) -> dict[str, Any]:
        """Label the scan: milliseconds by stage."""
        (_, _, stages), times = timed(lambda: self._segmenter.segment(self._points))
        return {"stages": stages, **times}

    def vote(self, label_image: str, size: int) -> dict[str, Any]:
        """KNN alone, as `Pipeline.vote`; and how many labels of this package's KNN differ."""
        import torch

        from sqsegv3_ros.benchmark import reference
        from sqsegv3_ros.inference.knn import KnnConfig, refine
        from sqsegv3_ros.inference.range_image import project

        projection, classes = self._segmenter.projection, self._segmenter.num_classes
        labels, config = torch.from_numpy(np.load(label_image)), KnnConfig("official", size, size)
        with torch.inference_mode():
            image = reference.project(self._points, projection)
            voted, times = timed(lambda: reference.vote(labels, image, config, classes))
            own = refine(labels, project(torch.from_numpy(self._points), projection), config, classes)
        return {**times, "labels_differ": int((own != voted).sum())}

    def finish(self, folder: str, scan: str) -> dict[str, Any]:
        """Peak memory, and differences of our projection and KNN on the same input; writes labels of `scan`."""
        import torch

        from sqsegv3_ros.benchmark import reference
        from sqsegv3_ros.inference.knn import refine
        from sqsegv3_ros.inference.range_image import project

        peak = peak_rss_mb()
        segmenter, points = self._segmenter, np.load(scan)
        labels, label_image, _ = segmenter.segment(points)
        _write(folder, "reference", label_image=label_image.numpy(), labels=labels)
        image = reference.project(points, segmenter.projection)
        own_image = project(torch.from_numpy(points), segmenter.projection)
        own_labels = refine(label_image, own_image, segmenter.knn, segmenter.num_classes)
        differ = own_labels != torch.as_tensor(labels)
        tied = reference.tied(image, segmenter.knn) if bool(differ.any()) else torch.zeros_like(differ)
        return {
            "peak_rss_mb": peak,
            "pixels_differ": int((own_image.range.numpy() != image.range).sum()),
            "knn_labels_differ": int((differ & ~tied).sum()),
            "knn_ties_differ": int((differ & tied).sum()),
        }


class _Runtime(ABC):
    """A runtime that runs the network alone, on one normalised image."""

    name = ""
    precision = "fp32"

    def __init__(self, image: str) -> None:
        self._image: npt.NDArray[np.float32] = np.load(image)
        self.run()
        self.run()  # the first one also allocates

    @abstractmethod
    def infer(self) -> npt.NDArray[np.float32]:
        """Logits (1, C, H, W) of the image."""

    def run(self) -> dict[str, Any]:
        """Run the network: milliseconds."""
        _, times = timed(self.infer)
        return {"stages": {"network": times["wall_ms"]}, **times}

    def finish(self, folder: str, scan: str) -> dict[str, Any]:
        """Peak memory, and the precision in force; writes the label image of its own image, which is that of `scan`."""
        peak = peak_rss_mb()
        _write(folder, self.name, label_image=self.infer()[0].argmax(0))
        return {"peak_rss_mb": peak, "precision": self.precision}


class OnnxRuntime(_Runtime):
    """ONNX Runtime on the exported ONNX file."""

    name = "onnxruntime"

    def __init__(self, onnx: str, image: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("onnxruntime", "comparing with ONNX Runtime", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        super().__init__(image)

    def infer(self) -> npt.NDArray[np.float32]:
        """Logits (1, C, H, W) of the image."""
        logits: npt.NDArray[np.float32] = self._session.run(None, {"image": self._image})[0]
        return logits


class OpenVino(_Runtime):
    """OpenVINO on the exported ONNX file, compiled with the settings of this package's backend.

    The parent passes its settings and type names: importing the backend would load torch, which would count towards
    OpenVINO's peak memory.
    """

    name = "openvino"

    def __init__(self, onnx: str, image: str, settings: dict[str, Any], types: dict[str, str]) -> None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # or the import sends usage statistics
        try:
            import openvino
        except ImportError as error:
            raise missing_package("openvino", "comparing with OpenVINO") from error
        core = openvino.Core()
        model = core.read_model(onnx)
        model.reshape(list(np.load(image, mmap_mode="r").shape))  # a fixed batch size is quicker
        compiled = core.compile_model(model, "CPU", settings)
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = {kind: name for name, kind in types.items()}[found]
        self._request = compiled.create_infer_request()
        super().__init__(image)

    def infer(self) -> npt.NDArray[np.float32]:
        """Logits (1, C, H, W) of the image."""
        logits: npt.NDArray[np.float32] = self._request.infer([self._image], share_inputs=True, share_outputs=True)[0]
        return logits


class Maker:
    """Prepares the variants: writes model files, ONNX files and expected label images, and counts work."""

    def run(self, path: str, network: str, height: int, width: int) -> dict[str, Any]:
        """Write a model file with random weights."""
        from sqsegv3_ros.benchmark.networks import network_config, write_random_model

        write_random_model(Path(path), network_config(network), height, width)
        return {}

    def onnx(self, model: str, path: str, height: int, width: int) -> dict[str, Any]:
        """Write an ONNX file with the weights of a model file."""
        from sqsegv3_ros.benchmark.networks import write_onnx

        write_onnx(Path(model), Path(path), height, width)
        return {}

    def expect(self, model: str, image: str, folder: str) -> dict[str, Any]:
        """Write the label image of the reference network in fp32, and which of its pixels rounding cannot change."""
        import torch

        from sqsegv3_ros.benchmark.networks import training_model

        with torch.inference_mode():
            probabilities = training_model(Path(model))(torch.from_numpy(np.load(image)))[0][0].softmax(0)
        if not bool(probabilities.isfinite().all()):
            raise OperationError(f"the network of {model} outputs non-finite probabilities")
        best = probabilities.topk(2, 0).values
        label_image = probabilities.argmax(0).numpy()
        _write(folder, "expected", label_image=label_image, clear=(best[0] - best[1] > MARGIN).numpy())
        return {}

    def work(self, architecture: dict[str, Any], height: int, width: int) -> dict[str, Any]:
        """Multiply-accumulates and bytes moved by a network for one image."""
        from sqsegv3_ros.benchmark.work import count
        from sqsegv3_ros.network.config import NetworkConfig

        work = count(NetworkConfig.from_dict(architecture), height, width, heads=1)
        return {"gmac": work.macs / 1e9, "bytes": work.bytes}


def _write(folder: str, name: str, **arrays: Any) -> None:
    np.savez(Path(folder) / f"{name}.npz", **arrays)
