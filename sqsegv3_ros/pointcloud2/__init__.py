"""PointCloud2 messages come in and go out; columns of numpy arrays are what the pipeline sees in between.

Numpy only: any object with the attributes of sensor_msgs/PointCloud2 will do, whatever made it (rclpy, rosbags, a
dataclass). `decode` gives points and rings, `LabelledCloudWriter` and `encode_filtered` give messages of the input's
own class back, `make_cloud` makes one from arrays. What cannot be used raises CloudError with a short `reason`.
"""

from sqsegv3_ros.pointcloud2.decode import (
    DEFAULT_SETTINGS,
    CloudSettings,
    DecodedCloud,
    decode,
    read_field,
    to_remission,
)
from sqsegv3_ros.pointcloud2.encode import OUTPUTS, LabelledCloudWriter, encode_filtered, encode_labelled
from sqsegv3_ros.pointcloud2.layout import REASONS, CloudError, Field, Layout, PointCloudLike, read_layout
from sqsegv3_ros.pointcloud2.make import make_cloud

__all__ = [
    "DEFAULT_SETTINGS",
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
    "encode_labelled",
    "make_cloud",
    "read_field",
    "read_layout",
    "to_remission",
]
