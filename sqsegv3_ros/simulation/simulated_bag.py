# SPDX-License-Identifier: Apache-2.0
"""ROS 2 bag of simulated sweeps: clouds with ground truth, /clock and, for a drive, the sensor's poses on /tf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.ros2_messages import (
    CLOCK_TYPE,
    FRAME,
    POINT_RING,
    START_NS,
    TF_TYPE,
    TOPIC,
    WORLD_FRAME,
    Ros2Messages,
    Transform,
    structured_points,
)
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE
from sqsegv3_ros.data.rosbag_writer import BagWriter, default_storage
from sqsegv3_ros.simulation.simulator import Sweep

CLOCK_HZ = 50


@contextmanager
def simulated_bag(
    path: Path, rate_hz: float, *, poses: bool = False, force: bool = False
) -> Iterator[Callable[[Sweep, int], None]]:
    """Open a bag to write sweeps to. It exists only if the `with` block succeeds.

    Args:
        path: Folder of a ROS 2 bag, or a single .mcap or .db3 file.
        rate_hz: Sweeps per second.
        poses: Write the sensor's pose at each sweep to /tf.
        force: Overwrite an existing bag.

    Yields:
        A function that adds a sweep with its number, stamped with the middle of its revolution and received at its end.
        Sweeps of independent scenes follow one another in time as well.

    Raises:
        UserError: The bag exists, or cannot be written.
    """
    messages = Ros2Messages()
    clock_ns = START_NS
    with BagWriter(path, default_storage(path), force=force) as bag:
        clouds, clock = bag.add(TOPIC, CLOUD_TYPE), bag.add("/clock", CLOCK_TYPE)
        tf = bag.add("/tf", TF_TYPE) if poses else None

        def write(sweep: Sweep, number: int) -> None:
            nonlocal clock_ns
            stamp_ns = START_NS + round((number + 0.5) / rate_hz * 1e9)
            received_ns = stamp_ns + round(0.5 / rate_hz * 1e9)
            while clock_ns <= received_ns:
                bag.write(clock, clock_ns, messages.clock(clock_ns))
                clock_ns += 10**9 // CLOCK_HZ
            if tf is not None:
                bag.write(tf, received_ns, messages.tf([Transform(sweep.pose, WORLD_FRAME, FRAME)], stamp_ns))
            points = structured_points(sweep.points, POINT_RING)
            points["ring"] = sweep.rings
            points["ground_truth"] = SEMANTIC_KITTI.to_labels(sweep.labels)
            bag.write(clouds, received_ns, messages.cloud(points, stamp_ns))

        yield write
