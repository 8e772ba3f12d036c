# SPDX-License-Identifier: Apache-2.0
"""Decoding of clouds, compared with numpy's structured types on the same bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from clouds import LAYOUTS, XYZ, PointField, expected_columns, layout, message, random_points, swapped

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import CloudError, CloudSettings, decode, read_field, read_layout

CONTAINERS = {
    "array": lambda data: __import__("array").array("B", data),
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "numpy": lambda data: np.frombuffer(data, np.uint8),
    "unaligned memoryview": lambda data: memoryview(b"\0" + data)[1:],
}
FORMS = ("plain", "big-endian", "organised", "padded rows", "organised padded big-endian")


def in_form(points: np.ndarray, form: str) -> tuple[np.ndarray, int]:
    """Points in the form's shape and byte order, and its row padding."""
    if "big-endian" in form:
        points = swapped(points)
    if "organised" in form or "padded" in form:
        points = points.reshape(7, -1)
    return points, 5 if "padded" in form else 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_decoded_as_by_numpy(name, form):
    points, padding = in_form(random_points(LAYOUTS[name], 7 * 11, seed=3), form)
    decoded = decode(message(points, padding))
    np.testing.assert_array_equal(decoded.points, expected_columns(points))
    assert decoded.points.dtype == np.float32 and decoded.points.flags.c_contiguous and len(decoded) == 77
    if "ring" in points.dtype.names:
        assert decoded.rings.dtype == np.int32
        np.testing.assert_array_equal(decoded.rings, points["ring"].reshape(-1).astype(np.int32))
    else:
        assert decoded.rings is None


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["xyzi 16", "velodyne xyzirt 22", "float64 40"])
def test_data_may_be_any_buffer_of_bytes(name, container):
    points = random_points(LAYOUTS[name], 9)
    cloud = message(points, container=CONTAINERS[container])
    decoded = decode(cloud).points
    np.testing.assert_array_equal(decoded, expected_columns(points))
    assert decoded.flags.aligned and decoded.flags.c_contiguous


@pytest.mark.parametrize("shape", [(50,), (5, 10)])
def test_xyzi_is_not_copied(shape):
    cloud = message(random_points(LAYOUTS["xyzi 16"], shape))
    assert np.shares_memory(decode(cloud).points, np.frombuffer(cloud.data, np.uint8))


def test_converted_points_are_copied_and_the_message_is_unchanged():
    cloud = message(random_points(LAYOUTS["xyzi 16"], 50))
    before = bytes(cloud.data)
    for settings in (CloudSettings(intensity_scale=0.5), CloudSettings(intensity_fields=())):
        assert not np.shares_memory(decode(cloud, settings).points, np.frombuffer(cloud.data, np.uint8))
    assert bytes(cloud.data) == before


@pytest.mark.parametrize("name", ["xyzi 16", "pcl xyzi 32", "autoware xyzirc 16", "float64 40"])
def test_intensity_is_scaled(name):
    points = random_points(LAYOUTS[name], 40)
    decoded = decode(message(points), CloudSettings(intensity_scale=1 / 255))
    expected = expected_columns(points)
    expected[:, 3] *= np.float32(1 / 255)
    np.testing.assert_array_equal(decoded.points, expected)


def test_intensity_is_read_from_the_configured_field():
    points = random_points(LAYOUTS["ouster 48"], 40)
    decoded = decode(message(points), CloudSettings(intensity_fields=("reflectivity",)))
    np.testing.assert_array_equal(decoded.points, expected_columns(points, "reflectivity"))


@pytest.mark.parametrize("dtype", [layout(12, **XYZ), layout(16, **XYZ), LAYOUTS["xyzi 16"], LAYOUTS["float64 40"]])
def test_no_intensity_field_means_zeros(dtype):
    points = random_points(dtype, 40)
    decoded = decode(message(points), CloudSettings(intensity_fields=()))
    np.testing.assert_array_equal(decoded.points, expected_columns(points, ""))
    assert (decoded.points[:, 3] == 0).all()


def test_the_error_for_a_missing_intensity_names_the_fields_and_the_setting():
    cloud = message(random_points(layout(14, **XYZ, signal=(12, "u2")), 3))
    with pytest.raises(CloudError) as caught:
        decode(cloud)
    assert caught.value.reason == "missing_field"
    assert str(caught.value) == (
        "points have no field 'intensity' or 'reflectivity' or 'i' (fields: x, y, z, signal); "
        "set intensity_fields to ['signal'], or to [''] to use 0 for every point"
    )


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        (("i",), "i"),
        (("i", "reflectivity"), "reflectivity"),
        (("reflectivity", "i", "intensity"), "intensity"),
        (("signal", "reflectivity"), "reflectivity"),
    ],
)
def test_the_intensity_is_found_by_its_usual_names_in_their_order(fields, read):
    offsets = {name: (12 + 4 * index, "f4") for index, name in enumerate(fields)}
    points = random_points(layout(12 + 4 * len(fields), **XYZ, **offsets), 40)
    np.testing.assert_array_equal(decode(message(points)).points, expected_columns(points, read))


