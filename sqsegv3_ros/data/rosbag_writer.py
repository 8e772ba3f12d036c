"""Messages come in, a bag goes out, whole or not at all: it is written beside its place and moved there at the end."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
    ros2_types,
    rosbags_or_refuse,
)
from sqsegv3_ros.errors import UserError

Raw = bytes | memoryview
_UNSET_HASH = "RIHS01_" + 64 * "0"  # REP 2016's value for a type hash that is not known
_ROS1_NAMES = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}  # types that ROS 2 has under another name
# what ROS 2 names alike but lays out in its own way
_ROS2_OWN = ("builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration", "std_msgs/msg/Header")


@dataclass(frozen=True)
class Channel:
    """A topic of a bag that is written: rosbags' connection, and how bytes of the bag they come from get into it."""

    connection: Any
    convert: Callable[[Raw], Raw]


class BagWriter:
    """Writes a bag. Use it with `with`: the bag appears when the block ends well, and not at all otherwise.

    path: a .bag (storage ros1), a ROS 2 bag's folder, or a single .mcap or .db3 file. force: replace what is there.
    notes: kept in a ROS 2 bag's metadata. Raises UserError where the path cannot be written to or the disk is full.
    """

    def __init__(
        self, path: str | Path, storage: str, *, force: bool = False, notes: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.storage, self.force = Path(path), storage, force
        self._notes = notes or {}
        expected = STORAGE_BY_SUFFIX.get(self.path.suffix)
        self._single_file = expected in (MCAP, SQLITE3)
        if expected != storage and (expected is not None or storage == ROS1):
            raise UserError(
                f"{self.path} cannot hold a bag of storage {storage}: a ROS 1 bag's name ends with .bag, a ROS 2 bag "
                "is a folder, or a file that ends with .mcap or .db3 according to its storage"
            )
        if self.path.exists() and not force:
            raise UserError(f"{self.path} is there already; pass --force to overwrite it")
        rosbags_or_refuse("writing a bag")

    def __enter__(self) -> BagWriter:
        with self._blaming_the_place():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._workplace = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}."))
            try:
                self._open()
            except BaseException:
                shutil.rmtree(self._workplace, ignore_errors=True)
                raise
        return self

    def _open(self) -> None:
        # of a ROS 2 bag this is a folder, and its name becomes the name of the file in it
        self._draft = self._workplace / (self.path.stem if self._single_file else self.path.name)
        if self.storage == ROS1:
            from rosbags.rosbag1 import Writer as Writer1

            self._writer: Any = Writer1(self._draft)
        else:
            from rosbags.rosbag2 import StoragePlugin, Writer

            plugin = StoragePlugin.MCAP if self.storage == MCAP else StoragePlugin.SQLITE3
            self._writer = Writer(self._draft, version=9, storage_plugin=plugin)
            for name, value in self._notes.items():
                self._writer.set_custom_data(name, value)
        self._channels: dict[Any, Channel] = {}
        self._writer.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._blaming_the_place():
                    self._writer.close()
                    self._deliver()
        finally:
            with suppress(Exception):
                self._writer.abort()
            shutil.rmtree(self._workplace, ignore_errors=True)

    def _deliver(self) -> None:
        """Move the finished bag to its place; what it replaces goes only then."""
        finished = self._draft / self.path.name if self._single_file else self._draft
        if self.path.is_dir() or (self.path.exists() and finished.is_dir()):
            self.path.replace(self._workplace / "replaced")
        finished.replace(self.path)

    def add(self, topic: str, kind: str) -> Channel:
        """A new topic of one of ROS's own message types, whose messages come as CDR (ROS 2 storages only)."""
        with self._blaming_the_place():
            connection = self._writer.add_connection(topic, kind, typestore=ros2_types())
        return Channel(connection, lambda raw: raw)

    def add_like(self, reader: BagReader, source: Any, topic: str | None = None) -> Channel:
        """The same topic as in a bag that is read, or one like it under another name; made once, however often asked.

        source: the reader's connection. Messages keep their bytes where the bags store alike, and are converted from
        ROS 1 where not. Raises UserError where a type cannot be converted.
        """
        topic = topic or source.topic
        key = (topic, source.msgtype, repr(source.ext))
        if key not in self._channels:
            with self._blaming_the_place():
                if self.storage == ROS1:
                    self._channels[key] = self._like_ros1(source, topic)
                elif reader.is_ros1:
                    self._channels[key] = self._converted(reader, source, topic)
                else:
                    self._channels[key] = self._like_ros2(source, topic)
        return self._channels[key]

    def write(self, channel: Channel, time_ns: int, raw: Raw) -> None:
        """Add a message, as it is stored where it comes from."""
        data = channel.convert(raw)
        with self._blaming_the_place():
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
        if not text and source.msgtype in ros2_types().fielddefs:  # recorded before bags held definitions
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
        """A topic of a ROS 1 bag in a ROS 2 bag. ROS 2 must lay the type out alike, or not know it."""
        from rosbags.convert.converter import LATCH, is_same_wireformat
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        kind = _ROS1_NAMES.get(source.msgtype, source.msgtype)
        own = ros2_types()
        try:
            store: Any = get_typestore(Stores.EMPTY)
            types = get_types_from_msg(source.msgdef.data, kind)
            store.register({**types, **{name: own.fielddefs[name] for name in _ROS2_OWN}})
            alike = kind not in own.fielddefs or is_same_wireformat(store, own, kind, kind)
        except Exception as error:  # definitions come from the file
            raise UserError(
                f"bag {reader.path}: the definition of {source.msgtype} (topic {source.topic}) cannot be read "
                f"({error}); keep the bag's own storage ({reader.storage})"
            ) from error
        if not alike:
            raise UserError(
                f"bag {reader.path}: {source.msgtype} (topic {source.topic}) is another type in ROS 2, so its messages "
                f"cannot be copied into storage {self.storage}; keep the bag's own storage ({reader.storage}), or "
                "convert the bag with rosbags-convert first"
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
    def _blaming_the_place(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write bag {self.path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise UserError(f"cannot write bag {self.path}: {error}") from error


def _hash_of(definition: str, kind: str) -> str:
    """The hash of a message type by its definition's text; the value for 'not known' where that cannot be parsed."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    try:
        store: Any = get_typestore(Stores.EMPTY)
        own = {name: ros2_types().fielddefs[name] for name in _ROS2_OWN}
        store.register({**own, **get_types_from_msg(definition, kind)})
        return str(store.hash_rihs01(kind))
    except Exception:  # IDL, or a package's own dialect: the bytes are copied all the same
        return _UNSET_HASH
