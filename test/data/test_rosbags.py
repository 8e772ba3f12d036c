# SPDX-License-Identifier: Apache-2.0
"""Bags of every storage are read, or refused with the file's name, and written completely or not at all."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, needs_shared

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from recording import CLOUD, PERIOD_NS, STAMP_S, named, record, scans
from rosbags.highlevel import AnyReader

from sqsegv3_ros.data.rosbag_reader import STORAGES, BagReader, find_bags, ros2_types
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import read_field

FOUND = scans(3)


@pytest.fixture(params=STORAGES)
def bag(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return record(named(tmp_path, request.param), request.param, {"/lidar": FOUND})


def everything(path: Path) -> list[tuple[str, str, int, bytes]]:
    """What rosbags itself reads."""
    with AnyReader([path]) as reader:
        return [(c.topic, c.msgtype, time_ns, bytes(raw)) for c, time_ns, raw in reader.messages()]


def copied(source: Path, target: Path, storage: str) -> Path:
    with BagReader(source) as reader, BagWriter(target, storage) as writer:
        for message in reader.messages():
            writer.write(writer.add_like(reader, message.connection), message.time_ns, message.raw)
    return target


def test_clouds_are_read_in_order_with_time_of_receipt_stamp_and_points(bag: Path) -> None:
    with BagReader(bag) as reader:
        topic = reader.cloud_topic()
        assert (topic, reader.count(topic)) == ("/lidar", 3)
        for number, (message, scan) in enumerate(zip(reader.messages(topic), FOUND, strict=True)):
            cloud = reader.cloud(message)
            assert message.time_ns == STAMP_S * 10**9 + number * PERIOD_NS + 7_000_000
            assert (cloud.header.stamp.sec, cloud.header.stamp.nanosec) == (STAMP_S, number * PERIOD_NS)
            assert cloud.header.frame_id == "lidar"
            for name in ("x", "intensity", "ground_truth"):
                np.testing.assert_array_equal(read_field(cloud, name), scan[name])


def test_clouds_are_available_as_cdr_from_every_storage(bag: Path) -> None:
    with BagReader(bag) as reader:
        message = next(reader.messages("/lidar"))
        cloud = ros2_types().deserialize_cdr(reader.cdr(message), CLOUD)
        np.testing.assert_array_equal(cloud.data, np.frombuffer(FOUND[0].tobytes(), np.uint8))
        assert reader.is_ros1 or reader.cdr(message) == message.raw


def test_a_single_storage_file_is_a_bag_too(tmp_path: Path) -> None:
    for storage, suffix in (("mcap", "mcap"), ("sqlite3", "db3")):
        path = record(tmp_path / storage, storage, {"/lidar": FOUND}) / f"{storage}.{suffix}"
        with BagReader(path) as reader:
            assert reader.count(reader.cloud_topic()) == 3


def test_an_unusable_topic_is_refused_with_a_list_of_the_usable_ones(tmp_path: Path) -> None:
    two = record(tmp_path / "two", "mcap", {"/front": FOUND, "/rear": FOUND[:2], "/never": []})
    none = record(tmp_path / "none", "mcap", {})
    with BagReader(two) as reader:
        assert reader.cloud_topic("/rear") == "/rear"
        for wanted, words in (
            (None, ("/front (3 clouds), /rear (2 clouds)", "--topic")),
            ("/side", ("no topic /side", "/front (3 clouds)")),
            ("/text", ("/text", "std_msgs/msg/String", CLOUD, "/rear")),
            ("/never", ("/never", "has no clouds", "/front")),
        ):
            with pytest.raises(UserError) as error:
                reader.cloud_topic(wanted)
            assert all(word in str(error.value) for word in (*words, str(two))), error.value
    with (
        BagReader(none) as reader,
        pytest.raises(UserError, match=r"has no clouds.*topics: /silent .*String.*/tally"),
    ):
        reader.cloud_topic()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "does not exist"),
        ("absent.bag", "does not exist"),
        ("notes.txt", "is not a rosbag"),
        ("empty", "no metadata.yaml"),
    ],
)
def test_a_path_that_is_not_a_bag_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as error:
        BagReader(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def read_all(path: Path) -> int:
    with BagReader(path) as reader:
        topic = reader.cloud_topic()
        for message in reader.messages(topic):
            reader.cloud(message)
        return reader.count(topic)


def storage_file(bag: Path) -> Path:
    return bag if bag.is_file() else next(file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))


def test_a_truncated_bag_is_refused_by_name(bag: Path) -> None:
    file = storage_file(bag)
    whole = file.read_bytes()
    for part in np.linspace(0, 0.97, 15):
        file.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(UserError, match="bag") as error:
            read_all(bag)
        assert str(bag) in str(error.value)


def test_a_bag_with_damaged_bytes_is_read_or_refused_by_name(bag: Path) -> None:
    file = storage_file(bag)
    whole = file.read_bytes()
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        start = int(generator.integers(0, len(whole) - 64))
        damaged[start : start + 64] = generator.bytes(64)
        file.write_bytes(damaged)
        try:
            read_all(bag)
        except UserError as error:
            assert str(bag) in str(error)
            refused += 1
    assert refused


def test_metadata_without_its_file_is_refused(tmp_path: Path) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/lidar": FOUND})
    storage_file(bag).unlink()
    with pytest.raises(UserError, match=r"drive\.mcap"):
        read_all(bag)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [}")
    with pytest.raises(UserError, match="drive"):
        read_all(bag)


def test_bags_are_found_in_a_folder_except_hidden_drafts(tmp_path: Path) -> None:
    (tmp_path / "monday").mkdir()
    expected = [
        record(tmp_path / "monday" / "a.bag", "ros1", {"/lidar": FOUND[:1]}),
        record(tmp_path / "tuesday", "sqlite3", {"/lidar": FOUND[:1]}),
    ]
    loose = tmp_path / "monday" / "b.mcap"
    shutil.copy(storage_file(record(tmp_path / "x", "mcap", {"/lidar": FOUND[:1]})), loose)
    shutil.rmtree(tmp_path / "x")
    (tmp_path / ".tuesday.x1").mkdir()
    shutil.copytree(expected[1], tmp_path / ".tuesday.x1" / "tuesday")
    assert find_bags(tmp_path) == [expected[0], loose, expected[1]]


def test_a_copy_has_every_message_byte_for_byte_even_of_unknown_types(bag: Path, tmp_path: Path) -> None:
    with BagReader(bag) as reader:
        storage = reader.storage
    copy = copied(bag, named(tmp_path, storage, "copy"), storage)
    assert everything(copy) == everything(bag)
    assert not list(tmp_path.glob(".*"))


def test_a_ros_1_bag_becomes_a_ros_2_bag_with_the_same_values(tmp_path: Path) -> None:
    source = record(tmp_path / "drive.bag", "ros1", {"/lidar": FOUND})
    for target, storage in ((tmp_path / "new", "mcap"), (tmp_path / "old", "sqlite3"), (tmp_path / "one.mcap", "mcap")):
        copied(source, target, storage)
        with AnyReader([source]) as before, AnyReader([target]) as after:
            pairs = list(zip(before.messages(), after.messages(), strict=True))
            assert len(pairs) == 9
            for (old, old_ns, old_raw), (new, new_ns, new_raw) in pairs:
                assert (old.topic, old.msgtype, old_ns) == (new.topic, new.msgtype, new_ns)
                one, other = before.deserialize(old_raw, old.msgtype), after.deserialize(new_raw, new.msgtype)
                if old.msgtype == CLOUD:
                    np.testing.assert_array_equal(one.data, other.data)
                    assert (one.header.stamp, one.header.frame_id) == (other.header.stamp, other.header.frame_id)
                elif old.topic == "/tally":
                    assert (one.count, one.words, list(one.values)) == (other.count, other.words, list(other.values))
                else:
                    assert one.data == other.data
    assert (tmp_path / "one.mcap").is_file()


@needs_shared
def test_a_real_ros_1_bag_becomes_a_ros_2_bag_with_the_same_values(tmp_path: Path) -> None:
    source = DATA / "other_sensors" / "luminar_ros1.bag"
    copied(source, tmp_path / "luminar", "mcap")
    with AnyReader([source]) as before, AnyReader([tmp_path / "luminar"]) as after:
        for (old, _, old_raw), (new, _, new_raw) in zip(before.messages(), after.messages(), strict=True):
            one, other = before.deserialize(old_raw, old.msgtype), after.deserialize(new_raw, new.msgtype)
            if old.topic == "/base_pose_ground_truth":
                assert one.pose.pose.position.x == other.pose.pose.position.x
                np.testing.assert_array_equal(one.pose.covariance, other.pose.covariance)
            elif old.topic == "/base_scan":
                np.testing.assert_array_equal(one.ranges, other.ranges)
            else:
                np.testing.assert_array_equal(one.data, other.data)


def test_an_error_while_writing_leaves_no_bag(tmp_path: Path) -> None:
    source = record(tmp_path / "drive", "mcap", {"/lidar": FOUND})
    for storage in STORAGES[1:]:
        target = tmp_path / "out" / storage
        with pytest.raises(RuntimeError), BagReader(source) as reader, BagWriter(target, storage) as writer:
            for message in reader.messages():
                writer.write(writer.add_like(reader, message.connection), message.time_ns, message.raw)
                raise RuntimeError("power cut")
        assert not list((tmp_path / "out").iterdir())


def test_an_existing_bag_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    source = record(tmp_path / "drive", "mcap", {"/lidar": FOUND})
    target = record(tmp_path / "old", "sqlite3", {"/lidar": FOUND[:1]})
    before = everything(target)
    with pytest.raises(UserError, match="--force"):
        BagWriter(target, "mcap")
    with pytest.raises(RuntimeError), BagWriter(target, "mcap", force=True):
        raise RuntimeError
    assert everything(target) == before
    with BagReader(source) as reader, BagWriter(target, "mcap", force=True) as writer:
        for message in reader.messages():
            writer.write(writer.add_like(reader, message.connection), message.time_ns, message.raw)
    assert everything(target) == everything(source)
    assert sorted(p.name for p in target.iterdir()) == ["metadata.yaml", "old.mcap"]


@pytest.mark.parametrize("name", ["previous", "previous.mcap", "new", "new.mcap"])
def test_a_bag_may_have_any_name(tmp_path: Path, name: str) -> None:
    source = record(tmp_path / "drive", "mcap", {"/lidar": FOUND})
    for _ in range(2):
        with BagReader(source) as reader, BagWriter(tmp_path / name, "mcap", force=True) as writer:
            for message in reader.messages():
                writer.write(writer.add_like(reader, message.connection), message.time_ns, message.raw)
        assert everything(tmp_path / name) == everything(source)


def test_a_failed_rename_keeps_the_existing_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = record(tmp_path / "old", "sqlite3", {"/lidar": FOUND})
    before, rename, failed = everything(target), Path.replace, []

    def fail_once(source: Path, destination: Path) -> Path:
        if destination == target and not failed:
            failed.append(source)
            raise OSError(5, "Input/output error")
        return rename(source, destination)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(UserError, match="Input/output error"), BagWriter(target, "mcap", force=True):
        pass
    assert failed and everything(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_does_not_fit_the_storage_is_refused(tmp_path: Path) -> None:
    for name, storage in (("a.bag", "mcap"), ("a", "ros1"), ("a.mcap", "sqlite3"), ("a.db3", "ros1")):
        with pytest.raises(UserError, match="cannot hold"):
            BagWriter(tmp_path / name, storage)


COPY = """
import sys
from sqsegv3_ros.data.rosbag_writer import BagWriter
from sqsegv3_ros.data.rosbag_reader import BagReader
from sqsegv3_ros.errors import UserError
try:
    with BagReader(sys.argv[1]) as reader, BagWriter(sys.argv[2], reader.storage) as writer:
        for message in reader.messages():
            writer.write(writer.add_like(reader, message.connection), message.time_ns, message.raw)
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_full_disk_is_reported_and_leaves_no_bag(bag: Path, tmp_path: Path) -> None:
    with BagReader(bag) as reader:
        target = named(tmp_path / "full", reader.storage, "copy")

    def small_disk() -> None:  # the kernel refuses larger files
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    done = subprocess.run(
        [sys.executable, "-c", COPY, str(bag), str(target)],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"refused: cannot write bag {target}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "full").iterdir())