def test_rings_are_read_from_the_configured_field():
    points = random_points(LAYOUTS["autoware xyzirc 16"], 40)
    rings = decode(message(points), CloudSettings(ring_field="channel")).rings
    np.testing.assert_array_equal(rings, points["channel"].astype(np.int32))
    assert decode(message(random_points(LAYOUTS["velodyne xyzirt 22"], 3)), CloudSettings(ring_field="")).rings is None


def test_a_required_ring_that_is_missing_is_refused_with_the_likely_name():
    cloud = message(random_points(LAYOUTS["autoware xyzirc 16"], 3))
    with pytest.raises(CloudError, match=r"no field 'ring' \(fields: x, .*\); set ring_field to 'channel'"):
        decode(cloud, CloudSettings(ring_required=True))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("f4", [0, 63, -2, np.nan, np.inf, 1e30, 2.5], [0, 63, -2, -1, -1, -1, -1]),
        ("f8", [5, 2**31 - 1, 2**31, -(2**31), -np.inf], [5, 2**31 - 1, -1, -(2**31), -1]),
        ("u4", [0, 127, 2**31 - 1, 2**31, 2**32 - 1], [0, 127, 2**31 - 1, -1, -1]),
        ("i8", [-3, 2**40, 64], [-3, -1, 64]),
        ("i1", [-128, 127], [-128, 127]),
    ],
)
def test_rings_that_are_not_int32_become_minus_one(kind, values, expected):
    points = random_points(layout(24, **XYZ, intensity=(12, "f4"), ring=(16, kind)), len(values))
    points["ring"] = values
    assert decode(message(points)).rings.tolist() == expected


def test_invalid_points_keep_their_place():
    points = random_points(LAYOUTS["pcl xyzi 32"], (4, 6))
    points["x"][1, 2], points["y"][3, 0], points["z"][0, 5] = np.nan, np.inf, -np.inf
    decoded = decode(message(points, row_padding=8, is_dense=False)).points.reshape(4, 6, 4)
    assert np.isnan(decoded[1, 2, 0]) and decoded[3, 0, 1] == np.inf and decoded[0, 5, 2] == -np.inf
    assert np.isfinite(decoded).sum() == decoded.size - 3


@pytest.mark.parametrize("name", ["xyzi 16", "velodyne xyzirt 22", "float64 40"])
@pytest.mark.parametrize(("scale", "exponent"), [(0.085, 0.5), (1.0, 0.5), (0.25, 2.0)])
def test_intensity_is_raised_to_the_exponent_then_scaled(name, scale, exponent, recwarn):
    points = random_points(LAYOUTS[name], 40)
    points["intensity"] = np.arange(-4, 36)
    cloud = message(points)
    before = bytes(cloud.data)
    decoded = decode(cloud, CloudSettings(intensity_scale=scale, intensity_exponent=exponent))
    with np.errstate(invalid="ignore"):
        expected = scale * np.arange(-4.0, 36.0) ** exponent
    np.testing.assert_allclose(decoded.points[:, 3], expected, rtol=1e-6)  # NaN for roots of negative values
    np.testing.assert_array_equal(decoded.points[:, :3], expected_columns(points)[:, :3])
    assert bytes(cloud.data) == before and not recwarn.list


def test_float64_beyond_float32_becomes_inf_without_a_warning(recwarn):
    points = random_points(LAYOUTS["float64 40"], 4)
    points["x"] = [1e300, -1e300, 1e-300, np.pi]
    decoded = decode(message(points), CloudSettings(intensity_scale=1e38))
    assert decoded.points[:, 0].tolist() == [np.inf, -np.inf, 0, np.float32(np.pi)]
    assert not recwarn.list


def test_the_first_element_of_a_subarray_is_read():
    dtype = layout(30, x=(0, "f4", 3), y=(12, "f4"), z=(16, "f4"), intensity=(20, "u2", 4), ring=(28, "u1", 2))
    points = random_points(dtype, 20)
    decoded = decode(message(points))
    np.testing.assert_array_equal(decoded.points, expected_columns(points))
    np.testing.assert_array_equal(decoded.rings, points["ring"][:, 0])


