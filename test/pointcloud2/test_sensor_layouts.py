# SPDX-License-Identifier: Apache-2.0
"""Real recordings, decoded and encoded in the layouts of their drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import LAYOUTS, bytes_of, expected_columns, message, points_of, swapped
from conftest import DATA, needs_shared

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.pointcloud2 import CloudSettings, LabelledCloudWriter, decode, encode_filtered, make_cloud

pytestmark = needs_shared
WRITER = LabelledCloudWriter(SEMANTIC_KITTI.colors)
SENSORS = DATA / "other_sensors"
VELODYNES = (
    "mrpt_vlp16_XYZIRT.npy", "mrpt_hdl32_XYZIRT.npy", "nebula_vlp16_XYZIRT.npy", "veloview_monterey_hdl32e_XYZIRT.npy",
)  # fmt: skip
OUSTERS = ("ouster_OS-1-64_1024x10_fw20.npz", "ouster_OS-1-128_v2.3.0_1024x10_lb_n3.npz")
BINS = ("000104.bin", "vel000104.bin")


def velodyne_points(name: str, layout: str) -> np.ndarray:
    """A decoded Velodyne sweep in a driver's layout, with the fields that both have."""
    recorded = np.load(SENSORS / name)
    points = np.zeros(len(recorded), LAYOUTS[layout])
    for field in set(points.dtype.names) & set(recorded.dtype.names):
        points[field] = recorded[field]
    return points


def ouster_points(name: str) -> np.ndarray:
    """An organised Ouster frame in the driver's 48-byte layout."""
    frame = np.load(SENSORS / name)
    points = np.zeros(frame["range_mm"].shape, LAYOUTS["ouster 48"])
    points["x"], points["y"], points["z"] = np.moveaxis(frame["xyz"], -1, 0)
    points["intensity"] = frame["reflectivity"]
    points["reflectivity"], points["ambient"] = frame["reflectivity"], frame["near_ir"]
    points["range"], points["t"] = frame["range_mm"], frame["t_ns"] - frame["t_ns"].min()
    points["ring"] = np.arange(len(points))[:, None]
    return points


def check_round_trip(cloud: Any, points: np.ndarray, intensity: str = "intensity") -> None:
    """Decoded points equal the recording, and the labelled and the filtered cloud contain its bytes."""
    decoded = decode(cloud, CloudSettings(intensity_fields=(intensity,)))
    np.testing.assert_array_equal(decoded.points, expected_columns(points, intensity))
    labels = (np.arange(points.size) * 7 % 20).astype(np.uint8)
    confidences = np.linspace(0, 1, points.size, dtype=np.float32)
    out = WRITER.write(cloud, labels, confidences)
    assert (out.height, out.width) == (cloud.height, cloud.width)
    bytes_out = np.frombuffer(out.data, np.uint8).reshape(points.size, -1)
    assert bytes_out[:, : points.dtype.itemsize].tobytes() == points.tobytes()
    read = points_of(out).reshape(-1)
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["confidence"], confidences)
    assert bytes(encode_filtered(cloud, labels > 9).data) == bytes_of(points)[labels > 9].tobytes()


@pytest.mark.parametrize("layout", ["velodyne xyzirt 22", "velodyne xyzir 18", "pcl xyzirt 32", "xyzi 16"])
@pytest.mark.parametrize("name", VELODYNES)
def test_velodyne_sweeps(name, layout):
    points = velodyne_points(name, layout)
    check_round_trip(message(points), points)
    check_round_trip(message(swapped(points)), swapped(points))
    if "ring" in points.dtype.names:
        rings = decode(message(points)).rings
        assert rings.max() == (31 if "hdl32" in name else 15)
        np.testing.assert_array_equal(rings, np.load(SENSORS / name)["ring"])


@pytest.mark.parametrize("name", VELODYNES)
def test_velodyne_sweeps_as_recorded(name):
    points = np.load(SENSORS / name)
    check_round_trip(message(points), points)


