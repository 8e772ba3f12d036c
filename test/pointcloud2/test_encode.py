# SPDX-License-Identifier: Apache-2.0
"""Encoding of labelled and filtered clouds, compared with numpy's structured types."""

from __future__ import annotations

import array
import copy
import dataclasses
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from clouds import LAYOUTS, XYZ, PointCloud2, PointField, bytes_of, layout, message, points_of, random_points, swapped

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import DEFAULT_OUTPUTS, CloudError, LabelledCloudWriter, encode_filtered, make_cloud
from sqsegv3_ros.pointcloud2.layout import BLOCK_BYTES

COLORS = SEMANTIC_KITTI.colors
SHAPES = {"plain": ((60,), 0), "organised": ((6, 10), 0), "padded rows": ((6, 10), 7), "one padded row": ((1, 60), 7)}


def results(count: int, classes: int = len(COLORS), seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if classes <= 256 else np.uint16
    return rng.integers(0, classes, count).astype(dtype), rng.random(count, dtype=np.float32)


def encode_labelled(cloud: Any, labels: Any, confidences: Any, colors: Any, outputs: Any = DEFAULT_OUTPUTS) -> Any:
    return LabelledCloudWriter(colors, outputs).write(cloud, labels, confidences)


def packed(colors: np.ndarray) -> np.ndarray:
    """0x00RRGGBB of (N, 3) colours, one by one."""
    return np.array([int(r) * 65536 + int(g) * 256 + int(b) for r, g, b in colors], np.uint32)


def rgb_bits(values: np.ndarray) -> np.ndarray:
    """The bits of an rgb field that numpy read as float32 or uint32."""
    return np.ascontiguousarray(values).view(values.dtype.str[0] + "u4").astype(np.uint32)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_labelled_cloud_is_the_input_plus_fields(name, form, big):
    shape, padding = SHAPES[form]
    points = random_points(LAYOUTS[name], shape)
    points = swapped(points) if big else points
    cloud = message(points, padding, is_dense=False)
    before = copy.deepcopy(cloud)
    labels, confidences = results(points.size)
    out = encode_labelled(cloud, labels, confidences, COLORS)

    assert cloud == before
    step = points.dtype.itemsize
    assert (out.header, out.height, out.width, out.is_bigendian) == (cloud.header, cloud.height, cloud.width, big)
    assert out.is_dense is False
    assert out.point_step == (step + 9 + 3) // 4 * 4 and out.row_step == out.width * out.point_step
    assert isinstance(out.data, array.array) and len(out.data) == out.height * out.row_step
    assert out.fields[: len(cloud.fields)] == cloud.fields
    assert out.fields[len(cloud.fields) :] == [
        PointField("rgb", step, 7, 1), PointField("confidence", step + 4, 7, 1), PointField("label", step + 8, 2, 1)
    ]  # fmt: skip
    bytes_out = np.frombuffer(out.data, np.uint8).reshape(points.size, out.point_step)
    assert bytes_out[:, :step].tobytes() == points.tobytes()
    assert not bytes_out[:, step + 9 :].any()
    read = points_of(out).reshape(-1)
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["confidence"], confidences)
    np.testing.assert_array_equal(rgb_bits(read["rgb"]), packed(COLORS[labels]))


@pytest.mark.parametrize(
    "wanted", [c for n in range(4) for c in itertools.combinations(("rgb", "confidence", "label"), n)]
)
def test_only_the_selected_outputs_are_written(wanted):
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 30)
    labels, confidences = results(30)
    out = LabelledCloudWriter(COLORS, wanted).write(message(points), labels, confidences)
    assert [f.name for f in out.fields] == [*points.dtype.names, *wanted]
    size = 22 + sum({"rgb": 4, "confidence": 4, "label": 1}[name] for name in wanted)
    assert out.point_step == (size + 3) // 4 * 4
    read = points_of(out)[0]
    for name, values in (("label", labels), ("confidence", confidences)):
        if name in wanted:
            np.testing.assert_array_equal(read[name], values)


def test_confidences_are_required_only_if_they_are_an_output():
    points = random_points(LAYOUTS["xyzi 16"], 5)
    LabelledCloudWriter(COLORS, ("label",)).write(message(points), results(5)[0])
    with pytest.raises(UserError, match="needs confidences"):
        LabelledCloudWriter(COLORS).write(message(points), results(5)[0])


