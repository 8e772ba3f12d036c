"""SemanticKITTI sequences and bags, each made from the other: points, labels, times and poses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data import semantic_kitti as kitti
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.rosbag_reader import CLOUD_TYPE, BagReader, ros2_types
from sqsegv3_ros.data.rosbag_writer import BagWriter, Channel
from sqsegv3_ros.data.sequences import (
    CAMERA_FRAME,
    FRAME,
    NOMINAL_TR,
    TOPIC,
    WORLD_FRAME,
    Matrices,
    Sequence,
    quaternion,
    read_sequence,
    sequence_texts,
    structured_points,
    transform_matrix,
)
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import CloudSettings, decode, make_cloud, read_field, read_layout

TF_TYPE = "tf2_msgs/msg/TFMessage"
_TF_TYPES = (TF_TYPE, "tf/msg/tfMessage")  # the second: ROS 1, long ago
CLOUD_SETTINGS = CloudSettings(ring_field="")
Progress = Callable[[int, int], None]


def sequence_to_bag(
    root: Path, name: str | None, bag: Path, storage: str, *, topic: str = TOPIC, force: bool = False,
    progress: Progress | None = None,
) -> str:  # fmt: skip
    """Write a sequence as a ROS 2 bag. Returns a line on what it holds.

    Clouds on `topic`, with fields ground_truth (class) and raw_label (the data set's word) where every scan has labels;
    the velodyne's pose at every scan on /tf and the camera's place on /tf_static where the sequence has poses.
    Raises UserError naming the file that is missing or does not fit; then there is no bag.
    """
    sequence = read_sequence(root, name)
    types = _Types()
    with BagWriter(bag, storage, force=force) as writer:
        clouds = writer.add(topic, CLOUD_TYPE)
        tf = None if sequence.poses is None else _start_tf(writer, sequence, types)
        for number, (scan, stamp) in enumerate(zip(sequence.scans, sequence.stamps_ns, strict=True)):
            stamp_ns = int(stamp)
            if tf is not None and sequence.poses is not None:
                message = types.tf([(sequence.poses[number], WORLD_FRAME, FRAME, stamp_ns)])
                writer.write(tf, stamp_ns, message)
            points = structured_points(scan, truth=sequence.labelled, raw=True)
            writer.write(clouds, stamp_ns, types.cloud(points, stamp_ns))
            if progress is not None:
                progress(number + 1, len(sequence.scans))
    labels = "with labels" if sequence.labelled else "without labels"
    return f"{len(sequence.scans)} clouds {labels} on {topic}, {'with' if tf else 'without'} poses"


def _start_tf(writer: BagWriter, sequence: Sequence, types: _Types) -> Channel:
    fixed = writer.add("/tf_static", TF_TYPE)
    stamp_ns = int(sequence.stamps_ns[0])
    camera: Matrices = np.linalg.inv(sequence.to_camera).astype(np.float64)
    writer.write(fixed, stamp_ns, types.tf([(camera, FRAME, CAMERA_FRAME, stamp_ns)]))
    return writer.add("/tf", TF_TYPE)


class _Types:
    """Makes serialised messages of ROS 2."""

    def __init__(self) -> None:
        self._store = ros2_types()
        self._types = self._store.types

    def cloud(self, points: npt.NDArray[Any], stamp_ns: int) -> memoryview:
        types = self._types
        cloud = make_cloud(
            points, types[CLOUD_TYPE], types["sensor_msgs/msg/PointField"], self._header(stamp_ns, FRAME)
        )
        cloud.data = np.frombuffer(cloud.data, np.uint8)
        return self._serialized(cloud, CLOUD_TYPE)

    def tf(self, transforms: Iterable[tuple[Matrices, str, str, int]]) -> memoryview:
        """(matrix parent <- child, parent, child, stamp) of each."""
        types = self._types
        stamped = []
        for matrix, parent, child, stamp_ns in transforms:
            x, y, z, w = quaternion(matrix[:3, :3])
            vector = types["geometry_msgs/msg/Vector3"](*(float(value) for value in matrix[:3, 3]))
            turn = types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)
            stamped.append(
                types["geometry_msgs/msg/TransformStamped"](
                    header=self._header(stamp_ns, parent),
                    child_frame_id=child,
                    transform=types["geometry_msgs/msg/Transform"](translation=vector, rotation=turn),
                )
            )
        return self._serialized(types[TF_TYPE](transforms=stamped), TF_TYPE)

    def _header(self, stamp_ns: int, frame: str) -> Any:
        stamp = self._types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)

    def _serialized(self, message: Any, kind: str) -> memoryview:
        serialized: memoryview = self._store.serialize_cdr(message, kind)
        return serialized


@dataclass(frozen=True)
class FromBag:
    """How a bag's clouds are read for a sequence.

    topic: which clouds; None: the only ones. cloud: how intensities become remissions. truth_field: the field with the
    class of every point, in `labels`; a field raw_label, as `sequence_to_bag` writes it, goes before it.
    """

    topic: str | None = None
    cloud: CloudSettings = CLOUD_SETTINGS
    truth_field: str = "ground_truth"
    labels: LabelSet = SEMANTIC_KITTI


def bag_to_sequence(
    bag: Path, root: Path, name: str, settings: FromBag, *, force: bool = False, progress: Progress | None = None
) -> str:
    """Write a bag's clouds as sequence `name` of a SemanticKITTI root. Returns a line on what it holds.

    Labels are written where the first cloud has some, times always, poses where /tf holds the sensor's pose with every
    cloud's stamp. Raises UserError naming the bag and the cloud that cannot be used; then there is no sequence.
    """
    if not (len(name) == 2 and name.isdigit()):
        raise UserError(f"a sequence's name is two digits ('00'), found '{name}'")
    target = root / "sequences" / name
    if target.exists() and not force:
        raise UserError(f"{target} is there already; pass --force to overwrite it")
    with BagReader(bag) as reader, _draft_of(target) as draft:
        topic = reader.cloud_topic(settings.topic)
        total = reader.count(topic)
        stamps: list[int] = []
        frame, labelled = "", False
        for number, message in enumerate(reader.messages(topic)):
            cloud = reader.cloud(message)
            try:
                labelled = _write_cloud(draft, number, cloud, settings, labelled)
            except UserError as error:
                raise UserError(f"bag {bag}, cloud {number + 1} of {topic}: {error}") from error
            stamps.append(_stamp_ns(cloud.header.stamp))
            if stamps[-2:] != sorted(set(stamps[-2:])):
                raise UserError(f"bag {bag}, cloud {number + 1} of {topic}: its stamp is not after the one before it")
            frame = frame or str(cloud.header.frame_id)
            if progress is not None:
                progress(number + 1, total)
        poses, to_camera = _poses(reader, frame, stamps)
        for file, text in sequence_texts(np.array(stamps, np.int64), poses, to_camera).items():
            kitti.write_atomically(draft / file, text.encode())
    parts = [f"{len(stamps)} scans", "with labels" if labelled else "without labels"]
    return f"{' '.join(parts)}, {'without' if poses is None else 'with'} poses"


class _draft_of:  # noqa: N801 - reads as a function
    """A folder beside the target, moved there when the block ends well, gone otherwise."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._workplace = Path(tempfile.mkdtemp(dir=self._target.parent, prefix=f".{self._target.name}."))
            (self._workplace / "new").mkdir()
        except OSError as error:
            raise UserError(f"cannot write {self._target}: {error.strerror or error}") from error
        return self._workplace / "new"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self._target.exists():
                    self._target.replace(self._workplace / "replaced")
                (self._workplace / "new").replace(self._target)
        except OSError as error:
            raise UserError(f"cannot write {self._target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(self._workplace, ignore_errors=True)


def _write_cloud(draft: Path, number: int, cloud: Any, settings: FromBag, labelled: bool) -> bool:
    """One cloud as .bin, and .label where it has labels; either all clouds have some or none. Returns whether."""
    points = decode(cloud, settings.cloud).points
    fields = read_layout(cloud).fields
    has = "raw_label" in fields or settings.truth_field in fields
    if number and has != labelled:
        raise UserError(f"{'has' if has else 'lacks'} labels, unlike the clouds before it")
    if has:
        if "raw_label" in fields:
            words = read_field(cloud, "raw_label")
        else:
            words = settings.labels.to_raw(read_field(cloud, settings.truth_field))
        kitti.write_labels(draft / "labels" / f"{number:06d}.label", words)
    kitti.write_scan(draft / "velodyne" / f"{number:06d}.bin", points)
    return has


def _poses(reader: BagReader, frame: str, stamps: list[int]) -> tuple[Matrices | None, Matrices]:
    """The sensor's poses at the stamps, (N, 4, 4), or None where one is missing; and the way to its camera."""
    found: dict[int, Matrices] = {}
    to_camera = NOMINAL_TR
    for transform in _transforms(reader):
        if transform.child_frame_id.lstrip("/") == frame.lstrip("/"):
            found[_stamp_ns(transform.header.stamp)] = _matrix(transform.transform)
        elif transform.child_frame_id == CAMERA_FRAME and transform.header.frame_id == frame:
            to_camera = np.linalg.inv(_matrix(transform.transform))
    if not stamps or any(stamp not in found for stamp in stamps):
        return None, to_camera
    return np.stack([found[stamp] for stamp in stamps]), to_camera


def _transforms(reader: BagReader) -> Iterator[Any]:
    for topic in ("/tf", "/tf_static"):
        for message in reader.messages(topic, _TF_TYPES):
            yield from reader.decoded(message, TF_TYPE).transforms


def _matrix(transform: Any) -> Matrices:
    shift, turn = transform.translation, transform.rotation
    return transform_matrix((shift.x, shift.y, shift.z), (turn.x, turn.y, turn.z, turn.w))


def _stamp_ns(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
