"""Bags come in (ROS 1, ROS 2 as sqlite3 or mcap), their messages go out one by one; rosbags knows the formats.

Nothing is trusted: whatever rosbags stumbles over in a file becomes a UserError that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError, missing_package

CLOUD_TYPE = "sensor_msgs/msg/PointCloud2"
ROS1, SQLITE3, MCAP = "ros1", "sqlite3", "mcap"
STORAGES = (ROS1, SQLITE3, MCAP)
STORAGE_BY_SUFFIX = {".bag": ROS1, ".db3": SQLITE3, ".mcap": MCAP}
_METADATA = "metadata.yaml"


@dataclass(frozen=True, eq=False)
class BagMessage:
    """One message: its connection (rosbags' own), when it was received (nanoseconds), its bytes as stored."""

    connection: Any
    time_ns: int
    raw: bytes


class BagReader:
    """An open bag. Use it with `with`; raises UserError naming the file where it cannot be read.

    path: a ROS 1 .bag, a ROS 2 bag's folder, or a single .mcap or .db3 file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.storage = storage_of(self.path)
        self.connections: list[Any] = []
        self._read = 0

    def __enter__(self) -> BagReader:
        rosbags_or_refuse("reading a bag")
        from rosbags import rosbag1, rosbag2

        with self._blaming_the_file("cannot be opened"):
            self._reader: Any = rosbag1.Reader(self.path) if self.is_ros1 else rosbag2.Reader(self.path)
            self._reader.open()
            self.connections = list(self._reader.connections)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def is_ros1(self) -> bool:
        """Whether messages are serialised as ROS 1 does, not as CDR."""
        return self.storage == ROS1

    def cloud_topic(self, wanted: str | None = None, option: str = "--topic") -> str:
        """The topic whose clouds are meant: the wanted one, or the only one that holds clouds.

        Raises UserError, naming what the bag holds, where there is no such topic, none with clouds, or several.
        """
        counts: dict[str, int] = {}
        for connection in self.connections:
            if connection.msgtype == CLOUD_TYPE:
                counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
        filled = {topic: count for topic, count in sorted(counts.items()) if count}
        shown = ", ".join(f"{topic} ({count} clouds)" for topic, count in filled.items())
        if wanted is not None:
            if wanted in filled:
                return wanted
            kinds = sorted({c.msgtype for c in self.connections if c.topic == wanted})
            if wanted in counts:
                found = f"topic {wanted} of bag {self.path} holds no clouds"
            elif kinds:
                found = f"topic {wanted} of bag {self.path} holds {', '.join(kinds)}, expected {CLOUD_TYPE}"
            else:
                found = f"bag {self.path} has no topic {wanted}"
            raise UserError(f"{found} (topics with clouds: {shown or 'none'})")
        if not filled:
            topics = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in self.connections}))
            raise UserError(f"bag {self.path} holds no clouds ({CLOUD_TYPE}); topics: {topics or 'none'}")
        if len(filled) > 1:
            raise UserError(f"bag {self.path} has clouds on several topics: {shown}; choose one with {option}")
        return next(iter(filled))

    def count(self, topic: str) -> int:
        """How many clouds a topic holds."""
        return sum(c.msgcount for c in self.connections if c.topic == topic and c.msgtype == CLOUD_TYPE)

    def messages(self, topic: str | None = None, kinds: Collection[str] = (CLOUD_TYPE,)) -> Iterator[BagMessage]:
        """The messages in order of time: those of one topic that are of these types, or everything."""
        chosen = [c for c in self.connections if topic is None or (c.topic == topic and c.msgtype in kinds)]
        if not chosen:
            return
        self._read = 0
        with self._blaming_the_file("cannot be read"):
            messages = iter(self._reader.messages(connections=chosen))
        while True:
            with self._blaming_the_file("cannot be read"):
                found = next(messages, None)
            if found is None:
                return
            self._read += 1
            yield BagMessage(*found)

    def cloud(self, message: BagMessage) -> Any:
        """A message as a PointCloud2 of rosbags. Raises UserError where its bytes are none."""
        return self.decoded(message, CLOUD_TYPE)

    def decoded(self, message: BagMessage, kind: str) -> Any:
        """A message as one of ROS's own types. Raises UserError where its bytes are none."""
        with self._blaming_the_file(f"has a message on {message.connection.topic} that is no {kind}"):
            if self.is_ros1:
                return ros1_types().deserialize_ros1(message.raw, kind)
            return ros2_types().deserialize_cdr(message.raw, kind)

    def serialized(self, cloud: Any) -> bytes | memoryview:
        """A PointCloud2 as this bag stores it: the inverse of `cloud`."""
        if self.is_ros1:
            return ros1_types().serialize_ros1(cloud, CLOUD_TYPE)
        return ros2_types().serialize_cdr(cloud, CLOUD_TYPE)

    def cdr(self, message: BagMessage) -> bytes:
        """A cloud's bytes as ROS 2 sends them: as stored in a ROS 2 bag, converted from a ROS 1 bag."""
        if not self.is_ros1:
            return message.raw
        with self._blaming_the_file(f"has a message on {message.connection.topic} that is no {CLOUD_TYPE}"):
            return bytes(ros2_types().ros1_to_cdr(message.raw, CLOUD_TYPE))

    @contextmanager
    def _blaming_the_file(self, what: str) -> Iterator[None]:
        """Whatever happens within is the file's fault: rosbags' parsers raise almost anything on damaged bytes."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
            after = f" after {self._read} messages" if self._read else ""
            raise UserError(
                f"bag {self.path} {what}{after}: {reason or type(error).__name__}. If it is truncated, damaged or "
                f"still being recorded: {_RESCUE[self.storage]}"
            ) from error


_RESCUE = {
    ROS1: "`rosbag reindex` may save what it holds",
    SQLITE3: "`ros2 bag reindex` may save what it holds",
    MCAP: "`mcap recover` and `ros2 bag reindex` may save what it holds",
}


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: by its suffix, or as a folder with metadata.yaml."""
    return (path / _METADATA).is_file() if path.is_dir() else path.suffix in STORAGE_BY_SUFFIX


def find_bags(folder: Path) -> list[Path]:
    """All bags below a folder, in order of name; hidden files and folders are left out (they may be half-written)."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_bag(path):
            found.append(path)
        elif path.is_dir() and not path.is_symlink():
            found += find_bags(path)
    return found


def storage_of(path: Path) -> str:
    """How a bag is stored, one of STORAGES. Raises UserError where nothing is there, or nothing that is a bag."""
    if path.is_dir():
        if not (path / _METADATA).is_file():
            raise UserError(
                f"folder {path} is no bag: it has no {_METADATA}. Where a recording broke off, `ros2 bag reindex` "
                "makes one, or give the .mcap or .db3 file itself"
            )
        text = (path / _METADATA).read_text(encoding="utf-8", errors="replace")
        return MCAP if re.search(r"^\s*storage_identifier:\s*[\"']?mcap", text, re.M) else SQLITE3
    if not path.exists():
        raise UserError(f"there is no bag {path}")
    if path.suffix not in STORAGE_BY_SUFFIX:
        raise UserError(f"{path} is no bag: expected a .bag, .mcap or .db3 file, or a ROS 2 bag's folder")
    return STORAGE_BY_SUFFIX[path.suffix]


def rosbags_or_refuse(purpose: str) -> None:
    """Raise the error that says how to install rosbags, where it is not there."""
    try:
        import rosbags.rosbag2  # noqa: F401
    except ImportError as error:
        raise missing_package("rosbags", purpose, "bags") from error


@cache
def ros1_types() -> Any:
    """The message types of ROS 1."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC)


@cache
def ros2_types() -> Any:
    """The message types of ROS 2."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)