@pytest.mark.parametrize(("classes", "datatype"), [(1, 2), (256, 2), (257, 4), (300, 4)])
def test_labels_are_uint16_only_if_the_label_set_needs_it(classes, datatype):
    colors = np.random.default_rng(0).integers(0, 256, (classes, 3), dtype=np.uint8)
    labels, confidences = results(500, classes)
    out = encode_labelled(message(random_points(LAYOUTS["xyzi 16"], 500)), labels, confidences, colors)
    assert out.fields[-1].datatype == datatype
    np.testing.assert_array_equal(points_of(out)[0]["label"], labels)
    np.testing.assert_array_equal(rgb_bits(points_of(out)[0]["rgb"]), packed(colors[labels]))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("rgb", ["f4", "u4"])
@pytest.mark.parametrize("confidence", ["f4", "f8"])
@pytest.mark.parametrize("label", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8"])
def test_an_existing_field_is_overwritten_in_place(rgb, confidence, label, big):
    dtype = layout(41, label=(0, label), **{k: (8 + v[0], v[1]) for k, v in XYZ.items()}, rgb=(21, rgb),
                   intensity=(25, "f4"), confidence=(29, confidence))  # fmt: skip
    points = random_points(dtype, (4, 10))
    points = swapped(points) if big else points
    cloud = message(points, row_padding=3)
    labels, confidences = results(40)
    out = encode_labelled(cloud, labels, confidences, COLORS)
    assert out.fields == cloud.fields and out.point_step == 44
    read = points_of(out).reshape(-1)
    for name in ("x", "y", "z", "intensity"):
        np.testing.assert_array_equal(read[name], points.reshape(-1)[name])
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["confidence"], confidences)
    np.testing.assert_array_equal(rgb_bits(read["rgb"]), packed(COLORS[labels]))
    untouched = np.ones(41, bool)
    for name in ("label", "confidence", "rgb"):
        untouched[dtype.fields[name][1] :][: dtype[name].itemsize] = False
    bytes_out = np.frombuffer(out.data, np.uint8).reshape(40, 44)[:, :41]
    bytes_in = np.frombuffer(points.tobytes(), np.uint8).reshape(40, 41)
    np.testing.assert_array_equal(bytes_out[:, untouched], bytes_in[:, untouched])


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("rgb", ("u1",), "float32 or uint32"),
        ("rgb", ("i4",), "float32 or uint32"),
        ("rgb", ("u1", 3), "float32 or uint32"),
        ("confidence", ("u1",), "float32 or float64"),
        ("confidence", ("f4", 2), "float32 or float64"),
        ("label", ("f4",), "integer type with room for 19"),
        ("label", ("u1", 2), "integer type with room for 19"),
    ],
)
def test_a_field_of_an_output_name_that_cannot_hold_it_is_refused(name, kind, expected):
    cloud = message(random_points(layout(32, **XYZ, intensity=(12, "f4"), **{name: (16, *kind)}), 4))
    labels, confidences = results(4)
    with pytest.raises(CloudError, match=f"field '{name}' of .* expected one .*{expected}.*disable that output") as e:
        encode_labelled(cloud, labels, confidences, COLORS)
    assert e.value.reason == "output_field_type"
    others = [output for output in ("rgb", "confidence", "label") if output != name]
    encode_labelled(cloud, labels, confidences, COLORS, others)


@pytest.mark.parametrize(("kind", "most"), [("u1", 256), ("i1", 128)])
def test_a_label_field_too_small_for_the_label_set_is_refused(kind, most):
    cloud = message(random_points(layout(17, **XYZ, intensity=(12, "f4"), label=(16, kind)), 4))
    labels = np.full(4, most - 1, np.uint16)
    out = encode_labelled(cloud, labels, np.ones(4), np.zeros((most, 3), np.uint8))
    assert (points_of(out)["label"] == most - 1).all()
    with pytest.raises(CloudError, match=f"room for {most}:"):
        encode_labelled(cloud, labels, np.ones(4), np.zeros((most + 1, 3), np.uint8))


def test_an_overwritten_field_never_damages_another():
    cloud = message(random_points(layout(20, **XYZ, rgb=(12, "f4"), rgba=(12, "u4"), intensity=(16, "f4")), 4))
    with pytest.raises(CloudError, match="'rgb' shares bytes with 'rgba'") as caught:
        encode_labelled(cloud, *results(4), COLORS)
    assert caught.value.reason == "output_field_overlap"


