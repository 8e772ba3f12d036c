# SPDX-License-Identifier: Apache-2.0
"""Poses by time: interpolation against the analytic motion, and chains of transforms in a bag."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from sqsegv3_ros.data.pose_track import BagPoses, PoseTrack
from sqsegv3_ros.data.ros2_messages import TF_TYPE, Ros2Messages, Transform
from sqsegv3_ros.data.rosbag_reader import BagReader, ros2_types
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.errors import UserError

SECOND = 10**9


def pose_at(time_s: float) -> np.ndarray:
    """(4, 4): drives along x at 5 m/s and turns at 0.5 rad/s."""
    c, s = math.cos(0.5 * time_s), math.sin(0.5 * time_s)
    return np.array([[c, -s, 0, 5 * time_s], [s, c, 0, 1], [0, 0, 1, 2], [0, 0, 0, 1]])


def header(time_s: float, frame: str = "lidar") -> Any:
    stamp = SimpleNamespace(sec=int(time_s), nanosec=round(time_s % 1 * SECOND))
    return SimpleNamespace(stamp=stamp, frame_id=frame)


def track(*times_s: float, capacity: int | None = None) -> PoseTrack:
    result = PoseTrack(capacity)
    for time_s in times_s:
        half = 0.25 * time_s
        position = SimpleNamespace(x=5 * time_s, y=1.0, z=2.0)
        orientation = SimpleNamespace(x=0.0, y=0.0, z=math.sin(half), w=math.cos(half))
        result.add("odom", round(time_s * SECOND), position, orientation)
    return result


def test_poses_are_interpolated_between_their_neighbours() -> None:
    # at 12.6 s half the yaw angle is past pi: the quaternion's sign changes on the way
    poses = track(*np.arange(10, 15, 0.1).tolist())
    for time_s in (10.0, 10.1, 10.123, 12.57, 14.8):
        np.testing.assert_allclose(poses.at(round(time_s * SECOND)), pose_at(time_s), atol=1e-4)


def test_both_signs_of_a_quaternion_are_the_same_rotation() -> None:
    poses = PoseTrack()
    zero = SimpleNamespace(x=0.0, y=0.0, z=0.0)
    poses.add("odom", 0, zero, SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0))
    poses.add("odom", 10, zero, SimpleNamespace(x=0.0, y=0.0, z=-math.sin(0.1), w=-math.cos(0.1)))
    np.testing.assert_allclose(poses.at(5)[:2, :2], [[math.cos(0.1), -math.sin(0.1)], [math.sin(0.1), math.cos(0.1)]])


def test_times_outside_are_refused_with_the_known_ones_and_old_poses_are_dropped() -> None:
    with pytest.raises(UserError, match=r"cover -2000 to -500 ms relative to the cloud"):
        track(1, 2, 2.5).at(3 * SECOND)
    with pytest.raises(UserError, match=r"cover \+1000 to \+2000 ms"):
        track(1, 2, 3, capacity=2).at(SECOND)
    with pytest.raises(UserError, match="there are no poses"):
        PoseTrack().at(0)
    restarted = track(8, 9, 1, 2)  # a recording is replayed again
    np.testing.assert_allclose(restarted.at(SECOND), pose_at(1), atol=1e-9)


def bag(path: Path, *, odometry: bool = False) -> Path:
    """A bag with odom -> base (moving) -> mast (static) -> lidar (static)."""
    messages = Ros2Messages()
    mast, lidar = np.eye(4), np.eye(4)
    mast[:3, 3], lidar[:3, :3], lidar[:3, 3] = (1, 2, 3), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], (0, 0, 0.5)
    with BagWriter(path, "mcap") as writer:
        tf, static = writer.add("/tf", TF_TYPE), writer.add("/tf_static", TF_TYPE)
        fixed = [Transform(mast, "base", "mast"), Transform(lidar, "mast", "lidar")]
        writer.write(static, 0, messages.tf(fixed, 0))
        for step in range(20):
            stamp_ns = round((1 + step / 10) * SECOND)
            writer.write(tf, stamp_ns, messages.tf([Transform(pose_at(stamp_ns / SECOND), "odom", "base")], stamp_ns))
        if odometry:
            _write_odometry(writer)
    return path


def _write_odometry(writer: BagWriter) -> None:
    """Odometry 100 m ahead of /tf."""
    types, channel = ros2_types().types, writer.add("/odometry", "nav_msgs/msg/Odometry")
    covariance, zero = np.zeros(36), types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0)
    for second in (1, 2):
        half = 0.25 * second
        point = types["geometry_msgs/msg/Point"](x=100 + 5.0 * second, y=1.0, z=2.0)
        rotation = types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=math.sin(half), w=math.cos(half))
        stamp = types["builtin_interfaces/msg/Time"](sec=second, nanosec=0)
        twist = types["geometry_msgs/msg/Twist"](linear=zero, angular=zero)
        message = types["nav_msgs/msg/Odometry"](
            header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="odom"),
            child_frame_id="base",
            pose=types["geometry_msgs/msg/PoseWithCovariance"](
                pose=types["geometry_msgs/msg/Pose"](position=point, orientation=rotation), covariance=covariance
            ),
            twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=covariance),
        )
        writer.write(channel, second * SECOND, ros2_types().serialize_cdr(message, "nav_msgs/msg/Odometry"))


def test_transforms_of_a_bag_are_chained_up_to_the_fixed_frame(tmp_path: Path) -> None:
    with BagReader(bag(tmp_path / "drive")) as reader:
        poses = BagPoses(reader, "odom")
        in_lidar, in_base = np.array([2.0, 1.0, 0.0, 1.0]), np.array([1 - 1.0, 2 + 2.0, 3 + 0.5, 1.0])
        np.testing.assert_allclose(poses.find(header(1.55)) @ in_lidar, pose_at(1.55) @ in_base, atol=1e-3)
        with pytest.raises(UserError, match="no transform of 'base' at the cloud's time: poses cover"):
            poses.find(header(9.0))
        with pytest.raises(UserError, match=r"'camera' has no parent \(frames with one: base, lidar, mast\)"):
            poses.find(header(1.5, "camera"))
        with pytest.raises(UserError, match=r"no transform from 'lidar' to sweeps\.fixed_frame 'map': 'odom' has no"):
            BagPoses(reader, "map").find(header(1.5))


def test_odometry_takes_the_place_of_tf(tmp_path: Path) -> None:
    with BagReader(bag(tmp_path / "drive", odometry=True)) as reader:
        found = BagPoses(reader, "odom", "/odometry").find(header(1.0, "base"))
    assert found[:3, 3].tolist() == [105.0, 1.0, 2.0]


def test_a_bag_without_poses_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty", "mcap") as writer:
        writer.add("/tf", TF_TYPE)
    with BagReader(tmp_path / "empty") as reader, pytest.raises(UserError, match="has no poses on /tf, which sweeps"):
        BagPoses(reader, "odom")
