# SPDX-License-Identifier: Apache-2.0
"""Any message is decoded as numpy decodes it, or refused with a reason; there is never another error.

`is_consistent` decides independently of the codec, by the message's definition, whether a message must be accepted.
"""

from __future__ import annotations

import array
import copy
import tracemalloc
from functools import cache
from typing import Any

import numpy as np
import pytest
from clouds import (
    LAYOUTS,
    TYPES,
    XYZ,
    PointCloud2,
    PointField,
    bytes_of,
    dtype_of,
    expected_columns,
    first,
    layout,
    message,
    points_of,
    random_points,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqsegv3_ros.pointcloud2 import (
    REASONS,
    CloudError,
    CloudSettings,
    LabelledCloudWriter,
    decode,
    encode_filtered,
    read_field,
    read_layout,
)

MAX_POINTS = 200
CLASSES = 20
WRITER = LabelledCloudWriter(np.arange(3 * CLASSES, dtype=np.uint8).reshape(CLASSES, 3))
NAMES = [*"xyz", "intensity", "ring", "i", "reflectivity", "t", "rgb", "label", "confidence", "_", "größe", "\ud800\n"]
ODD_NUMBERS = [0, 1, 2, 3, 5, 7, 12, 16, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1]
DEFAULT = CloudSettings(max_points=MAX_POINTS)
SETTINGS = [DEFAULT, DEFAULT, CloudSettings(intensity_fields=(), max_points=MAX_POINTS),
            CloudSettings(intensity_fields=("i",), intensity_scale=0.25, ring_field="t", max_points=MAX_POINTS),
            CloudSettings(ring_required=True, max_points=MAX_POINTS)]  # fmt: skip
CONTAINERS = [lambda data: array.array("B", data), bytes, bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8)]


@cache
def one_of(*options: Any) -> st.SearchStrategy[Any]:
    """A cached strategy: creating one takes longer than the test of a value."""
    return st.sampled_from(options)


