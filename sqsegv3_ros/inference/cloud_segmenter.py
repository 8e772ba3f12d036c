# SPDX-License-Identifier: Apache-2.0
"""The cloud segmenter: a PointCloud2 message -> labelled clouds and images, each stage timed.

No ROS in it: the messages it makes are of the class of its input.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.input_checks import Expected, check_input
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import ModelFile, find_model, load_model
from sqsegv3_ros.inference.point_filter import PointFilter
from sqsegv3_ros.inference.range_image import ProjectionConfig
from sqsegv3_ros.inference.segmenter import Segmentation, Segmenter
from sqsegv3_ros.inference.settings import DEFAULTS, FILTERS, Settings
from sqsegv3_ros.inference.sweeps import Pose, SweepVote
from sqsegv3_ros.pointcloud2 import CloudSettings, DecodedCloud, LabelledCloudWriter, decode, encode_filtered, stamp_ns

INPUT_CHECK_PERIOD_S = 1.0

PoseSource = Callable[[Any], Pose]
"""The sensor's pose in a fixed frame at the time of a cloud's header. Raises UserError if it is not known."""


@dataclass(frozen=True)
class Result:
    """The products of one cloud.

    Attributes:
        clouds: Messages by product, of the input's class. A filtered cloud is missing if its height band cannot be
            applied, as a warning says.
        images: (encoding, pixels) by product: label_image is 'rgb8', (H, W, 3) uint8 in class colours; range_image is
            '32FC1', (H, W) float32 in metres, 0 in empty pixels; entropy_image is '32FC1', (H, W) float32 from 0
            (certain) to 1, NaN in empty pixels.
        timings_ms: Milliseconds by stage, all of `STAGES` but publish.
        input_warnings: What about the clouds, or their transform, does not fit the model or the settings.
        segmentation: Labels and confidences of the points.
    """

    clouds: dict[str, Any]
    images: dict[str, tuple[str, npt.NDArray[Any]]]
    timings_ms: dict[str, float]
    input_warnings: tuple[str, ...]
    segmentation: Segmentation


@dataclass(frozen=True)
class _Applied:
    """Settings as applied to a model."""

    projection: ProjectionConfig
    knn: KnnConfig
    extrinsics: Extrinsics
    filters: Mapping[str, PointFilter]
    writer: LabelledCloudWriter
    cloud: CloudSettings


def read_model(settings: Settings) -> ModelFile:
    """Load the model that the settings name. Raises UserError if it cannot be used."""
    return load_model(find_model(settings["model"]), settings["model_sha256"] or None)


@dataclass(frozen=True)
class SweepSource:
    """Where the poses for the vote of several sweeps are: a frame that does not move, and an odometry topic or ''."""

    fixed_frame: str
    odometry_topic: str


class CloudSegmenter:
    """A model with a robot's settings, ready to label clouds one after another.

    Attributes:
        segmenter: Labels the points.
        sweeps: Where the poses of `process` come from; None if one sweep gives the labels.
    """

    CLOUDS: ClassVar[tuple[str, ...]] = ("points", *FILTERS)
    PRODUCTS: ClassVar[tuple[str, ...]] = (*CLOUDS, "label_image", "range_image", "entropy_image")

    def __init__(self, model: ModelFile, settings: Settings, *, warm_up: bool = True) -> None:
        """Make the model ready to run with the settings.

        Args:
            model: The model, as `read_model` loads it.
            settings: Values of all parameters, see `Settings.for_model`.
            warm_up: Run synthetic scans, so that a live node's first cloud is as quick as the others.

        Raises:
            UserError: Model and settings cannot be used together.
        """
        self.segmenter = Segmenter(
            model,
            backend=settings["backend"],
            device=settings["device"],
            precision=settings["precision"],
            threads=settings["threads"] or None,
            cuda_graph=settings["cuda_graph"],
            average_mirrored=settings["average_mirrored"],
            projection=settings.projection(model.info),
            label_map=settings.label_map,
        )
        count = settings["sweeps.count"]
        self.sweeps: SweepSource | None = None
        self._vote_of_sweeps: SweepVote | None = None
        if count > 1:
            self.sweeps = SweepSource(settings["sweeps.fixed_frame"], settings["sweeps.odometry_topic"])
            self._vote_of_sweeps = SweepVote(count, len(self.segmenter.info.labels))
        self.apply(settings)
        self._use(self._applied, self._applied.extrinsics)
        if warm_up:
            self.segmenter.warm_up()
        self._input_warnings: tuple[str, ...] = ()
        self._input_checked_at = -INPUT_CHECK_PERIOD_S

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any], *, warm_up: bool = True) -> CloudSegmenter:
        """Load the model that the parameters name and apply them, as the node does.

        Args:
            values: Values of the parameters that are set, by name.
            warm_up: See `__init__`.

        Raises:
            UserError: A value is not allowed, needs ROS, or does not fit the model.
        """
        settings = Settings({**DEFAULTS, **values})
        if settings["base_frame"]:
            raise UserError(
                f"base_frame is '{settings['base_frame']}', but only the node has TF; set base_frame to '' and "
                "extrinsics.* to the sensor's angles and height"
            )
        model = read_model(settings)
        return cls(model, settings.for_model(model.info), warm_up=warm_up)

    def apply(self, settings: Settings) -> None:
        """Apply settings from the next cloud on: all of them, or none if they do not fit.

        May be called by another thread while a cloud is processed: one cloud has one set of settings.

        Raises:
            UserError: A setting does not fit the model.
        """
        info = self.segmenter.info
        projection, knn = settings.projection(info), settings.knn(info)
        extrinsics = Extrinsics.from_angles(*settings.angles_deg, settings.height_m)
        filters = {name: PointFilter(settings.filter(name), self.segmenter.info.labels) for name in FILTERS}
        for name, point_filter in filters.items():
            if point_filter.config.needs_height and not (extrinsics.height_m or settings["base_frame"]):
                raise UserError(
                    f"{name}.min_height_m and {name}.max_height_m need the sensor's height above the ground: set "
                    "extrinsics.height_m or base_frame"
                )
        writer = LabelledCloudWriter(self.segmenter.info.labels.colors, settings.outputs)
        cloud_settings = settings.cloud_settings(rings_needed=projection.needs_rings)
        # one assignment, as another thread may be using it
        self._applied = _Applied(projection, knn, extrinsics, filters, writer, cloud_settings)

    def process(
        self,
        cloud: Any,
        wanted: Collection[str],
        extrinsics: Extrinsics | None = None,
        find_pose: PoseSource | None = None,
    ) -> Result:
        """Label a cloud.

        Args:
            cloud: sensor_msgs/PointCloud2, or an object with its fields.
            wanted: Which of `PRODUCTS` to make.
            extrinsics: Of the cloud's sensor, from TF; None: those in the settings.
            find_pose: Poses for sweeps.count; asked after the network has run, when the pose has more likely arrived.

        Raises:
            CloudError: The cloud cannot be used.
        """
        begin = time.perf_counter()
        applied = self._applied
        self._use(applied, extrinsics or applied.extrinsics)
        decoded = decode(cloud, applied.cloud)
        decoded_at = time.perf_counter()

        in_cloud = "points" in wanted and "entropy" in applied.writer.outputs
        with_entropy = in_cloud or "entropy_image" in wanted
        segmentation = self.segmenter.segment(decoded.points, decoded.rings, entropy=with_entropy)
        segmented_at = time.perf_counter()

        pose_warning: tuple[str, ...] = ()
        if self._vote_of_sweeps is not None and find_pose is not None:
            segmentation, pose_warning = self._vote(
                self._vote_of_sweeps, segmentation, decoded.points, cloud.header, find_pose
            )
        voted_at = time.perf_counter()

        clouds, height_warnings = self._clouds(cloud, decoded, segmentation, applied, wanted)
        images = self._images(segmentation, wanted)
        encoded_at = time.perf_counter()

        if begin - self._input_checked_at >= INPUT_CHECK_PERIOD_S:
            mask = segmentation.image.index >= 0
            expected = self._expected(applied.cloud)
            self._input_warnings = check_input(decoded.points, decoded.rings, expected, mask)
            self._input_checked_at = begin
        checked_at = time.perf_counter()

        timings = {
            "decode": 1e3 * (decoded_at - begin),
            **segmentation.timings_ms,
            "sweeps": 1e3 * (voted_at - segmented_at),
            "encode": 1e3 * (encoded_at - voted_at),
            "input_checks": 1e3 * (checked_at - encoded_at),
        }
        warnings = (*self._input_warnings, *pose_warning, *height_warnings)
        return Result(clouds, images, timings, warnings, segmentation)

    def description(self) -> dict[str, str]:
        """Return what runs here, as values of diagnostics."""
        segmenter, runtime, applied = self.segmenter, self.segmenter.runtime, self._applied
        return {
            "model": segmenter.info.name,
            "licence": segmenter.info.licence,
            "file": str(segmenter.model_path),
            "file_sha256": segmenter.model_sha256,
            "backend": runtime.backend,
            "device": str(runtime.device),
            "precision": runtime.precision,
            "threads": str(runtime.threads),
            "image_height": str(applied.projection.height),
            "image_width": str(applied.projection.width),
            "knn_mode": applied.knn.mode,
            "average_mirrored": str(segmenter.average_mirrored).lower(),
            "label_set": segmenter.info.labels.name,
        }

    def release(self) -> None:
        """Free the device's memory."""
        del self.segmenter
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _use(self, applied: _Applied, extrinsics: Extrinsics) -> None:
        segmenter = self.segmenter
        segmenter.projection, segmenter.knn, segmenter.extrinsics = applied.projection, applied.knn, extrinsics

    def _vote(
        self,
        sweeps: SweepVote,
        segmentation: Segmentation,
        points: npt.NDArray[np.float32],
        header: Any,
        find_pose: PoseSource,
    ) -> tuple[Segmentation, tuple[str, ...]]:
        """The segmentation with the labels of several sweeps, or the same one and why they did not vote."""
        try:
            pose = find_pose(header)
            voted = sweeps.vote(
                segmentation, points, pose, stamp_ns(header), self.segmenter.projection, self.segmenter.extrinsics
            )
            return voted, ()
        except UserError as error:
            return segmentation, (f"labels are those of one sweep: {error}",)

    def _clouds(
        self,
        cloud: Any,
        decoded: DecodedCloud,
        segmentation: Segmentation,
        applied: _Applied,
        wanted: Collection[str],
    ) -> tuple[dict[str, Any], list[str]]:
        """The wanted clouds by product, and why filtered ones are missing."""
        clouds = {}
        labels, confidences = segmentation.labels, segmentation.confidences
        if "points" in wanted:
            clouds["points"] = applied.writer.write(cloud, labels, confidences, segmentation.entropies)
        height_warnings = {name: text for name, text in self._height_warnings(applied).items() if name in wanted}
        for name in FILTERS:
            if name in wanted and name not in height_warnings:
                keep = applied.filters[name].mask(decoded.points, labels, confidences, self.segmenter.extrinsics)
                clouds[name] = encode_filtered(cloud, keep)
        return clouds, list(height_warnings.values())

    def _images(self, segmentation: Segmentation, wanted: Collection[str]) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """The wanted images by product, see `Result`."""
        images: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        if "label_image" in wanted:
            colors = self.segmenter.info.labels.colors
            images["label_image"] = ("rgb8", colors[segmentation.label_image.cpu().numpy()])
        if "range_image" in wanted:
            images["range_image"] = ("32FC1", segmentation.image.range.clamp_min(0).cpu().numpy())
        if "entropy_image" in wanted and segmentation.entropy_image is not None:
            images["entropy_image"] = ("32FC1", segmentation.entropy_image.cpu().numpy())
        return images

    def _height_warnings(self, applied: _Applied) -> dict[str, str]:
        """Why a filtered cloud cannot be made, by its name. Only TF can lack the height, see `apply`."""
        if self.segmenter.extrinsics.height_m:
            return {}
        return {
            name: f"~/output/{name} is not published: {name}.min_height_m and {name}.max_height_m need the sensor's "
            "height, but by TF the sensor is not above base_frame; set base_frame to a frame on the ground"
            for name, point_filter in applied.filters.items()
            if point_filter.config.needs_height
        }

    def _expected(self, cloud: CloudSettings) -> Expected:
        segmenter, info = self.segmenter, self.segmenter.info
        return Expected(segmenter.projection, info.normalization, segmenter.extrinsics, info.sensor_height_m, cloud)