@pytest.mark.parametrize("shape", [(40_000,), (5, 8_000), (8_000, 5), (2, 20_000)])
def test_clouds_larger_than_one_block_are_encoded_completely(shape):
    points = random_points(LAYOUTS["ouster 48"], shape)
    assert points.nbytes > 3 * BLOCK_BYTES
    cloud = message(points, row_padding=0 if len(shape) == 1 else 9)
    labels, confidences = results(points.size)
    out = encode_labelled(cloud, labels, confidences, COLORS)
    read = points_of(out).reshape(-1)
    for name in points.dtype.names:
        np.testing.assert_array_equal(read[name], points.reshape(-1)[name])
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["confidence"], confidences)
    keep = labels != 3
    assert bytes(encode_filtered(cloud, keep).data) == bytes_of(points)[keep].tobytes()


def test_one_writer_serves_many_threads():
    writer = LabelledCloudWriter(COLORS)
    clouds = [message(random_points(LAYOUTS["velodyne xyzirt 22"], 30_000, seed)) for seed in range(4)]
    values = [results(30_000, seed=seed) for seed in range(4)]
    expected = [writer.write(c, *v).data.tobytes() for c, v in zip(clouds, values, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(5) if writer.write(clouds[i], *values[i]).data.tobytes() != expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_output_shares_no_data_with_the_input():
    cloud = message(random_points(LAYOUTS["xyzi 16"], 10))
    outs = [encode_labelled(cloud, *results(10), COLORS, ()), encode_filtered(cloud, np.ones(10, bool))]
    before = [bytes(out.data) for out in outs]
    np.frombuffer(cloud.data, np.uint8)[...] = 0
    assert [bytes(out.data) for out in outs] == before


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("name", ["xyzi 16", "velodyne xyzirt 22", "ouster 48", "integers 13"])
def test_a_filtered_cloud_is_the_input_without_the_dropped_points(name, form, big):
    shape, padding = SHAPES[form]
    points = random_points(LAYOUTS[name], shape)
    points = swapped(points) if big else points
    cloud = message(points, padding, is_dense=False)
    keep = np.random.default_rng(0).random(60) < 0.4
    out = encode_filtered(cloud, keep)
    assert (out.header, out.height, out.width) == (cloud.header, 1, keep.sum())
    assert (out.is_bigendian, out.is_dense, out.fields) == (big, False, cloud.fields)
    assert (out.point_step, out.row_step) == (cloud.point_step, out.width * cloud.point_step)
    assert bytes(out.data) == bytes_of(points)[keep].tobytes()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_a_cloud_without_points_stays_empty(shape):
    cloud = message(random_points(LAYOUTS["velodyne xyzirt 22"], shape))
    out = encode_labelled(cloud, *results(0), COLORS)
    assert (out.height, out.width, len(out.data), out.point_step) == (cloud.height, cloud.width, 0, 32)
    assert encode_filtered(cloud, np.zeros(0, bool)).width == 0


@pytest.mark.parametrize(("step", "count"), [(1, 200_000_000), (2**31 - 2, 0)])
def test_an_output_too_large_for_a_message_is_refused(step, count):
    """Touches no memory: the data is never read, and the results are broadcast from one value."""
    cloud = PointCloud2(
        height=1, width=count, fields=[PointField("x", 0, 2, 1)], point_step=step, row_step=step * count
    )
    cloud.data = np.zeros(step * count, np.uint8)
    with pytest.raises(CloudError, match=f"{count} points of") as caught:
        encode_labelled(cloud, np.broadcast_to(np.uint8(0), count), np.broadcast_to(np.float32(0), count), COLORS)
    assert caught.value.reason == "output_too_large"


def test_all_points_can_be_dropped():
    out = encode_filtered(message(random_points(LAYOUTS["xyzi 16"], 10)), np.zeros(10, bool))
    assert (out.height, out.width, out.row_step, len(out.data)) == (1, 0, 0, 0)


def test_results_that_do_not_fit_the_cloud_are_refused():
    cloud = message(random_points(LAYOUTS["xyzi 16"], 10))
    labels, confidences = results(10)
    for wrong in ((labels[:9], confidences), (labels, confidences[:9]), (labels.reshape(2, 5), confidences)):
        with pytest.raises(CloudError, match="10 points") as caught:
            encode_labelled(cloud, *wrong, COLORS)
        assert caught.value.reason == "wrong_length"
    with pytest.raises(CloudError, match="10 points"):
        encode_filtered(cloud, np.ones(9, bool))
    with pytest.raises(UserError, match=r"labels must be in 0\.\.19"):
        encode_labelled(cloud, np.full(10, 20, np.uint8), confidences, COLORS)
    with pytest.raises(UserError, match=r"labels must be in 0\.\.19"):
        encode_labelled(cloud, np.full(10, -1), confidences, COLORS)
    with pytest.raises(UserError, match="integers"):
        encode_labelled(cloud, confidences, confidences, COLORS)
    with pytest.raises(UserError, match="bool"):
        encode_filtered(cloud, labels)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros((20, 4), np.uint8),),
        (np.zeros((0, 3), np.uint8),),
        (np.full((20, 3), 256),),
        (np.zeros((20, 3)),),
        (COLORS, ("label", "colour")),
        (COLORS, "label"),
    ],
)
def test_a_writer_refuses_invalid_colours_and_outputs(arguments):
    with pytest.raises(UserError):
        LabelledCloudWriter(*arguments)