@cache
def up_to(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


TYPE, COORDINATE_TYPE = one_of(*TYPES), one_of(7, 7, 7, *TYPES)
COUNT, GAP, PADDING = one_of(1, 1, 1, 0, 2, 3), one_of(0, 0, 0, 0, 1, 1, 4, -9), one_of(0, 0, 1, 3, 16)
USUAL = one_of(("intensity",), ("intensity", "ring"), ("i", "t"), ())
OTHERS = st.lists(st.sampled_from(NAMES[3:]), unique=True, max_size=3)
SIZE = one_of((2, 3), (1, 7), (5, 2), (1, 1), (3, 11), (1, 64), (1, 0), (0, 3), (3, 0))
ORDERS = [st.permutations(range(count)) for count in range(12)]


@st.composite
def sound_clouds(draw: st.DrawFn) -> PointCloud2:
    """Consistent messages: any order, offset, type and count of fields, gaps, overlaps, row padding, byte order."""
    names = list(dict.fromkeys(["x", "y", "z", *draw(USUAL), *draw(OTHERS)]))
    fields, end = [], draw(up_to(3))
    for i in draw(ORDERS[len(names)]):
        kind = draw(COORDINATE_TYPE if i < 3 else TYPE)
        count, offset = draw(COUNT), max(end + draw(GAP), 0)
        fields.append(PointField(names[i], offset, kind, count))
        end = max(end, offset + max(count, 1) * np.dtype(TYPES[kind]).itemsize)
    step = end + draw(PADDING)
    height, width = draw(SIZE)
    row_step = width * step + draw(PADDING)
    data = np.random.default_rng(draw(up_to(2**32 - 1))).integers(0, 256, height * row_step, dtype=np.uint8).tobytes()
    return PointCloud2(height=height, width=width, fields=fields, is_bigendian=draw(one_of(False, True)),
                       point_step=step, row_step=row_step, data=draw(one_of(*CONTAINERS))(data),
                       is_dense=draw(one_of(False, True)))  # fmt: skip


def number(draw: st.DrawFn, near: int) -> int:
    """A uint32: an edge case, a neighbour of the correct one, or any."""
    how = draw(one_of("odd", "near", "any"))
    if how == "any":
        return draw(up_to(2**32 - 1))
    return draw(one_of(*ODD_NUMBERS)) if how == "odd" else max(near + draw(one_of(-1, 1, 4, 16)), 0)


def change_field(draw: st.DrawFn, field: PointField) -> None:
    name = draw(one_of("name", "offset", "datatype", "count"))
    if name == "name":
        field.name = draw(one_of(None, *NAMES)) or draw(TEXT)
    elif name == "datatype":
        field.datatype = draw(one_of(0, 9, 11, 12, 255, *range(16, 32)))
    else:
        setattr(field, name, number(draw, getattr(field, name)))


TEXT = st.text(max_size=60)
JUNK = st.binary(max_size=40)
CHANGE = one_of("size", "size", "data", "field", "field", "fields", "swap", "layout")


@st.composite
def malformed_clouds(draw: st.DrawFn) -> PointCloud2:
    """Valid messages with one to three changes, to values that can be transmitted."""
    cloud = draw(sound_clouds())
    for _ in range(draw(one_of(1, 1, 2, 3))):
        change = draw(CHANGE)
        if change == "size":
            name = draw(one_of("height", "width", "point_step", "row_step"))
            setattr(cloud, name, number(draw, getattr(cloud, name)))
        elif change == "data":
            cloud.data = array.array("B", bytes(cloud.data)[: draw(one_of(0, 1, 30, -1, None))] + draw(JUNK))
        elif change == "field" and cloud.fields:
            change_field(draw, cloud.fields[draw(up_to(len(cloud.fields) - 1))])
        elif change == "fields":
            first_field = copy.deepcopy(cloud.fields[:1])
            cloud.fields = cloud.fields[: draw(up_to(len(cloud.fields)))] + first_field * draw(one_of(0, 0, 1, 2, 300))
        elif change == "swap":
            cloud.is_bigendian = not cloud.is_bigendian
        elif change == "layout":  # declared sizes that are consistent, but not with the data
            cloud.row_step = draw(one_of(0, 1)) * draw(up_to(2**31))
            cloud.height = draw(one_of(*ODD_NUMBERS))
    return cloud


def is_consistent(cloud: Any, max_points: int | None) -> bool:
    """Whether the sizes are consistent with each other and the data, by sensor_msgs' definition."""
    if any(n >= 2**31 for n in (cloud.height, cloud.width, cloud.point_step, cloud.row_step)):
        return False
    names = [f.name for f in cloud.fields if f.name != "_"]
    if not 0 < len(cloud.fields) <= 256 or cloud.point_step == 0 or len(set(names)) < len(names):
        return False
    for f in cloud.fields:
        if f.datatype not in TYPES or max(f.offset, f.count) >= 2**31:
            return False
        if f.offset + max(f.count, 1) * np.dtype(TYPES[f.datatype]).itemsize > cloud.point_step:
            return False
    if max_points is not None and cloud.height * cloud.width > max_points:
        return False
    return cloud.row_step >= cloud.width * cloud.point_step and len(cloud.data) == cloud.row_step * cloud.height


def is_decodable(cloud: Any, chosen: CloudSettings) -> bool:
    needed = {"x", "y", "z"} | ({"ring"} if chosen.ring_required else set())
    names = {f.name for f in cloud.fields}
    has_intensity = not chosen.intensity_fields or names & set(chosen.intensity_fields)
    return is_consistent(cloud, chosen.max_points) and needed <= names and bool(has_intensity)


def attempt(work: Any, *arguments: Any) -> Any:
    """The result, or None if the cloud is refused with a valid reason."""
    try:
        return work(*arguments)
    except CloudError as error:
        assert error.reason in REASONS
        text = str(error)
        assert text.isascii() and text.isprintable() and 10 < len(text) < 1500
        return None


def reference(cloud: Any) -> np.ndarray:
    """(N,) structured points by numpy, without fields named '_', because numpy's names are unique."""
    plain = copy.copy(cloud)
    plain.fields = [f for f in cloud.fields if f.name != "_"]
    return points_of(plain).reshape(-1)


def check_decoded(cloud: Any, chosen: CloudSettings) -> None:
    decoded = attempt(decode, cloud, chosen)
    assert (decoded is not None) == is_decodable(cloud, chosen)
    if decoded is None:
        return
    points = reference(cloud)
    intensity = next((name for name in chosen.intensity_fields if name in points.dtype.names), "")
    expected = expected_columns(points, intensity)
    with np.errstate(all="ignore"):
        expected[:, 3] *= np.float32(chosen.intensity_scale)
    np.testing.assert_array_equal(decoded.points, expected)
    assert (decoded.rings is None) == (chosen.ring_field not in points.dtype.names)
    if decoded.rings is not None:
        values = first(points[chosen.ring_field], 1).tolist()
        assert decoded.rings.tolist() == [int(v) if -(2**31) <= v < 2**31 and v == int(v) else -1 for v in values]


def check_encoded(cloud: Any) -> None:
    count = cloud.height * cloud.width
    sound = is_consistent(cloud, None)
    size = count if sound else 3  # a malformed message is refused before the results are checked
    labels = (np.arange(size) % CLASSES).astype(np.uint8)
    confidences = (labels / CLASSES).astype(np.float32)
    before = bytes(cloud.data)
    out = attempt(WRITER.write, cloud, labels, confidences)
    assert sound or out is None
    if out is not None:
        assert is_consistent(out, None) and (out.height, out.width) == (cloud.height, cloud.width)
        read, points = reference(out), reference(cloud)
        np.testing.assert_array_equal(read["label"], labels)
        np.testing.assert_array_equal(read["confidence"], confidences)
        for name in set(points.dtype.names) - {"rgb", "confidence", "label"}:
            assert read[name].tobytes() == points[name].tobytes()
    kept = attempt(encode_filtered, cloud, labels % 2 == 0)
    assert (kept is not None) == sound
    if kept is not None:
        whole = copy.copy(cloud)
        whole.fields = [PointField("all", 0, 2, cloud.point_step)]
        assert bytes(kept.data) == bytes_of(points_of(whole))[labels % 2 == 0].tobytes()
    assert bytes(cloud.data) == before


def check(cloud: PointCloud2, chosen: CloudSettings) -> None:
    """Check everything for one message."""
    check_decoded(cloud, chosen)
    if cloud.height * cloud.width <= MAX_POINTS or not is_consistent(cloud, None):
        check_encoded(cloud)


QUICK = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
LONG = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=600, **QUICK)
@given(sound_clouds(), st.sampled_from(SETTINGS))
def test_valid_clouds_are_decoded_and_encoded_as_by_numpy(cloud, chosen):
    assert is_consistent(cloud, MAX_POINTS)
    check(cloud, chosen)


