# SPDX-License-Identifier: Apache-2.0
"""Writer of rosbags (ROS 1, and ROS 2 as mcap or sqlite3) that leaves a complete bag or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sqsegv3_ros.data.rosbag_reader import (
    MCAP,
    ROS1,
    SQLITE3,
    STORAGE_BY_SUFFIX,
    BagReader,
    require_rosbags,
    ros2_types,
)
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import atomic_output, refuse_existing

Raw = bytes | memoryview
_UNSET_HASH = "RIHS01_" + 64 * "0"  # REP 2016's value for an unknown type hash
_ROS1_NAMES = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}  # types that have another name in ROS 2
# types with the same name but another layout in ROS 2
_ROS2_OWN = ("builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration", "std_msgs/msg/Header")


@dataclass(frozen=True)
class Channel:
    """A topic of a bag that is being written.

    Attributes:
        connection: The connection of rosbags.
        convert: Converts messages from the storage of the source to that of the bag.
    """

    connection: Any
    convert: Callable[[Raw], Raw]


def default_storage(path: Path) -> str:
    """Return the storage of a new ROS 2 bag at this path: sqlite3 for a .db3 file, otherwise mcap."""
    return SQLITE3 if path.suffix == ".db3" else MCAP


class BagWriter:
    """Writes a bag. Use it in a `with` block; the bag exists only if the block succeeds.

    Args:
        path: A .bag file (storage ros1), a ROS 2 bag's folder, or a single .mcap or .db3 file.
        storage: One of STORAGES.
        force: Overwrite an existing bag.
        notes: Custom metadata of a ROS 2 bag.

    Raises:
        UserError: The bag exists, the path does not fit the storage or cannot be written, or the disk is full.
    """

    def __init__(
        self, path: str | Path, storage: str, *, force: bool = False, notes: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.storage = Path(path), storage
        self._notes = notes or {}
        expected = STORAGE_BY_SUFFIX.get(self.path.suffix)
        self._single_file = expected in (MCAP, SQLITE3)
        if expected != storage and (expected is not None or storage == ROS1):
            raise UserError(
                f"{self.path} cannot hold a bag of storage {storage}: a ROS 1 bag ends with .bag; a ROS 2 bag is a "
                "folder without such an ending, or a single file that ends with .mcap or .db3 according to its storage"
            )
        refuse_existing(self.path, force)
        require_rosbags("writing a bag")

    def __enter__(self) -> BagWriter:
        with ExitStack() as stack:
            self._draft = stack.enter_context(atomic_output(self.path))
            with self._os_errors_as_user_errors():
                self._open()
            stack.push(self._finish)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def _open(self) -> None:
        # rosbags writes a ROS 2 bag as a folder, and names the file in it after the folder
        self._written = self._draft.with_suffix("") if self._single_file else self._draft
        if self.storage == ROS1:
            from rosbags.rosbag1 import Writer as Writer1

            self._writer: Any = Writer1(self._written)
        else:
            from rosbags.rosbag2 import StoragePlugin, Writer

            plugin = StoragePlugin.MCAP if self.storage == MCAP else StoragePlugin.SQLITE3
            self._writer = Writer(self._written, version=9, storage_plugin=plugin)
            for name, value in self._notes.items():
                self._writer.set_custom_data(name, value)
        self._channels: dict[Any, Channel] = {}
        self._writer.open()

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the draft, or abandon it after an error."""
        try:
            if kind is None:
                with self._os_errors_as_user_errors():
                    self._writer.close()
                    if self._single_file:
                        (self._written / self._draft.name).replace(self._draft)
        finally:
            with suppress(Exception):
                self._writer.abort()

    def add(self, topic: str, kind: str) -> Channel:
        """Add a topic of a standard message type to a ROS 2 bag; its messages are written as CDR."""
        with self._os_errors_as_user_errors():
            connection = self._writer.add_connection(topic, kind, typestore=ros2_types())
        return Channel(connection, lambda raw: raw)

    def add_like(self, reader: BagReader, source: Any, topic: str | None = None) -> Channel:
        """Add a topic like one of another bag. Called again for the same topic, return the same channel.

        Messages keep their bytes between bags of the same ROS version, and are converted from ROS 1 to ROS 2.

        Args:
            reader: The other bag.
            source: Its connection.
            topic: Name in this bag; None for the same name.

        Raises:
            UserError: The message type cannot be converted.
        """
        topic = topic or source.topic
        key = (topic, source.msgtype, repr(source.ext))
        if key not in self._channels:
            with self._os_errors_as_user_errors():
                if self.storage == ROS1:
                    self._channels[key] = self._like_ros1(source, topic)
                elif reader.is_ros1:
                    self._channels[key] = self._converted(reader, source, topic)
                else:
                    self._channels[key] = self._like_ros2(source, topic)
        return self._channels[key]

    def write(self, channel: Channel, time_ns: int, raw: Raw) -> None:
        """Add a message with the bytes of its source bag."""
        data = channel.convert(raw)
        with self._os_errors_as_user_errors():
            self._writer.write(channel.connection, time_ns, data)

    def _like_ros1(self, source: Any, topic: str) -> Channel:
        connection = self._writer.add_connection(
            topic,
            source.msgtype,
            msgdef=source.msgdef.data,
            md5sum=source.digest,
            callerid=source.ext.callerid,
            latching=source.ext.latching,
        )
        return Channel(connection, lambda raw: raw)

    def _like_ros2(self, source: Any, topic: str) -> Channel:
        text, digest = source.msgdef.data, source.digest
        if not text and source.msgtype in ros2_types().fielddefs:  # older bags store no definitions
            text = ros2_types().generate_msgdef(source.msgtype, ros_version=2)[0]
            digest = digest or ros2_types().hash_rihs01(source.msgtype)
        connection = self._writer.add_connection(
            topic,
            source.msgtype,
            msgdef=text,
            rihs01=digest or _hash_of(text, source.msgtype),
            serialization_format=source.ext.serialization_format,
            offered_qos_profiles=source.ext.offered_qos_profiles,
        )
        return Channel(connection, lambda raw: raw)

    def _converted(self, reader: BagReader, source: Any, topic: str) -> Channel:
        """Add a ROS 1 topic to a ROS 2 bag. ROS 2 must define the type with the same layout, or not at all."""
        from rosbags.convert.converter import LATCH, is_same_wireformat

        kind = _ROS1_NAMES.get(source.msgtype, source.msgtype)
        ros2 = ros2_types()
        try:
            store = _typestore_of(source.msgdef.data, kind)
            same_layout = kind not in ros2.fielddefs or is_same_wireformat(store, ros2, kind, kind)
        except Exception as error:  # the file's own definitions may be damaged
            raise UserError(
                f"bag {reader.path}: the definition of {source.msgtype} (topic {source.topic}) cannot be read "
                f"({error}); keep the bag's own storage ({reader.storage})"
            ) from error
        if not same_layout:
            raise UserError(
                f"bag {reader.path}: {source.msgtype} (topic {source.topic}) has another layout in ROS 2, so its "
                f"messages cannot be written to storage {self.storage}; keep the bag's own storage "
                f"({reader.storage}), or convert the bag with rosbags-convert first"
            )
        connection = self._writer.add_connection(
            topic, kind, typestore=store, offered_qos_profiles=LATCH if source.ext.latching else ()
        )
        number = 0

        def convert(raw: Raw) -> Raw:
            nonlocal number
            number += 1
            try:
                return bytes(store.ros1_to_cdr(raw, kind))
            except Exception as error:
                raise UserError(f"bag {reader.path}: message {number} of {source.topic}: {error}") from error

        return Channel(connection, convert)

    @contextmanager
    def _os_errors_as_user_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot write bag {self.path}: {reason}") from error


def _hash_of(definition: str, kind: str) -> str:
    """Hash a message type by its definition; the value for an unknown hash if the definition cannot be parsed."""
    try:
        return str(_typestore_of(definition, kind).hash_rihs01(kind))
    except Exception:  # IDL or another dialect; the messages can be copied nevertheless
        return _UNSET_HASH


def _typestore_of(definition: str, kind: str) -> Any:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.EMPTY)
    ros2_definitions = {name: ros2_types().fielddefs[name] for name in _ROS2_OWN}
    store.register({**get_types_from_msg(definition, kind), **ros2_definitions})
    return store
