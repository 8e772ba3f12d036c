"""One way through: a PointCloud2 goes in, the wanted products of its labels come out, each stage timed.

No ROS in it: the messages are whatever class the input has.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.input_checks import Expected, check_input
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import find_model, load_model
from sqsegv3_ros.inference.range_image import ProjectionConfig
from sqsegv3_ros.inference.segmenter import Segmentation, Segmenter
from sqsegv3_ros.inference.settings import Settings
from sqsegv3_ros.pointcloud2 import CloudSettings, LabelledCloudWriter, decode, encode_filtered

INPUT_CHECK_PERIOD_S = 1.0


@dataclass(frozen=True)
class Result:
    """What was made of one cloud.

    clouds: messages by product, of the input's class. images: (encoding, pixels) by product: label_image 'rgb8'
    (H, W, 3) uint8 in the class colours, range_image '32FC1' (H, W) float32 metres, 0 where there is no point.
    input warnings: what about the cloud does not fit the model.
    """

    clouds: dict[str, Any]
    images: dict[str, tuple[str, npt.NDArray[Any]]]
    timings_ms: dict[str, float]
    input_warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Applied:
    """What settings mean for a model; keep: (C,) bool, the classes that the filtered cloud keeps."""

    projection: ProjectionConfig
    knn: KnnConfig
    extrinsics: Extrinsics
    keep: npt.NDArray[np.bool_]
    writer: LabelledCloudWriter
    cloud: CloudSettings


class CloudSegmenter:
    """A model with a robot's settings. Raises UserError where they cannot be used together."""

    CLOUDS: ClassVar[tuple[str, ...]] = ("points", "filtered")
    PRODUCTS: ClassVar[tuple[str, ...]] = (*CLOUDS, "label_image", "range_image")

    def __init__(self, settings: Settings, extrinsics: Extrinsics | None = None, *, warm_up: bool = True) -> None:
        model = load_model(find_model(settings["model"]), settings["model_sha256"] or None)
        self.segmenter = Segmenter(
            model,
            backend=settings["backend"],
            device=settings["device"],
            precision=settings["precision"],
            threads=settings["threads"] or None,
            cuda_graph=settings["cuda_graph"],
            projection=settings.projection(model.info),
        )
        self._tf_extrinsics = extrinsics
        self.apply(settings)
        begin = time.perf_counter()
        self._use(self._applied)
        if warm_up:  # a live node's first cloud must be as quick as the others; offline it would be labelled thrice
            self.segmenter.warm_up()
        self.warm_up_s = time.perf_counter() - begin
        self._input_warnings: tuple[str, ...] = ()
        self._input_checked_at = -INPUT_CHECK_PERIOD_S

    def apply(self, settings: Settings) -> None:
        """Take over settings with the next cloud; all of them, or, where they do not fit (UserError), none.

        Other threads may call it while a cloud is in work: one cloud has one set of settings from begin to end.
        """
        info = self.segmenter.info
        projection, knn = settings.projection(info), settings.knn(info)
        angles = (settings[f"mount.{name}_deg"] for name in ("roll", "pitch", "yaw"))
        extrinsics = self._tf_extrinsics or Extrinsics.from_angles(*angles)
        extrinsics = replace(extrinsics, height_m=settings["mount.height_m"] or extrinsics.height_m)
        keep = np.ones(len(info.labels), bool)
        keep[[info.labels.index(name) for name in settings.remove_classes]] = False
        writer = LabelledCloudWriter(info.labels.colors, settings.outputs)
        cloud_settings = settings.cloud_settings(rings_needed=projection.needs_rings)

        self._applied = _Applied(
            projection, knn, extrinsics, keep, writer, cloud_settings
        )  # at once: another thread works

    def process(self, cloud: Any, wanted: Collection[str]) -> Result:
        """Label a cloud. wanted: which of PRODUCTS to make. Raises CloudError for a cloud that cannot be used."""
        begin = time.perf_counter()
        applied = self._applied
        self._use(applied)
        decoded = decode(cloud, applied.cloud)
        decoded_at = time.perf_counter()

        segmentation = self.segmenter.segment(decoded.points, decoded.rings)

        encode_from = time.perf_counter()
        clouds, images = {}, {}
        if "points" in wanted:
            clouds["points"] = applied.writer.write(cloud, segmentation.labels, segmentation.confidences)
        if "filtered" in wanted:
            clouds["filtered"] = encode_filtered(cloud, applied.keep[segmentation.labels])
        if "label_image" in wanted:
            images["label_image"] = ("rgb8", self._label_image(segmentation))
        if "range_image" in wanted:
            images["range_image"] = ("32FC1", segmentation.image.range.clamp_min(0).cpu().numpy())
        timings = {
            "decode": 1e3 * (decoded_at - begin),
            **segmentation.timings_ms,
            "encode": 1e3 * (time.perf_counter() - encode_from),
        }
        if begin - self._input_checked_at >= INPUT_CHECK_PERIOD_S:
            self._input_warnings = check_input(
                decoded.points, decoded.rings, self._expected(), segmentation.image.index >= 0
            )
            self._input_checked_at = begin
        return Result(clouds, images, timings, self._input_warnings)

    def _use(self, applied: _Applied) -> None:
        segmenter = self.segmenter
        segmenter.projection, segmenter.knn, segmenter.extrinsics = applied.projection, applied.knn, applied.extrinsics

    def _expected(self) -> Expected:
        segmenter, info = self.segmenter, self.segmenter.info
        return Expected(segmenter.projection, info.normalization, segmenter.extrinsics, info.sensor_height_m)

    def description(self) -> dict[str, str]:
        """What runs here, for diagnostics."""
        segmenter, applied = self.segmenter, self._applied
        return {
            "model": segmenter.info.name,
            "licence": segmenter.info.licence,
            "file": str(segmenter.model.path),
            "file sha256": segmenter.model.sha256,
            "backend": segmenter.runtime.backend,
            "device": str(segmenter.runtime.device),
            "precision": segmenter.runtime.precision,
            "threads": str(segmenter.runtime.threads),
            "image": f"{applied.projection.height} x {applied.projection.width}",
            "knn": applied.knn.mode,
        }

    def release(self) -> None:
        """Let go of the device's memory."""
        import gc

        import torch

        del self.segmenter
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _label_image(self, segmentation: Segmentation) -> npt.NDArray[np.uint8]:
        colors: npt.NDArray[np.uint8] = self.segmenter.info.labels.colors
        return colors[segmentation.label_image.cpu().numpy()]
