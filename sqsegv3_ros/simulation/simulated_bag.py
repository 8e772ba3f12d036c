"""ROS 2 bag of simulated sweeps: clouds with ground truth, /clock and, for a drive, the sensor's poses on /tf."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

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


class SimulatedBag:
    """Writes sweeps to a bag. Use it in a `with` block; the bag exists only if the block succeeds.

    Args:
        path: Folder of a ROS 2 bag, or a single .mcap or .db3 file.
        rate_hz: Sweeps per second.
        poses: Write the sensor's pose at each sweep to /tf.
        force: Overwrite an existing bag.

    Raises:
        UserError: The bag exists, or cannot be written.
    """

    def __init__(self, path: Path, rate_hz: float, *, poses: bool = False, force: bool = False) -> None:
        self._bag = BagWriter(path, default_storage(path), force=force)
        self._messages = Ros2Messages()
        self._rate_hz, self._poses = rate_hz, poses
        self._clock_ns = START_NS

    def __enter__(self) -> SimulatedBag:
        self._bag.__enter__()
        self._clouds, self._clock = self._bag.add(TOPIC, CLOUD_TYPE), self._bag.add("/clock", CLOCK_TYPE)
        self._tf = self._bag.add("/tf", TF_TYPE) if self._poses else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bag.__exit__(kind, error, trace)

    def write(self, sweep: Sweep, number: int) -> None:
        """Add a sweep, stamped with the middle of its revolution and received at its end.

        Sweeps of independent scenes follow one another in time as well.
        """
        stamp_ns = START_NS + round((number + 0.5) / self._rate_hz * 1e9)
        received_ns = stamp_ns + round(0.5 / self._rate_hz * 1e9)
        while self._clock_ns <= received_ns:
            self._bag.write(self._clock, self._clock_ns, self._messages.clock(self._clock_ns))
            self._clock_ns += 10**9 // CLOCK_HZ
        if self._tf is not None:
            transform = Transform(sweep.pose, WORLD_FRAME, FRAME)
            self._bag.write(self._tf, received_ns, self._messages.tf([transform], stamp_ns))
        self._bag.write(self._clouds, received_ns, self._messages.cloud(_points(sweep), stamp_ns))


def _points(sweep: Sweep) -> npt.NDArray[Any]:
    points = structured_points(sweep.points, POINT_RING)
    points["ring"] = sweep.rings
    points["ground_truth"] = SEMANTIC_KITTI.to_labels(sweep.labels)
    return points