def test_a_count_of_zero_means_one_as_in_pcl():
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 20)
    cloud = message(points)
    for field in cloud.fields:
        field.count = 0
    np.testing.assert_array_equal(decode(cloud).points, expected_columns(points))


def test_overlapping_fields_can_be_read():
    points = random_points(layout(16, **XYZ, intensity=(12, "f4"), i=(12, "u4")), 20)
    np.testing.assert_array_equal(read_field(message(points), "i"), points["i"])
    np.testing.assert_array_equal(decode(message(points)).points, expected_columns(points))


def test_pcl_padding_fields_may_repeat():
    points = random_points(LAYOUTS["pcl xyzi 32"], 20)
    cloud = message(points)
    cloud.fields += [PointField("_", 12, 2, 4), PointField("_", 20, 2, 12)]
    np.testing.assert_array_equal(decode(cloud).points, expected_columns(points))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["pcl normals 48", "velodyne xyzirt 22", "hesai 26", "integers 13"])
def test_any_field_can_be_read_in_its_own_type(name, form):
    points, padding = in_form(random_points(LAYOUTS[name], 77), form)
    cloud = message(points, padding)
    for field in points.dtype.names:
        values = read_field(cloud, field)
        flat = points[field].reshape(77, *points[field].shape[points.ndim :])
        np.testing.assert_array_equal(values, flat)
        assert values.dtype == flat.dtype.newbyteorder("=") and values.dtype.isnative
        assert not np.shares_memory(values, np.frombuffer(cloud.data, np.uint8))


def test_the_error_for_a_missing_field_lists_the_fields():
    with pytest.raises(CloudError, match=r"no field 'ground_truth' \(fields: x, y, z, intensity\)"):
        read_field(message(random_points(LAYOUTS["xyzi 16"], 2)), "ground_truth")


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
@pytest.mark.parametrize("name", ["xyzi 16", "velodyne xyzirt 22"])
def test_a_cloud_without_points_gives_empty_columns(name, shape):
    cloud = message(random_points(LAYOUTS[name], shape), row_padding=0)
    decoded = decode(cloud)
    assert decoded.points.shape == (0, 4) and decoded.points.dtype == np.float32
    assert (decoded.rings is not None) == ("ring" in LAYOUTS[name].names)
    assert read_field(cloud, "x").shape == (0,)


def test_equal_headers_share_one_layout_and_others_do_not():
    first, again, other = (
        message(random_points(LAYOUTS[name], n)) for name, n in (("ouster 48", 3), ("ouster 48", 9), ("hesai 26", 3))
    )
    assert read_layout(first) is read_layout(again)
    assert read_layout(first) is not read_layout(other)
    again.is_bigendian = True
    assert read_layout(first) is not read_layout(again)


@pytest.mark.parametrize(
    "wrong",
    [
        {"intensity_scale": 0},
        {"intensity_scale": float("nan")},
        {"intensity_scale": -1},
        {"intensity_exponent": 0},
        {"intensity_exponent": float("inf")},
        {"max_points": 0},
        {"ring_required": True, "ring_field": ""},
    ],
)
def test_settings_are_checked_when_made(wrong):
    with pytest.raises(UserError):
        CloudSettings(**wrong)


def test_the_codec_needs_neither_torch_nor_ros():
    code = "import sys, sqsegv3_ros.pointcloud2; sys.exit(bool({'torch', 'rclpy', 'sensor_msgs'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sensor_msgs_py_reads_the_same():
    theirs = pytest.importorskip("sensor_msgs_py.point_cloud2")
    messages = pytest.importorskip("sensor_msgs.msg")
    header = pytest.importorskip("std_msgs.msg").Header()
    kinds = {"cloud_type": messages.PointCloud2, "field_type": messages.PointField, "header": header}
    for name in LAYOUTS:
        if "normals" in name:  # names the elements of a subarray differently
            continue
        for points in (random_points(LAYOUTS[name], (6, 5)), swapped(random_points(LAYOUTS[name], 30))):
            cloud = message(points, **kinds)
            # sensor_msgs_py swaps big-endian bytes in place, so it gets a message of its own
            read = theirs.read_points(message(points, **kinds)).reshape(-1)
            expected = np.stack([read[n].astype(np.float32) for n in ("x", "y", "z", "intensity")], axis=1)
            np.testing.assert_array_equal(decode(cloud).points, expected)
            for field in points.dtype.names:
                np.testing.assert_array_equal(read_field(cloud, field), read[field])
