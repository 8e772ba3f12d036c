# SPDX-License-Identifier: Apache-2.0
"""The output topics of the segmentation node."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, Header, String

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter, Result
from sqsegv3_ros.inference.stages import STAGES
from sqsegv3_ros.ros import qos


class OutputPublishers:
    """Lifecycle publishers of everything under ~/output and ~/debug, from construction to `destroy`."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._products = {
            name: node.create_lifecycle_publisher(
                PointCloud2 if name in CloudSegmenter.CLOUDS else Image,
                f"~/output/{name}",
                qos.OUTPUT,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for name in CloudSegmenter.PRODUCTS
        }
        self._times = {
            stage: node.create_lifecycle_publisher(Float64, f"~/debug/processing_time/{stage}_ms", qos.OUTPUT)
            for stage in STAGES
        }
        self._label_set = node.create_lifecycle_publisher(String, "~/output/label_set", qos.LATCHED)
        self._label_info = None
        try:
            from vision_msgs.msg import LabelInfo
        except ImportError:
            node.get_logger().info("vision_msgs is not installed: ~/output/label_info is not published")
        else:
            self._label_info = node.create_lifecycle_publisher(LabelInfo, "~/output/label_info", qos.LATCHED)

    def subscribed_products(self) -> set[str]:
        """Return the names of the products that have a subscriber."""
        return {name for name, publisher in self._products.items() if publisher.get_subscription_count() > 0}

    @staticmethod
    def to_messages(result: Result, header: Header) -> dict[str, Any]:
        """Convert a result to messages by product name: its clouds as they are, its images as sensor_msgs/Image."""
        messages = dict(result.clouds)
        for name, (encoding, pixels) in result.images.items():
            image = Image(header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
            image.step = pixels.strides[0]
            image.data = array("B", pixels.tobytes())  # an array is assigned without a check of every byte
            messages[name] = image
        return messages

    def publish(self, messages: dict[str, Any]) -> None:
        """Publish messages by product name."""
        for name, message in messages.items():
            self._products[name].publish(message)

    def publish_times(self, stages_ms: Mapping[str, float]) -> None:
        """Publish the processing time of each stage that has a subscriber."""
        for stage, milliseconds in stages_ms.items():
            if self._times[stage].get_subscription_count() > 0:
                self._times[stage].publish(Float64(data=milliseconds))

    def publish_labels(self, labels: LabelSet) -> None:
        """Publish the label set (JSON) and, if vision_msgs is installed, the label info. Both are latched."""
        self._label_set.publish(String(data=json.dumps(labels.to_dict())))
        if self._label_info is not None:
            from vision_msgs.msg import LabelInfo, VisionClass

            message = LabelInfo()
            message.header.stamp = self._node.get_clock().now().to_msg()
            message.class_map = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(labels.names)]
            self._label_info.publish(message)

    def destroy(self) -> None:
        """Destroy the publishers."""
        publishers = [*self._products.values(), *self._times.values(), self._label_set, self._label_info]
        for publisher in filter(None, publishers):
            self._node.destroy_lifecycle_publisher(publisher)
