# SPDX-License-Identifier: Apache-2.0
"""The Rerun node: shows the outputs of the segmentation node in the Rerun viewer, or records them for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import expand_home
from sqsegv3_ros.pointcloud2 import CloudSettings, decode, read_field, read_layout, stamp_ns
from sqsegv3_ros.ros import qos
from sqsegv3_ros.ros.signals import stop_on_signals
from sqsegv3_ros.ros.start import start_ros
from sqsegv3_ros.viewing.rerun_recording import RerunRecording

# below the namespace of this node, as those of the segmentation node are
OUTPUT = "sqsegv3/output"
THROTTLE_S = 5.0
_XYZ_ONLY = CloudSettings(intensity_fields=(), ring_field="")


class RerunNode(Node):
    """Records the labelled clouds, images, classes and latency of the segmentation node.

    Args:
        **kwargs: Arguments of rclpy's Node.

    Raises:
        UserError: rerun-sdk is not installed, or the recording already exists or cannot be written.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("rerun_node", **kwargs)
        description = "File to record to (.rrd); empty: start the Rerun viewer."
        self.declare_parameter("recording", "", ParameterDescriptor(description=description, read_only=True))
        given = self.get_parameter("recording").value
        path = expand_home(given) if given else None
        if path is not None and path.exists():
            raise UserError(f"recording {path} already exists; choose another file, or move it away")
        self.recording = RerunRecording(path)
        self._scan, self._time_ns = -1, -1
        self._subscribe(PointCloud2, f"{OUTPUT}/points", self._on_cloud, qos.OUTPUT)
        self._subscribe(Image, f"{OUTPUT}/range_image", self._on_range_image, qos.OUTPUT)
        self._subscribe(Image, f"{OUTPUT}/label_image", self._on_label_image, qos.OUTPUT)
        label_set = self._subscribe(String, f"{OUTPUT}/label_set", self._on_label_set, qos.LATCHED)
        self._subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._segment_node = label_set.topic_name.removesuffix("/output/label_set")
        self.get_logger().info(f"showing {self._segment_node} in {path or 'the Rerun viewer'}")

    def _subscribe(self, kind: Any, topic: str, show: Callable[[Any], None], profile: Any) -> Subscription:
        """Subscribe; a message that cannot be shown is a warning: no input ends the node."""

        def show_or_warn(message: Any) -> None:
            try:
                show(message)
            except Exception as error:
                warning = f"{subscription.topic_name} not shown: {error}"
                self.get_logger().warning(warning, throttle_duration_sec=THROTTLE_S)

        subscription = self.create_subscription(kind, topic, show_or_warn, profile)
        return subscription

    def _on_label_set(self, message: String) -> None:
        self.recording.log_classes(LabelSet.from_dict(json.loads(message.data)))

    def _on_cloud(self, cloud: PointCloud2) -> None:
        points, labels = decode(cloud, _XYZ_ONLY).points, read_field(cloud, "label")
        has_confidence = "confidence" in read_layout(cloud).fields
        confidences = read_field(cloud, "confidence") if has_confidence else None
        self._set_scan(cloud.header)
        self.recording.log_points(points, labels, confidences)

    def _on_range_image(self, image: Image) -> None:
        ranges = np.frombuffer(image.data, "<f4").reshape(image.height, image.width)
        self._set_scan(image.header)
        self.recording.log_range_image(ranges)

    def _on_label_image(self, image: Image) -> None:
        colors = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        self._set_scan(image.header)
        self.recording.log_label_image(colors)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        """Record the medians of the last seconds, per stage and total."""
        for status in array.status:
            if status.name == f"{self._segment_node}: processing" and self._scan >= 0:
                medians = {p.key.removesuffix("_p50_ms"): float(p.value) for p in status.values if "_p50_ms" in p.key}
                if "latency" in medians:
                    self.recording.log_latency({"total": medians.pop("latency"), **medians})

    def _set_scan(self, header: Header) -> None:
        """Log the following data for the scan with this stamp: cloud and images arrive one by one."""
        time_ns = stamp_ns(header)
        if time_ns != self._time_ns:
            self._scan, self._time_ns = self._scan + 1, time_ns
        self.recording.set_scan(self._scan, time_ns)


def main(arguments: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM.

    Returns:
        Exit code: 0 after a signal, 2 if nothing can be recorded.
    """
    node = None
    with stop_on_signals() as stop:
        try:
            start_ros(arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = RerunNode()
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
            return 0
        except (UserError, InvalidParameterTypeException) as error:
            print(f"rerun_node: {error}", file=sys.stderr)
            return 2
        finally:
            if node is not None:
                node.recording.close()
                node.destroy_node()
            rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