@pytest.mark.slow
@settings(max_examples=2000, **QUICK)
@given(malformed_clouds(), st.sampled_from(SETTINGS))
def test_malformed_clouds_are_refused_with_a_reason_and_nothing_else(cloud, chosen):
    check(cloud, chosen)


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=100_000, **LONG)
@given(malformed_clouds(), st.sampled_from(SETTINGS))
def test_a_hundred_thousand_malformed_clouds_are_refused_with_a_reason_and_nothing_else(cloud, chosen):
    check(cloud, chosen)


# --- single faults ---------------------------------------------------------------------------------------------------


def velodyne(**changes: Any) -> Any:
    cloud = message(random_points(LAYOUTS["velodyne xyzirt 22"], (2, 5)))
    for name, value in changes.items():
        setattr(cloud, name, value)
    return cloud


def with_field(index: int, **changes: Any) -> Any:
    cloud = velodyne()
    for name, value in changes.items():
        setattr(cloud.fields[index], name, value)
    return cloud


REFUSED = [
    ("no_fields", velodyne(fields=[]), "declares no fields"),
    ("too_many_fields", velodyne(fields=[PointField(f"f{i}", 0, 2, 1) for i in range(257)]), "257 fields; at most 256"),
    ("duplicate_field", with_field(3, name="x"), r"field 'x' occurs twice \(fields: x, y, z, x, ring, time\)"),
    ("unknown_datatype", with_field(5, datatype=12), r"field 'time' has datatype 12; expected 1\.\.11"),
    ("unknown_datatype", with_field(0, datatype=0), "field 'x' has datatype 0"),
    ("field_outside_point", with_field(5, offset=19), "'time' ends at byte 23 of a point, but point_step is 22"),
    ("field_outside_point", with_field(4, count=2**31 - 1), "'ring' ends at byte 4294967310"),
    ("number_out_of_range", with_field(4, count=2**31), "count of field 'ring' is 2147483648"),
    ("number_out_of_range", with_field(4, offset=-1), "offset of field 'ring' is -1"),
    ("number_out_of_range", velodyne(width=2**32 - 5), "width is 4294967291; expected 0..2147483647"),
    ("number_out_of_range", velodyne(height=-2), "height is -2"),
    ("number_out_of_range", velodyne(row_step=2**31), "row_step is 2147483648"),
    ("number_out_of_range", velodyne(point_step=2**31), "point_step is 2147483648"),
    ("zero_point_step", velodyne(point_step=0), "point_step is 0"),
    ("too_many_points", velodyne(height=65536, width=65536), "65536 x 65536 = 4294967296 points; .*max_points"),
    ("row_step_too_small", velodyne(row_step=109), "row_step is 109, but 5 points of 22 bytes need 110"),
    ("data_too_short", velodyne(data=bytes(219)), r"219 bytes; expected 220 \(height 2 x row_step 110\)"),
    ("data_too_long", velodyne(data=bytes(221)), "221 bytes; expected 220"),
    ("data_too_short", velodyne(data=b""), "0 bytes; expected 220"),
    ("data_too_long", velodyne(height=0), "220 bytes; expected 0"),
    ("missing_field", with_field(2, name="Z"), r"no field 'z' \(fields: x, y, Z, intensity, ring, time\); expected x"),
    ("missing_field", with_field(3, name="signal"), r"set intensity_fields to \['signal'\], or to \[''\]"),
    ("missing_field", with_field(3, name="größe\n"), r"fields: x, y, z, 'gr\\xf6\\xdfe\\n', ring"),
    ("malformed_message", velodyne(data=None), "not a PointCloud2 message"),
    ("malformed_message", velodyne(data=[0] * 220), "not a PointCloud2 message"),
    ("malformed_message", velodyne(data=np.zeros(55, np.float32)), "items of 4 bytes"),
    ("malformed_message", velodyne(data=np.zeros(440, np.uint8)[::2]), "gaps"),
    ("malformed_message", velodyne(width=None), "not a PointCloud2 message"),
    ("malformed_message", velodyne(height=2.0), "not a PointCloud2 message"),
    ("malformed_message", velodyne(fields=None), "not a PointCloud2 message"),
    ("malformed_message", velodyne(fields=["x"]), "not a PointCloud2 message"),
    ("malformed_message", object(), "not a PointCloud2 message"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "cloud", "text"), REFUSED)
