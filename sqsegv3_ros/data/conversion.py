# SPDX-License-Identifier: Apache-2.0
"""Conversion between SemanticKITTI sequences and rosbags, with points, labels, times and poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.ros2_messages import CAMERA_FRAME, FRAME, TF_TYPE, TOPIC, WORLD_FRAME, Ros2Messages, Transform
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, BagReader
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.data.rotations import transform_from_quaternion
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.data.sequences import (
    NOMINAL_TR,
    Contents,
    Matrices,
    read_sequence,
    read_structured_points,
    write_trajectory,
)
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import atomic_output, progress, refuse_existing
from sqsegv3_ros.pointcloud2 import CloudSettings, decode, read_field, read_layout, stamp_ns

_TF_TYPES = (TF_TYPE, "tf/msg/tfMessage")  # the second in old ROS 1 bags
_CLOUD_SETTINGS = CloudSettings(ring_field="")


def sequence_to_bag(
    root: Path, name: str | None, bag: Path, storage: str, *, topic: str = TOPIC, force: bool = False
) -> Contents:
    """Write a sequence as a ROS 2 bag.

    If every scan has labels, the clouds have the fields ground_truth (class) and raw_label (the data set's value). If
    the sequence has poses, the Velodyne's pose at each scan is on /tf and that of the camera on /tf_static.

    Args:
        root: SemanticKITTI data set.
        name: The sequence; None for the only one of the data set.
        bag: Bag to write.
        storage: Its storage, mcap or sqlite3.
        topic: Topic of the clouds.
        force: Overwrite an existing bag.

    Returns:
        What the bag holds.

    Raises:
        UserError: A file is missing or does not fit the scans, or the bag cannot be written. No bag is left then.
    """
    sequence = read_sequence(root, name)
    with BagWriter(bag, storage, force=force) as writer:
        messages = Ros2Messages()
        clouds, poses = writer.add(topic, CLOUD_TYPE), sequence.poses
        if poses is not None:
            start_ns = int(sequence.stamps_ns[0])
            camera = Transform(np.linalg.inv(sequence.to_camera).astype(np.float64), FRAME, CAMERA_FRAME)
            writer.write(writer.add("/tf_static", TF_TYPE), start_ns, messages.tf([camera], start_ns))
            tf = writer.add("/tf", TF_TYPE)
        for number, scan in enumerate(progress(sequence.scans, len(sequence.scans), "scan")):
            stamp_ns = int(sequence.stamps_ns[number])
            if poses is not None:
                pose = Transform(poses[number], WORLD_FRAME, FRAME)
                writer.write(tf, stamp_ns, messages.tf([pose], stamp_ns))
            points = read_structured_points(scan, ground_truth=sequence.labelled, raw_label=True)
            writer.write(clouds, stamp_ns, messages.cloud(points, stamp_ns))
    return Contents(len(sequence.scans), sequence.labelled, poses is not None)


@dataclass(frozen=True)
class BagImport:
    """How the clouds of a bag become scans.

    Attributes:
        topic: Topic of the clouds; None for the only one with clouds.
        cloud: How intensities become remissions.
        ground_truth_field: Field with the class of each point. A field raw_label, as `sequence_to_bag` writes it, takes
            precedence.
        labels: Classes of that field.
    """

    topic: str | None = None
    cloud: CloudSettings = _CLOUD_SETTINGS
    ground_truth_field: str = "ground_truth"
    labels: LabelSet = SEMANTIC_KITTI


def bag_to_sequence(bag: Path, root: Path, name: str, settings: BagImport, *, force: bool = False) -> Contents:
    """Write the clouds of a bag as a sequence.

    Labels are written if the clouds have them, poses if /tf has the sensor's pose at the stamp of every cloud.

    Args:
        bag: The bag.
        root: SemanticKITTI data set to write to.
        name: The sequence to write, two digits.
        settings: How to read the clouds.
        force: Overwrite an existing sequence.

    Returns:
        What the sequence holds.

    Raises:
        UserError: A cloud cannot be used, or the sequence exists or cannot be written. It is left as it was then.
    """
    if not (len(name) == 2 and name.isdigit()):
        raise UserError(f"the name of a sequence must be two digits ('00'), found '{name}'")
    sequence = root / "sequences" / name
    refuse_existing(sequence, force)
    with BagReader(bag) as reader, atomic_output(sequence) as draft:
        topic = reader.cloud_topic(settings.topic)
        stamps: list[int] = []
        frame, labelled = "", False
        for number, message in enumerate(progress(reader.messages(topic), reader.count(topic), "cloud")):
            cloud = reader.cloud(message)
            try:
                labelled = _write_cloud(draft, number, cloud, settings, labelled)
            except UserError as error:
                raise UserError(f"bag {bag}, cloud {number + 1} of {topic}: {error}") from error
            stamps.append(stamp_ns(cloud.header))
            if number and stamps[-1] <= stamps[-2]:
                raise UserError(f"bag {bag}, cloud {number + 1} of {topic}: its stamp is not after the previous one")
            frame = frame or str(cloud.header.frame_id)
        poses, to_camera = _read_poses(reader, frame, stamps)
        write_trajectory(draft, np.array(stamps, np.int64), poses, to_camera)
    return Contents(len(stamps), labelled, poses is not None)


def _write_cloud(draft: Path, number: int, cloud: Any, settings: BagImport, labelled: bool) -> bool:
    """Write a cloud as .bin and, if it has labels, .label. Either all clouds have labels or none. Returns whether."""
    points = decode(cloud, settings.cloud).points
    fields = read_layout(cloud).fields
    has_labels = "raw_label" in fields or settings.ground_truth_field in fields
    if number and has_labels != labelled:
        raise UserError(f"the cloud {'has' if has_labels else 'lacks'} labels, unlike the clouds before it")
    if has_labels:
        if "raw_label" in fields:
            raw = read_field(cloud, "raw_label")
        else:
            raw = settings.labels.to_raw(read_field(cloud, settings.ground_truth_field))
        write_labels(draft / "labels" / f"{number:06d}.label", raw)
    write_scan(draft / "velodyne" / f"{number:06d}.bin", points)
    return has_labels


def _read_poses(reader: BagReader, frame: str, stamps: list[int]) -> tuple[Matrices | None, Matrices]:
    """Read the sensor's poses at the stamps, (N, 4, 4), None if one is missing; and the transform to its camera."""
    by_stamp: dict[int, Matrices] = {}
    to_camera = NOMINAL_TR
    for transform in _transforms(reader):
        if transform.child_frame_id.lstrip("/") == frame.lstrip("/"):
            by_stamp[stamp_ns(transform.header)] = _matrix(transform.transform)
        elif transform.child_frame_id == CAMERA_FRAME and transform.header.frame_id == frame:
            to_camera = np.linalg.inv(_matrix(transform.transform))
    if not stamps or any(stamp not in by_stamp for stamp in stamps):
        return None, to_camera
    return np.stack([by_stamp[stamp] for stamp in stamps]), to_camera


def _transforms(reader: BagReader) -> Iterator[Any]:
    for topic in ("/tf", "/tf_static"):
        for message in reader.messages(topic, _TF_TYPES):
            yield from reader.deserialize(message, TF_TYPE).transforms


def _matrix(transform: Any) -> Matrices:
    t, q = transform.translation, transform.rotation
    return transform_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
