# SPDX-License-Identifier: Apache-2.0
"""Poses by time: of one frame, and of all frames of a bag."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from sqsegv3_ros.data.rosbag_reader import BagReader
from sqsegv3_ros.data.rotations import Matrix, transform_from_quaternion
from sqsegv3_ros.errors import UserError

TF_TYPE, ODOMETRY_TYPE = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"


class PoseTrack:
    """Poses of a frame in its parent frame, interpolated in time.

    Args:
        capacity: Number of poses that are kept, the last ones; None for all.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.parent = ""
        self._stamps: deque[int] = deque(maxlen=capacity)
        self._poses: deque[tuple[Any, Any]] = deque(maxlen=capacity)

    def add(self, parent: str, stamp_ns: int, position: Any, orientation: Any) -> None:
        """Add a pose: position with x, y, z in metres, orientation with x, y, z, w. If time goes back, start again."""
        if self._stamps and stamp_ns <= self._stamps[-1]:
            if stamp_ns == self._stamps[-1]:
                return
            self._stamps.clear()
            self._poses.clear()
        self.parent = parent
        self._stamps.append(stamp_ns)
        q = orientation
        self._poses.append((np.array([position.x, position.y, position.z]), np.array([q.x, q.y, q.z, q.w])))

    def at(self, stamp_ns: int) -> Matrix:
        """Compute the (4, 4) transform from the frame to its parent.

        Between two poses, positions are interpolated on a line and rotations along the chord, as they are close.

        Raises:
            UserError: There are no poses around that time; the message says when there are.
        """
        if not self._stamps:
            raise UserError("there are no poses")
        if not self._stamps[0] <= stamp_ns <= self._stamps[-1]:
            first_ms, last_ms = ((stamp - stamp_ns) / 1e6 for stamp in (self._stamps[0], self._stamps[-1]))
            raise UserError(f"poses cover {first_ms:+.0f} to {last_ms:+.0f} ms relative to the cloud")
        after = bisect_left(self._stamps, stamp_ns)
        before = after if self._stamps[after] == stamp_ns else after - 1
        (position, a), (next_position, b) = self._poses[before], self._poses[after]
        span_ns = self._stamps[after] - self._stamps[before]
        share = (stamp_ns - self._stamps[before]) / span_ns if span_ns else 0.0
        if a @ b < 0:
            b = -b  # the same rotation
        position = (1 - share) * position + share * next_position
        return transform_from_quaternion(position.tolist(), ((1 - share) * a + share * b).tolist())


class BagPoses:
    """Poses of the frames of a bag in a fixed frame, from its /tf and /tf_static, and optionally an odometry topic.

    Args:
        reader: The bag, opened.
        fixed_frame: Frame of the poses.
        odometry_topic: Topic with nav_msgs/Odometry, which then takes the place of the /tf of its frame.

    Raises:
        UserError: The bag has no message with poses.
    """

    def __init__(self, reader: BagReader, fixed_frame: str, odometry_topic: str = "") -> None:
        self._fixed_frame = fixed_frame
        self._tracks: dict[str, PoseTrack] = {}
        self._static: dict[str, tuple[str, Matrix]] = {}
        for transform in _transforms(reader, "/tf"):
            self._add(
                transform.header,
                transform.child_frame_id,
                transform.transform.translation,
                transform.transform.rotation,
            )
        for transform in _transforms(reader, "/tf_static"):
            t, q = transform.transform.translation, transform.transform.rotation
            matrix = transform_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
            self._static[_frame(transform.child_frame_id)] = _frame(transform.header.frame_id), matrix
        if odometry_topic:
            replaced: set[str] = set()
            for message in reader.messages(odometry_topic, (ODOMETRY_TYPE,)):
                odometry = reader.deserialize(message, ODOMETRY_TYPE)
                child = _frame(odometry.child_frame_id)
                if child not in replaced:
                    replaced.add(child)
                    self._tracks.pop(child, None)
                self._add(odometry.header, child, odometry.pose.pose.position, odometry.pose.pose.orientation)
        if not self._tracks:
            topics = f"/tf or {odometry_topic}" if odometry_topic else "/tf"
            raise UserError(f"bag {reader.path} has no poses on {topics}, which sweeps.count needs; set it to 1")

    def find(self, header: Any) -> Matrix:
        """Return the (4, 4) transform from a cloud's frame to the fixed frame at the cloud's time.

        Raises:
            UserError: The transform is not known.
        """
        stamp_ns, frame = _nanoseconds(header.stamp), _frame(header.frame_id)
        pose, path = np.eye(4), [frame]
        while path[-1] != self._fixed_frame:
            frame = path[-1]
            try:
                if frame in self._tracks:
                    parent, matrix = self._tracks[frame].parent, self._tracks[frame].at(stamp_ns)
                else:
                    parent, matrix = self._static[frame]
            except KeyError:
                known = ", ".join(sorted({*self._tracks, *self._static}))
                raise UserError(
                    f"no transform from '{path[0]}' to sweeps.fixed_frame '{self._fixed_frame}': '{frame}' has no "
                    f"parent (frames with one: {known})"
                ) from None
            except UserError as error:
                raise UserError(f"no transform of '{frame}' at the cloud's time: {error}") from error
            if parent in path:
                raise UserError(f"the transforms form a loop: {' -> '.join([*path, parent])}")
            pose = matrix @ pose
            path.append(parent)
        return pose

    def _add(self, header: Any, child: str, position: Any, orientation: Any) -> None:
        track = self._tracks.setdefault(_frame(child), PoseTrack())
        track.add(_frame(header.frame_id), _nanoseconds(header.stamp), position, orientation)


def _transforms(reader: BagReader, topic: str) -> Iterator[Any]:
    for message in reader.messages(topic, (TF_TYPE,)):
        yield from reader.deserialize(message, TF_TYPE).transforms


def _frame(name: str) -> str:
    return name.lstrip("/")  # ROS 1 allowed a slash


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