@pytest.mark.parametrize("padding", [0, 64])
@pytest.mark.parametrize("name", OUSTERS)
def test_ouster_frames_organised_and_with_padded_rows(name, padding):
    points = ouster_points(name)
    cloud = message(points, padding)
    check_round_trip(cloud, points)
    check_round_trip(cloud, points, "reflectivity")
    rings = decode(cloud).rings.reshape(points.shape)
    assert (rings == np.arange(len(points))[:, None]).all()


@pytest.mark.parametrize("name", OUSTERS)
def test_ouster_frames_with_nan_for_no_return(name):
    points = ouster_points(name)
    nothing = points["range"] == 0
    assert nothing.any()
    for axis in "xyz":
        points[axis][nothing] = np.nan
    cloud = message(points, is_dense=False)
    check_round_trip(cloud, points)
    np.testing.assert_array_equal(np.isnan(decode(cloud).points[:, 0]), nothing.reshape(-1))


@pytest.mark.parametrize("name", BINS)
def test_rellis_scans(name):
    scan = np.fromfile(SENSORS / "rellis3d" / name, np.float32).reshape(-1, 4)
    points = scan.view(LAYOUTS["xyzi 16"])[:, 0]
    cloud = message(points)
    check_round_trip(cloud, points)
    np.testing.assert_array_equal(decode(cloud).points, scan)


@pytest.mark.parametrize("name", BINS)
def test_rellis_scans_in_autowares_layout(name):
    scan = np.fromfile(SENSORS / "rellis3d" / name, np.float32).reshape(-1, 4)
    points = np.zeros(len(scan), LAYOUTS["autoware xyzircaedt 32"])
    points["x"], points["y"], points["z"] = scan[:, :3].T
    points["intensity"] = scan[:, 3]
    points["distance"] = np.linalg.norm(scan[:, :3], axis=1)
    points["channel"] = np.arange(len(scan)) % 64
    check_round_trip(message(points), points)
    rings = decode(message(points), CloudSettings(ring_field="channel")).rings
    np.testing.assert_array_equal(rings, np.arange(len(scan)) % 64)


def bag_messages(path: Path) -> list[Any]:
    reader = pytest.importorskip("rosbags.rosbag1").Reader
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
    with reader(path) as bag:
        return [
            store.deserialize_ros1(raw, connection.msgtype)
            for connection, _, raw in bag.messages()
            if connection.msgtype == "sensor_msgs/msg/PointCloud2"
        ]


def test_luminar_clouds_of_a_ros1_bag():
    clouds = bag_messages(SENSORS / "luminar_ros1.bag")
    assert len(clouds) == 5
    for cloud in clouds:
        points = points_of(cloud).reshape(-1)
        assert len(points) > 30_000 and len(cloud.data) == points.nbytes
        raw = np.frombuffer(bytes(cloud.data), "<f4").reshape(-1, 8)  # documented layout: x y z - intensity
        decoded = decode(cloud, CloudSettings(ring_field="laser_id"))
        np.testing.assert_array_equal(decoded.points, raw[:, [0, 1, 2, 4]])
        np.testing.assert_array_equal(decoded.rings, points["laser_id"])
        assert decode(cloud).rings is None
        labels = (np.arange(len(points)) % 20).astype(np.uint8)
        out = WRITER.write(cloud, labels, np.ones(len(points), np.float32))
        assert type(out) is type(cloud) and out.header == cloud.header and isinstance(out.data, np.ndarray)
        assert out.data.reshape(-1, out.point_step)[:, :32].tobytes() == cloud.data.tobytes()
        np.testing.assert_array_equal(points_of(out)[0]["label"], labels)


def test_a_kitti_scan_survives_a_message_without_a_copy():
    scan = np.fromfile(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin", np.float32).reshape(-1, 4)
    messages = pytest.importorskip("sensor_msgs.msg")
    cloud = make_cloud(scan, messages.PointCloud2, messages.PointField)
    decoded = decode(cloud)
    np.testing.assert_array_equal(decoded.points, scan)
    assert np.shares_memory(decoded.points, np.frombuffer(cloud.data, np.uint8))