def test_each_fault_is_refused_with_its_reason(reason, cloud, text):
    with pytest.raises(CloudError, match=text) as caught:
        decode(cloud)
    assert caught.value.reason == reason and str(caught.value).isascii()


def test_every_reason_is_tested():
    elsewhere = {
        "output_field_type",
        "output_field_overlap",
        "output_too_large",
        "wrong_length",
    }  # see test_encode.py
    assert {reason for reason, _, _ in REFUSED} | elsewhere == set(REASONS)


def test_error_messages_are_bounded_for_long_names():
    cloud = velodyne(fields=[PointField("ä" * 100_000 + str(i), 0, 2, 1) for i in range(200)])
    with pytest.raises(CloudError) as caught:
        decode(cloud)
    assert "and 180 more" in str(caught.value) and len(str(caught.value)) < 4000


def test_declared_sizes_do_not_allocate_memory():
    clouds = [velodyne(height=1, width=2**31 - 1, row_step=2**31 - 1), velodyne(height=2**31 - 1),
             velodyne(point_step=2**31 - 1, row_step=2**31 - 1, height=2**31 - 1),
             velodyne(width=9_000_000)]  # fmt: skip
    empty = velodyne(height=0, width=2**31 - 1, point_step=2**31 - 1, row_step=2**31 - 1, data=b"")
    tracemalloc.start()
    try:
        for cloud in clouds:
            for work in (
                lambda c: decode(c, CloudSettings(max_points=2**40)),
                lambda c: WRITER.write(c, np.zeros(10, np.uint8), np.zeros(10, np.float32)),
                lambda c: encode_filtered(c, np.zeros(10, bool)),
                lambda c: read_field(c, "x"),
            ):
                with pytest.raises(CloudError):
                    work(cloud)
        with pytest.raises(CloudError):
            decode(empty)  # the row is declared shorter than its points
        for width in (0, 1):
            empty.width = width
            assert len(decode(empty)) == 0 and len(encode_filtered(empty, np.zeros(0, bool)).data) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_many_points_in_few_bytes_stay_below_max_points():
    """One byte per point is valid; decoded it takes 16 times as much, which max_points bounds."""
    dtype = layout(1, x=(0, "u1"), y=(0, "u1"), z=(0, "u1"), intensity=(0, "u1"))
    cloud = message(random_points(dtype, 1001))
    with pytest.raises(CloudError, match="max_points"):
        decode(cloud, CloudSettings(max_points=1000))
    assert len(decode(cloud, CloudSettings(max_points=1001))) == 1001
    np.testing.assert_array_equal(decode(cloud).points[:, 2], points_of(cloud)[0]["z"].astype(np.float32))


def test_layouts_with_very_long_names_are_not_cached():
    cloud = message(random_points(layout(16, **XYZ, intensity=(12, "f4")), 2))
    assert read_layout(cloud) is read_layout(cloud)
    cloud.fields.append(PointField("n" * 5000, 0, 2, 1))
    assert read_layout(cloud) is not read_layout(cloud)


def test_special_coordinates_are_passed_on():
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 6)
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, 1e-45, -0.0], np.float32)
    for name in ("x", "y", "z", "intensity"):
        points[name] = odd
    np.testing.assert_array_equal(decode(message(points)).points[:, 0], odd)
    assert dtype_of(message(points)) == points.dtype
