# SPDX-License-Identifier: Apache-2.0
"""Reader of rosbags (ROS 1, and ROS 2 as sqlite3 or mcap), by the package rosbags.

Bags are untrusted input: any error that rosbags raises on a file becomes a UserError that names the file.
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
    """A message of a bag.

    Attributes:
        connection: Its connection of rosbags.
        time_ns: Time of receipt, nanoseconds.
        raw: Its bytes as stored.
    """

    connection: Any
    time_ns: int
    raw: bytes


class BagReader:
    """Reads a bag. Use it in a `with` block.

    Args:
        path: A ROS 1 .bag file, a ROS 2 bag's folder, or a single .mcap or .db3 file.

    Raises:
        UserError: The bag does not exist or cannot be read; also while reading it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.storage = storage_of(self.path)
        self.connections: list[Any] = []
        self._messages_read = 0

    def __enter__(self) -> BagReader:
        require_rosbags("reading a bag")
        from rosbags import rosbag1, rosbag2

        with self._errors_name_the_file("cannot be opened"):
            self._reader: Any = rosbag1.Reader(self.path) if self.is_ros1 else rosbag2.Reader(self.path)
            self._reader.open()
            self.connections = list(self._reader.connections)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def is_ros1(self) -> bool:
        """Whether messages are serialized by ROS 1, not as CDR."""
        return self.storage == ROS1

    @property
    def notes(self) -> dict[str, str]:
        """Custom metadata of a ROS 2 bag's folder; a single file has none."""
        return {} if self.is_ros1 else dict(self._reader.storage.metadata.custom or {})

    def cloud_topic(self, requested: str | None = None, option: str = "--topic") -> str:
        """Select the topic to read clouds from: the requested topic, or the only topic with clouds.

        Args:
            requested: The requested topic; None for the only one with clouds.
            option: Command-line option that requests a topic, for error messages.

        Raises:
            UserError: The topic has no clouds, or none was requested and there is not exactly one topic with clouds.
        """
        counts: dict[str, int] = {}
        for connection in self.connections:
            if connection.msgtype == CLOUD_TYPE:
                counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
        filled = {topic: count for topic, count in sorted(counts.items()) if count}
        available = ", ".join(f"{topic} ({count} clouds)" for topic, count in filled.items())
        if requested is not None:
            if requested in filled:
                return requested
            kinds = sorted({c.msgtype for c in self.connections if c.topic == requested})
            if requested in counts:
                found = f"topic {requested} of bag {self.path} has no clouds"
            elif kinds:
                found = f"topic {requested} of bag {self.path} holds {', '.join(kinds)}; expected {CLOUD_TYPE}"
            else:
                found = f"bag {self.path} has no topic {requested}"
            raise UserError(f"{found} (topics with clouds: {available or 'none'})")
        if not filled:
            topics = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in self.connections}))
            raise UserError(f"bag {self.path} has no clouds ({CLOUD_TYPE}); topics: {topics or 'none'}")
        if len(filled) > 1:
            raise UserError(f"bag {self.path} has clouds on several topics: {available}; choose one with {option}")
        return next(iter(filled))

    def count(self, topic: str) -> int:
        """Count the clouds of a topic."""
        return sum(c.msgcount for c in self.connections if c.topic == topic and c.msgtype == CLOUD_TYPE)

    def messages(self, topic: str | None = None, kinds: Collection[str] = (CLOUD_TYPE,)) -> Iterator[BagMessage]:
        """Iterate over messages in order of time.

        Args:
            topic: Only messages of this topic, and of these types; None for all messages of the bag.
            kinds: Message types.
        """
        connections = [c for c in self.connections if topic is None or (c.topic == topic and c.msgtype in kinds)]
        if not connections:
            return
        self._messages_read = 0
        with self._errors_name_the_file("cannot be read"):
            messages = iter(self._reader.messages(connections=connections))
        while True:
            with self._errors_name_the_file("cannot be read"):
                message = next(messages, None)
            if message is None:
                return
            self._messages_read += 1
            yield BagMessage(*message)

    def cloud(self, message: BagMessage) -> Any:
        """Deserialize a message as a PointCloud2."""
        return self.deserialize(message, CLOUD_TYPE)

    def deserialize(self, message: BagMessage, kind: str) -> Any:
        """Deserialize a message as a standard message type.

        Raises:
            UserError: The bytes are not a message of that type.
        """
        with self._errors_name_the_file(f"has a message on {message.connection.topic} that is not a {kind}"):
            if self.is_ros1:
                return ros1_types().deserialize_ros1(message.raw, kind)
            return ros2_types().deserialize_cdr(message.raw, kind)

    def serialize(self, cloud: Any) -> bytes | memoryview:
        """Serialize a PointCloud2 as this bag stores it; the inverse of `cloud`."""
        if self.is_ros1:
            return ros1_types().serialize_ros1(cloud, CLOUD_TYPE)
        return ros2_types().serialize_cdr(cloud, CLOUD_TYPE)

    def cdr(self, message: BagMessage) -> bytes:
        """Return a cloud as CDR, as ROS 2 publishes it: unchanged from a ROS 2 bag, converted from a ROS 1 bag."""
        if not self.is_ros1:
            return message.raw
        with self._errors_name_the_file(f"has a message on {message.connection.topic} that is not a {CLOUD_TYPE}"):
            return bytes(ros2_types().ros1_to_cdr(message.raw, CLOUD_TYPE))

    @contextmanager
    def _errors_name_the_file(self, what: str) -> Iterator[None]:
        """Attribute any error to the file: the parsers of rosbags raise errors of all kinds on damaged bytes."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
            after = f" after {self._messages_read} messages" if self._messages_read else ""
            raise UserError(
                f"bag {self.path} {what}{after}: {reason or type(error).__name__}. If it is truncated, damaged or "
                f"still being recorded: {_RECOVERY[self.storage]}"
            ) from error


_RECOVERY = {
    ROS1: "`rosbag reindex` may recover its messages",
    SQLITE3: "`ros2 bag reindex` may recover its messages",
    MCAP: "`mcap recover` and `ros2 bag reindex` may recover its messages",
}


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: by its suffix, or a folder with metadata.yaml."""
    return (path / _METADATA).is_file() if path.is_dir() else path.suffix in STORAGE_BY_SUFFIX


