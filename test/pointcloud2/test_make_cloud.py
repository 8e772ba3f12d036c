# SPDX-License-Identifier: Apache-2.0
"""Messages of `make_cloud`, compared with numpy's structured types."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import LAYOUTS, Header, PointCloud2, PointField, bytes_of, message, points_of, random_points, swapped

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import decode, make_cloud


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("shape", [(12,), (3, 4), (0,)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_structured_points_become_a_message_of_the_same_layout(name, shape, big):
    points = random_points(LAYOUTS[name], shape)
    points = swapped(points) if big else points
    cloud = make_cloud(points, PointCloud2, PointField, Header(frame_id="lidar"))
    expected = message(points, header=Header(frame_id="lidar"))
    expected.is_bigendian = big
    assert cloud == expected


@pytest.mark.parametrize("shape", [(12, 4), (3, 5, 4)])
def test_plain_points_become_xyzi(shape):
    points = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cloud = make_cloud(points, PointCloud2, PointField)
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        ("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1), ("intensity", 12, 7, 1)
    ]  # fmt: skip
    assert (cloud.height, cloud.width) == ((1, 12) if len(shape) == 2 else (3, 5))
    assert cloud.header == Header() and cloud.is_dense
    np.testing.assert_array_equal(decode(cloud).points, points.reshape(-1, 4))


def test_slices_and_fortran_order_are_written_in_index_order():
    points = np.asfortranarray(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))[::2]
    np.testing.assert_array_equal(decode(make_cloud(points, PointCloud2, PointField)).points, points)
    organised = random_points(LAYOUTS["ouster 48"], (4, 6)).T
    cloud = make_cloud(organised, PointCloud2, PointField)
    assert (cloud.height, cloud.width) == (6, 4)
    assert (
        bytes(cloud.data)
        == bytes_of(random_points(LAYOUTS["ouster 48"], (4, 6))).reshape(4, 6, 48).swapaxes(0, 1).tobytes()
    )
    np.testing.assert_array_equal(points_of(cloud)["range"], organised["range"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_is_dense_is_set_if_all_coordinates_are_finite(bad):
    points = random_points(LAYOUTS["xyzi 16"], 10)
    points["intensity"][2] = bad
    assert make_cloud(points, PointCloud2, PointField).is_dense is True
    points["y"][3] = bad
    assert make_cloud(points, PointCloud2, PointField).is_dense is False


def test_64_bit_integers_and_booleans_have_their_own_types():
    points = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("t", "u8"), ("s", "i8"), ("valid", "?")])
    cloud = make_cloud(points, PointCloud2, PointField)
    assert [f.datatype for f in cloud.fields] == [7, 7, 7, 10, 9, 11]


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((5, 3), np.float32),
        np.zeros((5, 4), np.float64),
        np.zeros(5, np.float32),
        np.zeros((2, 2, 2), [("x", "f4")]),
        np.zeros(5, [("x", "f2")]),
        np.zeros(5, [("name", "U4")]),
        np.zeros(5, [("m", "f4", (2, 2))]),
        np.zeros(5, [("p", [("x", "f4")])]),
        np.zeros(5, [("x", "<f4"), ("y", ">f4")]),
    ],
)
def test_types_without_a_point_field_are_refused(points):
    with pytest.raises(UserError):
        make_cloud(points, PointCloud2, PointField)
