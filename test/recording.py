# SPDX-License-Identifier: Apache-2.0
"""Bags of every storage, written by rosbags alone, to test the package's reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clouds import layout
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

CLOUD = "sensor_msgs/msg/PointCloud2"
STAMP_S = 1_600_000_000
PERIOD_NS = 100_000_000
POINT = layout(18, x=(0, "f4"), y=(4, "f4"), z=(8, "f4"), intensity=(12, "f4"), ground_truth=(16, "u1"))
NUMBERS = {"f4": 7, "u1": 2}
OWN_DEFINITION = "uint32 count\nstring words\nfloat64[] values\n"


def scans(count: int, points: int = 500, seed: int = 0) -> list[np.ndarray]:
    """Random structured points with classes 0..19."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scan = np.zeros(points, POINT)
        for name, size in (("x", 15), ("y", 15), ("z", 1)):
            scan[name] = generator.normal(0, size, points)
        scan["intensity"] = generator.uniform(0, 1, points)
        scan["ground_truth"] = generator.integers(0, 20, points)
        found.append(scan)
    return found


def stores(storage: str) -> Any:
    """The message types of a storage, plus a type that is not part of ROS."""
    store = get_typestore(Stores.ROS1_NOETIC if storage == "ros1" else Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(OWN_DEFINITION, "robot_msgs/msg/Tally"))
    return store


def cloud(store: Any, scan: np.ndarray, number: int, storage: str, frame: str = "lidar") -> bytes:
    """A scan as a serialised PointCloud2 with stamp STAMP_S + number / 10 s."""
    types = store.types
    stamp = types["builtin_interfaces/msg/Time"](sec=STAMP_S, nanosec=number * PERIOD_NS)
    sequence = {"seq": number} if storage == "ros1" else {}
    fields = [
        types["sensor_msgs/msg/PointField"](
            name=name, offset=scan.dtype.fields[name][1], datatype=NUMBERS[scan.dtype[name].str[1:]], count=1
        )
        for name in scan.dtype.names
    ]
    message = types[CLOUD](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame, **sequence),
        height=1,
        width=len(scan),
        fields=fields,
        is_bigendian=False,
        point_step=scan.dtype.itemsize,
        row_step=scan.dtype.itemsize * len(scan),
        data=np.frombuffer(scan.tobytes(), np.uint8),
        is_dense=True,
    )
    return bytes(serialized(store, message, CLOUD, storage))


def tally(store: Any, number: int, storage: str) -> bytes:
    """A message of a type that is not part of ROS."""
    message = store.types["robot_msgs/msg/Tally"](count=number, words=f"no. {number}", values=np.arange(float(number)))
    return bytes(serialized(store, message, "robot_msgs/msg/Tally", storage))


def serialized(store: Any, message: Any, kind: str, storage: str) -> Any:
    return store.serialize_ros1(message, kind) if storage == "ros1" else store.serialize_cdr(message, kind)


def record(path: Path, storage: str, recorded: dict[str, Sequence[np.ndarray]], others: bool = True) -> Path:
    """Write a bag: clouds by topic at 10 Hz, received 7 ms after their stamp, interleaved with other messages."""
    store = stores(storage)
    if storage == "ros1":
        writer: Any = Writer1(path)
    else:
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        writer = Writer(path, version=9, storage_plugin=plugin)
    with writer:
        topics = {topic: writer.add_connection(topic, CLOUD, typestore=store) for topic in recorded}
        if others:
            tallies = writer.add_connection("/tally", "robot_msgs/msg/Tally", typestore=store)
            texts = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
            writer.add_connection("/silent", "std_msgs/msg/String", typestore=store)
        for number in range(max((len(found) for found in recorded.values()), default=1)):
            received = STAMP_S * 10**9 + number * PERIOD_NS + 7_000_000
            for topic, connection in topics.items():
                if number < len(recorded[topic]):
                    writer.write(connection, received, cloud(store, recorded[topic][number], number, storage))
            if others:
                text = store.types["std_msgs/msg/String"](data=f"at {number}")
                writer.write(tallies, received + 10, tally(store, number, storage))
                writer.write(texts, received + 20, serialized(store, text, "std_msgs/msg/String", storage))
    return path


def named(folder: Path, storage: str, name: str = "drive") -> Path:
    return folder / (f"{name}.bag" if storage == "ros1" else name)
