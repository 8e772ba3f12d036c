# SPDX-License-Identifier: Apache-2.0
"""Labelling of one scan file or one bag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.data.pose_track import BagPoses
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, BagReader
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.data.semantic_kitti import read_scan, write_labels
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.labelling.plan import Job
from sqsegv3_ros.pointcloud2 import CloudSettings, to_remission

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter, PoseSource
    from sqsegv3_ros.inference.segmenter import Segmenter


def label_scan(segmenter: Segmenter, job: Job, settings: CloudSettings) -> str:
    """Label a .bin file and write the .label file with raw ids.

    Args:
        segmenter: Computes the labels.
        job: Source and target.
        settings: How the fourth value of a point becomes the remission.

    Returns:
        Input warnings, '' for none.

    Raises:
        UserError: The scan cannot be read or the labels cannot be written.
        OperationError: Inference failed.
    """
    from sqsegv3_ros.inference.input_checks import Expected, check_input

    points = read_scan(job.source)
    to_remission(points[:, 3], settings)
    try:
        result = segmenter.segment(points)
    except RuntimeError as error:
        raise OperationError(f"{job.source}: {error}") from error
    info = segmenter.info
    write_labels(job.target, info.labels.to_raw(result.labels))
    expected = Expected(segmenter.projection, info.normalization, segmenter.extrinsics, info.sensor_height_m, settings)
    return "; ".join(check_input(points, None, expected, result.image.index >= 0))


def label_bag(
    cloud_segmenter: CloudSegmenter, job: Job, output_topic: str | None, *, force: bool = False
) -> Iterator[str]:
    """Copy a bag with its clouds labelled, and all other messages byte for byte.

    Args:
        cloud_segmenter: Labels the clouds.
        job: Source and target, resolved.
        output_topic: Topic of the labelled clouds; None for the same topic.
        force: Overwrite an existing bag.

    Yields:
        For each cloud, its input warnings, '' for none.

    Raises:
        UserError: A cloud cannot be labelled, or the bag cannot be written. No bag is left then.
        OperationError: Inference failed. No bag is left then.
    """
    assert job.storage is not None
    info = cloud_segmenter.segmenter.info
    notes = {
        "sqsegv3_model": info.name,
        "sqsegv3_model_sha256": cloud_segmenter.segmenter.model_sha256,
        "sqsegv3_label_set": info.labels.name,
    }
    with BagReader(job.source) as reader, BagWriter(job.target, job.storage, force=force, notes=notes) as writer:
        find_pose = bag_poses(cloud_segmenter, reader)
        channels = {}
        for connection in reader.connections:  # also those without messages
            to_label = connection.topic == job.topic and connection.msgtype == CLOUD_TYPE
            channel = writer.add_like(reader, connection, output_topic if to_label else None)
            channels[connection.id] = to_label, channel
        number = 0
        for message in reader.messages():
            to_label, channel = channels[message.connection.id]
            if not to_label:
                writer.write(channel, message.time_ns, message.raw)
                continue
            number += 1
            name = f"bag {job.source}, cloud {number} of {job.topic}"
            labelled, input_warnings = _label_cloud(cloud_segmenter, reader.cloud(message), name, find_pose)
            writer.write(channel, message.time_ns, reader.serialize(labelled))
            yield "; ".join(input_warnings)


def bag_poses(cloud_segmenter: CloudSegmenter, reader: BagReader) -> PoseSource | None:
    """The sensor's poses in a bag, if several sweeps vote. Raises UserError if the bag has none."""
    settings = cloud_segmenter.sweeps
    return None if settings is None else BagPoses(reader, settings.fixed_frame, settings.odometry_topic).find


def _label_cloud(
    cloud_segmenter: CloudSegmenter, cloud: Any, name: str, find_pose: PoseSource | None
) -> tuple[Any, tuple[str, ...]]:
    try:
        result = cloud_segmenter.process(cloud, {"points"}, find_pose=find_pose)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except RuntimeError as error:  # of torch, such as out of memory
        raise OperationError(f"{name}: {error}") from error
    return result.clouds["points"], result.input_warnings
