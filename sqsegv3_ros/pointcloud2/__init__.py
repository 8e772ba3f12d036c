# SPDX-License-Identifier: Apache-2.0
"""Conversion between PointCloud2 messages and numpy arrays, independent of ROS.

Works on any object with the attributes of sensor_msgs/PointCloud2, such as messages of rclpy and rosbags. `decode`
reads points and rings; `LabelledCloudWriter` and `encode_filtered` write messages of the input's class; `make_cloud`
creates a message from arrays. Unusable clouds raise CloudError with a short `reason`.
"""

from sqsegv3_ros.pointcloud2.decode import (
    INTENSITY_FIELDS,
    CloudSettings,
    DecodedCloud,
    decode,
    read_field,
    to_remission,
)
from sqsegv3_ros.pointcloud2.encode import DEFAULT_OUTPUTS, OUTPUTS, LabelledCloudWriter, encode_filtered
from sqsegv3_ros.pointcloud2.layout import REASONS, CloudError, Field, Layout, PointCloudLike, read_layout
from sqsegv3_ros.pointcloud2.make import make_cloud
from sqsegv3_ros.pointcloud2.stamp import format_stamp, read_stamp_ns, stamp_ns

__all__ = [
    "DEFAULT_OUTPUTS",
    "INTENSITY_FIELDS",
    "OUTPUTS",
    "REASONS",
    "CloudError",
    "CloudSettings",
    "DecodedCloud",
    "Field",
    "LabelledCloudWriter",
    "Layout",
    "PointCloudLike",
    "decode",
    "encode_filtered",
    "format_stamp",
    "make_cloud",
    "read_field",
    "read_layout",
    "read_stamp_ns",
    "stamp_ns",
    "to_remission",
]
