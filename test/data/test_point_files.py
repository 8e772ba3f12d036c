# SPDX-License-Identifier: Apache-2.0
"""Point-cloud files: each format from bytes written by hand or by another program, and what cannot be read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_shared

from sqsegv3_ros.data.point_files import FileCloud, find_point_files, read_cloud
from sqsegv3_ros.errors import UserError

# every value is exact in float32
POINTS = np.array([[1.5, -2.25, 0.5, 10], [4, 5, -1.75, 200], [-7.5, 0.25, 2, 0], [30, -40.5, 1, 255]], np.float32)
RINGS = np.array([3, 0, 2, 1])
TRUTH = np.array([1, 9, 0, 6])


def write_kitti(path: Path) -> None:
    path.write_bytes(b"".join(struct.pack("<4f", *point) for point in POINTS.tolist()))


def write_nuscenes(path: Path) -> None:
    path.write_bytes(b"".join(struct.pack("<5f", *p, r) for p, r in zip(POINTS.tolist(), RINGS, strict=True)))


def pcd_header(data: str, count: int = len(POINTS)) -> bytes:
    return (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z intensity ring ground_truth\n"
        "SIZE 4 4 4 4 2 1\nTYPE F F F F U U\nCOUNT 1 1 1 1 1 1\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {data}\n"
    ).encode()


def rows() -> list[tuple[float, ...]]:
    return [(*p, r, t) for p, r, t in zip(POINTS.tolist(), RINGS.tolist(), TRUTH.tolist(), strict=True)]


def write_pcd_ascii(path: Path) -> None:
    text = "".join(" ".join(str(value) for value in row) + "\n" for row in rows())
    path.write_bytes(pcd_header("ascii") + text.encode())


def write_pcd_binary(path: Path) -> None:
    path.write_bytes(pcd_header("binary") + b"".join(struct.pack("<4fHB", *row) for row in rows()))


def write_pcd_compressed(path: Path) -> None:
    """Column by column, in LZF without any repetition: each run of up to 32 bytes follows its length - 1."""
    columns = zip(*rows(), strict=True)
    plain = b"".join(struct.pack(f"<{len(POINTS)}{t}", *column) for t, column in zip("ffffHB", columns, strict=True))
    runs = [plain[start : start + 32] for start in range(0, len(plain), 32)]
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    path.write_bytes(pcd_header("binary_compressed") + struct.pack("<II", len(packed), len(plain)) + packed)


def ply_header(form: str, prefix: str = "") -> bytes:
    return (
        f"ply\nformat {form} 1.0\ncomment by hand\nelement vertex {len(POINTS)}\nproperty float x\nproperty float y\n"
        f"property float z\nproperty float {prefix}intensity\nproperty ushort ring\nproperty uchar ground_truth\n"
        "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()


def write_ply_ascii(path: Path) -> None:
    text = "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows())
    path.write_bytes(ply_header("ascii", "scalar_") + text.encode())  # CloudCompare's name of a field


def write_ply_binary(path: Path) -> None:
    path.write_bytes(ply_header("binary_big_endian") + b"".join(struct.pack(">4fHB", *row) for row in rows()))


def write_npy_plain(path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4), }".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + POINTS.tobytes())


def write_npy_structured(path: Path) -> None:
    names = ("x", "y", "z", "intensity", "ring", "ground_truth")
    np.save(path, np.array(rows(), [*((n, "f8") for n in names[:4]), (names[4], "u2"), (names[5], "u1")]))


def write_las(path: Path) -> None:
    """LAS 1.2, point format 0: coordinates are int32 in steps of 1/4 m from an offset."""
    offset, scale = (100.0, -50.0, 0.0), 0.25
    header = struct.pack("<4sHH16sBB32s32sHHHIIBHI5I", b"LASF", 0, 0, bytes(16), 1, 2, b"", b"by hand", 1, 2026, 227,
                         227, 0, 0, 20, len(POINTS), len(POINTS), 0, 0, 0, 0)  # fmt: skip
    extent = [v for axis in range(3) for v in (POINTS[:, axis].max(), POINTS[:, axis].min())]
    header += struct.pack("<12d", scale, scale, scale, *offset, *extent)
    assert len(header) == 227
    points = b""
    for *xyz, intensity in POINTS.tolist():
        steps = [round((value - start) / scale) for value, start in zip(xyz, offset, strict=True)]
        points += struct.pack("<3iHBBbBH", *steps, int(intensity), 0, 0, 0, 0, 0)
    path.write_bytes(header + points)


def write_laz(path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    write_las(path.with_suffix(".las"))
    laspy.read(path.with_suffix(".las")).write(path)
    assert path.read_bytes().find(b"laszip encoded") > 0
    path.with_suffix(".las").unlink()


def files_packages() -> None:
    for name in ("pypcd4", "plyfile", "laspy", "lazrs"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'sqsegv3_ros[files]'")


Writer = Callable[[Path], None]
FILES: dict[str, tuple[Writer, bool, bool]] = {  # name: writer, has rings, has ground truth
    "scan.bin": (write_kitti, False, False),
    "sweep.pcd.bin": (write_nuscenes, True, False),
    "ascii.pcd": (write_pcd_ascii, True, True),
    "binary.pcd": (write_pcd_binary, True, True),
    "compressed.PCD": (write_pcd_compressed, True, True),
    "ascii.ply": (write_ply_ascii, True, True),
    "big_endian.ply": (write_ply_binary, True, True),
    "plain.npy": (write_npy_plain, False, False),
    "structured.npy": (write_npy_structured, True, True),
    "survey.las": (write_las, False, False),
    "survey.laz": (write_laz, False, False),
}


def read(path: Path, file_format: str | None = None, **options: tuple[str, ...]) -> FileCloud:
    (file,) = find_point_files(path, file_format)
    return read_cloud(file, **options)


@pytest.mark.parametrize("name", FILES)
def test_points_rings_and_ground_truth_are_read_in_order(name: str, tmp_path: Path) -> None:
    files_packages()
    write, has_rings, has_truth = FILES[name]
    write(tmp_path / name)
    cloud = read(tmp_path / name)
    assert cloud.name == name.partition(".")[0]
    assert cloud.points.dtype == np.float32
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.rings, RINGS if has_rings else None)
    np.testing.assert_array_equal(cloud.ground_truth, TRUTH if has_truth else None)


def test_a_given_format_overrules_the_suffix(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "scan.bin")
    np.testing.assert_array_equal(read(tmp_path / "scan.bin", "nuscenes").points, POINTS)
    assert len(read(tmp_path / "scan.bin").points) == 5  # 80 bytes are also five points of KITTI
    write_kitti(tmp_path / "scan.dat")
    np.testing.assert_array_equal(read(tmp_path / "scan.dat", "kitti").points, POINTS)


def test_a_folder_gives_its_files_by_name_and_skips_hidden_ones_and_others(tmp_path: Path) -> None:
    for name in ("b/2.ply", "b/10.pcd.bin", "a.bin", ".hidden/x.bin", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_point_files(tmp_path)
    assert [(f.name, f.format) for f in found] == [("a", "kitti"), ("b/10", "nuscenes"), ("b/2", "ply")]
    assert [f.name for f in find_point_files(tmp_path, "nuscenes")] == ["a", "b/10"]
    with pytest.raises(UserError, match="has no las files"):
        find_point_files(tmp_path, "las")


@needs_shared
@pytest.mark.parametrize("name", ["mrpt_hdl32_XYZIRT.npy", "nebula_vlp16_XYZIRT.npy"])
def test_recorded_structured_points_are_read(name: str) -> None:
    path = DATA / "other_sensors" / name
    recorded, cloud = np.load(path), read(path)
    for column, field in enumerate(("x", "y", "z", "intensity")):
        np.testing.assert_array_equal(cloud.points[:, column], recorded[field].astype(np.float32))
    np.testing.assert_array_equal(cloud.rings, recorded["ring"])


def test_the_intensity_is_the_usual_field_or_the_given_one_or_none(tmp_path: Path) -> None:
    types = [(name, "f4") for name in ("X", "Y", "Z", "Reflectivity", "signal")]
    np.save(tmp_path / "a.npy", np.array([(1, 2, 3, 40, 50)], types))
    assert read(tmp_path / "a.npy").points.tolist() == [[1, 2, 3, 40]]
    assert read(tmp_path / "a.npy", intensity_fields=("signal",)).points.tolist() == [[1, 2, 3, 50]]
    assert read(tmp_path / "a.npy", intensity_fields=()).points.tolist() == [[1, 2, 3, 0]]
    with pytest.raises(UserError, match=r"no field 'rgb' \(fields: x, y, z, reflectivity, signal\); name"):
        read(tmp_path / "a.npy", intensity_fields=("rgb",))


def save(path: Path, *names: str, scale: float = 1.0) -> None:
    np.save(path, np.full(50, scale, [(name, "f8") for name in names]))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("scan.bin", lambda data: data[:-3], r"61 bytes is not a whole number of points \(16 bytes each"),
        ("sweep.pcd.bin", lambda data: data[:-4], r"76 bytes is not a whole number of points \(20 bytes each"),
        ("binary.pcd", lambda data: data[:-19], "declares 4 points, but it has 3"),
        ("binary.pcd", lambda data: data[:-5], "cannot be read as pcd: buffer size"),
        ("binary.pcd", lambda data: data[:40], "has no FIELDS"),
        ("ascii.pcd", lambda data: data[: data.rindex(b"30")], "declares 4 points, but it has 3"),
        ("compressed.PCD", lambda data: data[:-20], "cannot be read as pcd"),
        ("big_endian.ply", lambda data: data[:-5], "early end-of-file"),
        ("ascii.ply", lambda data: b"no " + data, "expected 'ply'"),
        ("ascii.ply", lambda data: data.replace(b"vertex", b"points"), "no element 'vertex'"),
        ("ascii.ply", lambda data: data.replace(b"float y", b"float w"), "has no field 'y'"),
        ("plain.npy", lambda data: data[:-8], "cannot be read as npy"),
        ("plain.npy", lambda data: data.replace(b"(4, 4)", b"(16, )"), r"expected structured points, or numbers"),
        ("survey.las", lambda data: data[:-20], "declares 4 points, but it has 3"),
        ("survey.las", lambda data: data[:100], "cannot be read as las"),
        ("survey.las", lambda data: b"no" + data, "cannot be read as las"),
        ("survey.laz", lambda data: data[:-10], "cannot be read as las"),
        *((name, lambda data: b"", "it is empty") for name in ("ascii.pcd", "ascii.ply", "plain.npy", "survey.las")),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_reason(
    name: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    files_packages()
    path = tmp_path / name
    FILES[name][0](path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_scan_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "dark.npy", "x", "y", "z")
    with pytest.raises(UserError, match=r"no field 'intensity' or 'reflectivity' or 'i' .*--intensity-field ''"):
        read(tmp_path / "dark.npy")
    save(tmp_path / "map.npy", "x", "y", "z", "intensity", scale=4e5)
    with pytest.raises(UserError, match="692,820 m from the origin; expected metres in the sensor frame"):
        read(tmp_path / "map.npy")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected a point-cloud file \(\.bin, \.pcd, .*, or --format \(kitti,"):
        read(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing.pcd")
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle=False"):
        read(tmp_path / "pickle.npy")


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("pypcd4", "a.pcd", "files"),
        ("plyfile", "a.ply", "files"),
        ("laspy", "a.las", "files"),
        ("ouster.sdk", "a.osf", "ouster"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"pip install .*\[{extra}\]"):
        read(tmp_path / name)