def find_bags(folder: Path) -> list[Path]:
    """Find all bags below a folder, sorted by name, without hidden files and folders, which may be incomplete."""
    bags: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_bag(path):
            bags.append(path)
        elif path.is_dir() and not path.is_symlink():
            bags += find_bags(path)
    return bags


def storage_of(path: Path) -> str:
    """Determine how a bag is stored.

    Returns:
        One of STORAGES.

    Raises:
        UserError: There is no such file or folder, or it is not a rosbag.
    """
    if path.is_dir():
        if not (path / _METADATA).is_file():
            raise UserError(
                f"folder {path} is not a rosbag: it has no {_METADATA}. If a recording was interrupted, create it with "
                "`ros2 bag reindex`, or pass the .mcap or .db3 file itself"
            )
        text = (path / _METADATA).read_text(encoding="utf-8", errors="replace")
        return MCAP if re.search(r"^\s*storage_identifier:\s*[\"']?mcap", text, re.M) else SQLITE3
    if not path.exists():
        raise UserError(f"bag {path} does not exist; expected a .bag, .mcap or .db3 file, or a ROS 2 bag's folder")
    if path.suffix not in STORAGE_BY_SUFFIX:
        raise UserError(f"{path} is not a rosbag: expected a .bag, .mcap or .db3 file, or a ROS 2 bag's folder")
    return STORAGE_BY_SUFFIX[path.suffix]


def require_rosbags(purpose: str) -> None:
    """Raise UserError with the installation command if rosbags is not installed."""
    try:
        import rosbags.rosbag2  # noqa: F401
    except ImportError as error:
        raise missing_package("rosbags", purpose, "bags") from error


@cache
def ros1_types() -> Any:
    """Return the message types of ROS 1."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC)


@cache
def ros2_types() -> Any:
    """Return the message types of ROS 2."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)
