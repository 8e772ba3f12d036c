# SPDX-License-Identifier: Apache-2.0
"""Recording of labelled scans for the Rerun viewer: clouds, images, classes, latency, on a timeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError, missing_package
from sqsegv3_ros.viewing.pictures import FARTHEST_M, display_colors, ramp_colors

POINTS, CONFIDENCE, GROUND_TRUTH = "lidar/points", "lidar/confidence", "lidar/ground_truth"
RANGE_IMAGE, LABEL_IMAGE, LATENCY, WARNINGS = "range_image", "label_image", "latency", "input_warnings"
SCAN, TIME = "scan", "time"  # timelines
_RADIUS = -1.5  # of points; Rerun reads negative radii as pixels of the screen


class RerunRecording:
    """A recording in a file, or in a viewer that is started.

    Args:
        path: .rrd file to write; None to start the viewer.

    Raises:
        UserError: rerun-sdk is not installed, or the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            import rerun
        except ImportError as error:
            raise missing_package("rerun-sdk", "the Rerun viewer", "view") from error
        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream("sqsegv3")
        try:
            if path is None:
                self._stream.spawn(default_blueprint=_blueprint())
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream.save(path, default_blueprint=_blueprint())
        except (OSError, RuntimeError, ValueError) as error:
            what = f"cannot write {path}" if path else "cannot start the Rerun viewer; write a file with --save"
            raise UserError(f"{what}: {error}") from error

    def log_classes(self, labels: LabelSet) -> None:
        """Record the names and colours of the classes, for all scans."""
        colors = display_colors(labels)
        classes = [self._rerun.AnnotationInfo(i, name, colors[i].tolist()) for i, name in enumerate(labels.names)]
        self._stream.log("/", self._rerun.AnnotationContext(classes), static=True)

    def set_scan(self, number: int, stamp_ns: int | None = None) -> None:
        """Set the scan that the following data belong to, and its time if it is known, nanoseconds."""
        self._stream.set_time(SCAN, sequence=number)
        if stamp_ns is not None:
            self._stream.set_time(TIME, timestamp=np.datetime64(stamp_ns, "ns"))

    def log_points(
        self,
        points: npt.NDArray[np.float32],
        labels: npt.NDArray[Any],
        confidences: npt.NDArray[np.float32] | None = None,
        ground_truth: npt.NDArray[Any] | None = None,
    ) -> None:
        """Record a labelled cloud.

        Args:
            points: (N, 3 or more) x, y, z in metres in the sensor frame. Points that are not finite are left out.
            labels: (N,) labels.
            confidences: (N,) confidences, shown dark (0) to bright (1); None for none.
            ground_truth: (N,) true labels; None for none.
        """
        finite = np.isfinite(points[:, :3]).all(1)
        xyz = points[finite, :3]
        self._log(POINTS, "Points3D", xyz, class_ids=labels[finite], radii=_RADIUS)
        if confidences is not None:
            colors = ramp_colors(np.clip(confidences[finite], 0, 1))
            self._log(CONFIDENCE, "Points3D", xyz, colors=colors, radii=_RADIUS)
        if ground_truth is not None:
            self._log(GROUND_TRUTH, "Points3D", xyz, class_ids=ground_truth[finite], radii=_RADIUS)

    def log_range_image(self, image: npt.NDArray[Any]) -> None:
        """Record an (H, W) range image in metres, 0 in empty pixels."""
        self._log(RANGE_IMAGE, "DepthImage", image, meter=1.0, depth_range=(0.0, FARTHEST_M), colormap="turbo")

    def log_label_image(self, image: npt.NDArray[Any]) -> None:
        """Record an (H, W) image of labels, or an (H, W, 3) image in class colours."""
        self._log(LABEL_IMAGE, "SegmentationImage" if image.ndim == 2 else "Image", image)

    def log_latency(self, milliseconds: Mapping[str, float]) -> None:
        """Record milliseconds by name."""
        for name, value in milliseconds.items():
            self._log(f"{LATENCY}/{name}", "Scalars", value)

    def log_warning(self, text: str) -> None:
        """Record a warning of the input checks."""
        self._log(WARNINGS, "TextLog", text, level="WARN")

    def close(self) -> None:
        """Write what is still in memory."""
        self._stream.flush()
        self._stream.disconnect()

    def _log(self, entity: str, archetype: str, *values: Any, **components: Any) -> None:
        self._stream.log(entity, getattr(self._rerun, archetype)(*values, **components))


def _blueprint() -> Any:
    """Arrange the views: both clouds, below them the images, the latency and the warnings."""
    from rerun import blueprint

    clouds = blueprint.Horizontal(
        blueprint.Spatial3DView(origin="lidar", contents=f"/{POINTS}", name="labels"),
        blueprint.Spatial3DView(origin="lidar", contents=f"/{CONFIDENCE}", name="confidence"),
    )
    images = blueprint.Vertical(
        blueprint.Spatial2DView(origin=RANGE_IMAGE, name="range image"),
        blueprint.Spatial2DView(origin=LABEL_IMAGE, name="label image"),
    )
    numbers = blueprint.Tabs(
        blueprint.TimeSeriesView(origin=LATENCY, name="latency, ms"),
        blueprint.TextLogView(origin=WARNINGS, name="input warnings"),
    )
    lower = blueprint.Horizontal(images, numbers, column_shares=[2, 1])
    return blueprint.Blueprint(blueprint.Vertical(clouds, lower, row_shares=[3, 2]), collapse_panels=True)