def test_a_message_class_that_copies_its_data_gets_all_of_it():
    @dataclasses.dataclass
    class Copying(PointCloud2):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, bytes(value) if name == "data" else value)

    points = random_points(LAYOUTS["ouster 48"], 100)
    cloud = message(points, cloud_type=Copying)
    labels, confidences = results(100)
    np.testing.assert_array_equal(points_of(encode_labelled(cloud, labels, confidences, COLORS))[0]["label"], labels)
    assert bytes(encode_filtered(cloud, labels > 5).data) == bytes_of(points)[labels > 5].tobytes()


# --- real message classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checked", [False, True])
def test_ros_messages_work_with_field_checks_off_and_on(checked, monkeypatch):
    messages = pytest.importorskip("sensor_msgs.msg")
    monkeypatch.setattr("sensor_msgs.msg._point_cloud2.ros_python_check_fields", "1" if checked else "", raising=False)
    monkeypatch.setattr("sensor_msgs.msg._point_field.ros_python_check_fields", "1" if checked else "", raising=False)
    assert messages.PointCloud2()._check_fields is checked
    header = pytest.importorskip("std_msgs.msg").Header(frame_id="lidar")
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 1000)
    cloud = make_cloud(points, messages.PointCloud2, messages.PointField, header)
    labels, confidences = results(1000)
    out = encode_labelled(cloud, labels, confidences, COLORS)
    assert type(out) is messages.PointCloud2 and all(type(f) is messages.PointField for f in out.fields)
    assert out.header == cloud.header and isinstance(out.data, array.array) and out.data.typecode == "B"
    read = points_of(out)[0]
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["x"], points["x"])
    kept = encode_filtered(cloud, labels == 1)
    assert type(kept) is messages.PointCloud2 and bytes(kept.data) == bytes_of(points)[labels == 1].tobytes()


def test_ros_messages_survive_serialisation():
    messages = pytest.importorskip("sensor_msgs.msg")
    serialization = pytest.importorskip("rclpy.serialization")
    points = random_points(LAYOUTS["pcl xyzi 32"], (3, 40))
    cloud = make_cloud(points, messages.PointCloud2, messages.PointField)
    out = encode_labelled(cloud, *results(120), COLORS)
    again = serialization.deserialize_message(serialization.serialize_message(out), messages.PointCloud2)
    assert again == out and (again.height, again.width) == (3, 40)


def test_messages_of_rosbags_can_be_serialized_by_rosbags():
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    kinds = {name: store.types[f"{package}/msg/{name}"] for package, name in (
        ("sensor_msgs", "PointCloud2"), ("sensor_msgs", "PointField"), ("std_msgs", "Header"),
        ("builtin_interfaces", "Time"))}  # fmt: skip
    cloud = message(
        random_points(LAYOUTS["velodyne xyzirt 22"], 50),
        container=lambda data: np.frombuffer(data, np.uint8),
        cloud_type=kinds["PointCloud2"],
        field_type=kinds["PointField"],
        header=kinds["Header"](stamp=kinds["Time"](sec=1, nanosec=2), frame_id="lidar"),
    )
    labels, confidences = results(50)
    out = encode_labelled(cloud, labels, confidences, COLORS)
    again = store.deserialize_cdr(
        store.serialize_cdr(out, "sensor_msgs/msg/PointCloud2"), "sensor_msgs/msg/PointCloud2"
    )
    np.testing.assert_array_equal(points_of(again)[0]["label"], labels)
    assert again.header.frame_id == "lidar"
