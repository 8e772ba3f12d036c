"""Simulated sweeps as a ROS 2 bag: sweeps in; a rosbag2 folder (mcap) with /velodyne_points, /clock and, for a drive,
/tf out."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import OperationError, UserError, missing_package
from sqsegv3_ros.simulation.simulator import Sweep

TOPIC, FRAME, WORLD_FRAME = "/velodyne_points", "velodyne", "map"
START_S = 1_700_000_000  # the time of the first sweep: any fixed time that is not near 0, which ROS reads as unset
CLOCK_HZ = 50
_LAYOUT = (  # name, type, offset, sensor_msgs/PointField's number for the type
    ("x", "<f4", 0, 7),
    ("y", "<f4", 4, 7),
    ("z", "<f4", 8, 7),
    ("intensity", "<f4", 12, 7),
    ("ring", "<u2", 16, 4),
    ("ground_truth", "u1", 18, 2),
)
POINT = np.dtype(
    {
        "names": [row[0] for row in _LAYOUT],
        "formats": [row[1] for row in _LAYOUT],
        "offsets": [row[2] for row in _LAYOUT],
        "itemsize": 20,
    }
)


def cloud_bytes(sweep: Sweep) -> npt.NDArray[np.uint8]:
    """The points of a cloud message: (N * 20,) uint8. ground_truth holds the class (0..19), not the data set's raw
    id."""
    points = np.zeros(len(sweep.points), dtype=POINT)
    for i, name in enumerate(("x", "y", "z", "intensity")):
        points[name] = sweep.points[:, i]
    points["ring"] = sweep.rings
    points["ground_truth"] = SEMANTIC_KITTI.to_labels(sweep.labels)
    return points.view(np.uint8)


def quaternion(rotation: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """(3, 3) rotation -> x, y, z, w, by the largest of the four (Shepperd's method)."""
    m = rotation
    squares = np.array([m[0, 0], m[1, 1], m[2, 2], m.trace()])
    k = int(np.argmax(squares))
    q = np.empty(4)
    if k == 3:
        q[:] = [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m.trace()]
    else:
        i, j, h = k, (k + 1) % 3, (k + 2) % 3
        q[i] = 1 - m.trace() + 2 * m[i, i]
        q[j], q[h] = m[j, i] + m[i, j], m[h, i] + m[i, h]
        q[3] = m[h, j] - m[j, h]
    q /= np.linalg.norm(q)
    return float(q[0]), float(q[1]), float(q[2]), float(q[3])


class BagWriter:
    """Writes sweeps into a bag beside its final place and moves it there when all went well.

    Raises UserError where something is there already (and force is not set) or the place cannot be written to,
    OperationError where writing fails.
    """

    def __init__(self, path: Path, *, force: bool = False, poses: bool = False) -> None:
        if path.suffix == ".bag":
            raise UserError(
                f"a ROS 2 bag is a folder, but {path} is named like a ROS 1 bag, and tools would take it for one; "
                f"use --bag {path.with_suffix('')}"
            )
        if path.exists() and not force:
            raise UserError(f"{path} is there already; choose another --bag, or overwrite it with --force")
        try:
            from rosbags.rosbag2 import StoragePlugin, Writer
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise missing_package("rosbags", "writing a bag", "bags") from error
        self.path, self.poses = path, poses
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._types = self._store.types
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        except OSError as error:
            raise UserError(f"cannot write bag {path}: {error.strerror or error}") from error
        self._writer = Writer(self._folder / path.name, version=9, storage_plugin=StoragePlugin.MCAP)
        self._topics: dict[str, Any] = {}
        self._clock_ns = START_S * 1_000_000_000

    def __enter__(self) -> BagWriter:
        self._writer.open()
        wanted = {TOPIC: "sensor_msgs/msg/PointCloud2", "/clock": "rosgraph_msgs/msg/Clock"}
        if self.poses:
            wanted["/tf"] = "tf2_msgs/msg/TFMessage"
        for topic, kind in wanted.items():
            self._topics[topic] = self._writer.add_connection(topic, kind, typestore=self._store)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                if self.path.is_dir():
                    shutil.rmtree(self.path)
                elif self.path.exists():
                    self.path.unlink()
                (self._folder / self.path.name).replace(self.path)
        except OSError as failure:
            raise OperationError(f"writing bag {self.path} failed: {failure.strerror or failure}") from failure
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, sweep: Sweep, number: int, rate_hz: float) -> None:
        """Add one sweep: stamped with the middle of its turn, received at its end. Scans of independent scenes follow
        one another in time too."""
        stamp_ns = START_S * 1_000_000_000 + round((number + 0.5) / rate_hz * 1e9)
        received_ns = stamp_ns + round(0.5 / rate_hz * 1e9)
        while self._clock_ns <= received_ns:
            self._put("/clock", self._clock_ns, {"clock": self._time(self._clock_ns)}, "rosgraph_msgs/msg/Clock")
            self._clock_ns += 1_000_000_000 // CLOCK_HZ
        header = self._types["std_msgs/msg/Header"](stamp=self._time(stamp_ns), frame_id=FRAME)
        field = self._types["sensor_msgs/msg/PointField"]
        fields = [field(name=name, offset=offset, datatype=datatype, count=1) for name, _, offset, datatype in _LAYOUT]
        cloud = {
            "header": header,
            "height": 1,
            "width": len(sweep.points),
            "fields": fields,
            "is_bigendian": False,
            "point_step": POINT.itemsize,
            "row_step": POINT.itemsize * len(sweep.points),
            "data": cloud_bytes(sweep),
            "is_dense": True,
        }
        if self.poses:
            self._put("/tf", received_ns, {"transforms": [self._transform(sweep, stamp_ns)]}, "tf2_msgs/msg/TFMessage")
        self._put(TOPIC, received_ns, cloud, "sensor_msgs/msg/PointCloud2")

    def _time(self, stamp_ns: int) -> Any:
        return self._types["builtin_interfaces/msg/Time"](
            sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000
        )

    def _transform(self, sweep: Sweep, stamp_ns: int) -> Any:
        x, y, z, w = quaternion(sweep.pose[:3, :3])
        types = self._types
        shift = types["geometry_msgs/msg/Vector3"](
            **{a: float(v) for a, v in zip("xyz", sweep.pose[:3, 3], strict=True)}
        )
        turn = types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
        return types["geometry_msgs/msg/TransformStamped"](
            header=types["std_msgs/msg/Header"](stamp=self._time(stamp_ns), frame_id=WORLD_FRAME),
            child_frame_id=FRAME,
            transform=types["geometry_msgs/msg/Transform"](translation=shift, rotation=turn),
        )

    def _put(self, topic: str, time_ns: int, values: dict[str, Any], kind: str) -> None:
        message = self._types[kind](**values)
        try:
            self._writer.write(self._topics[topic], time_ns, self._store.serialize_cdr(message, kind))
        except OSError as error:
            raise OperationError(f"writing bag {self.path} failed: {error.strerror or error}") from error
