# SPDX-License-Identifier: Apache-2.0
"""Warnings for clouds that do not fit the model: synthetic ones, and recordings of real sensors with every preset."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT, needs_shared

from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.input_checks import Expected, check_input
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, project
from sqsegv3_ros.pointcloud2 import CloudSettings, to_remission

OTHERS = DATA / "other_sensors"
VLP16 = ProjectionConfig(64, 1024, 16.0, -16.0, ring_count=16, fill_rows=3)


def scan(elevations_deg: np.ndarray, columns: int = 500, intensity: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Points 10 m away and their rings, counted from the first elevation on."""
    azimuth, elevation = np.meshgrid(np.linspace(-3, 3, columns), np.radians(elevations_deg), indexing="ij")
    xyz = np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)
    points = np.stack([*(10 * axis for axis in xyz), np.full(azimuth.shape, intensity)], 2).reshape(-1, 4)
    return points.astype(np.float32), np.tile(np.arange(len(elevations_deg), dtype=np.int32), columns)


PUCK = np.linspace(-15, 15, 16)


def of(
    points: np.ndarray, rings: np.ndarray | None, projection: ProjectionConfig, extrinsics: Extrinsics | None = None
) -> str:
    return "; ".join(check_input(points, rings, Expected(projection, Normalization(), extrinsics or Extrinsics())))


def test_a_scan_of_the_expected_sensor_gives_no_warning() -> None:
    assert of(*scan(PUCK), VLP16) == ""
    assert of(*scan(np.linspace(2, -24.8, 64)), ProjectionConfig()) == ""


def test_a_sensor_without_returns_from_the_upper_beams_gives_no_warning() -> None:
    points, rings = scan(PUCK)
    low = points[:, 2] < 0
    assert of(points[low], rings[low], VLP16) == ""


@pytest.mark.parametrize(
    ("intensity", "warning"),
    [
        (60.0, "its median is 60"),
        (0.001, "hardly exceeds 0.001"),
        (0.06, "hardly exceeds 0.06"),
        (np.nan, "no intensity is finite"),
        (0.6, ""),
    ],
)
def test_intensity_of_another_scale_gives_a_warning(intensity: float, warning: str) -> None:
    found = of(*scan(PUCK, intensity=intensity), VLP16)
    assert warning in found and bool(found) == bool(warning) and ("intensity_" in found) == bool(warning)


@pytest.mark.parametrize(
    ("factor", "power", "set_now", "suggested"),
    [
        (256, 1, CloudSettings(), "values reach 128, set intensity_scale: 0.00392157 and intensity_exponent: 1"),
        (65535, 1, CloudSettings(), "set intensity_scale: 1.5259e-05 and intensity_exponent: 1"),
        (1 / 0.085**2, 2, CloudSettings(), "set intensity_scale: 0.085 and intensity_exponent: 0.5"),
        # what the settings make of 0..1 and of 0..255
        (1, 1, CloudSettings(intensity_scale=1 / 255), "values reach 0.5, set intensity_scale: 1 and"),
        (256, 1, CloudSettings(intensity_scale=2.0, intensity_exponent=0.5), "reach 128, set intensity_scale: 0.0039"),
        (1e12, 1, CloudSettings(), "set intensity_scale, intensity_exponent or intensity_fields"),
    ],
)
def test_the_usual_scale_of_what_the_cloud_holds_is_suggested(
    factor: float, power: float, set_now: CloudSettings, suggested: str
) -> None:
    """Remissions of 0..0.5, as a driver that scales them so publishes them."""
    points, _ = scan(PUCK)
    points[:, 3] = factor * np.linspace(0, 0.6, len(points)).clip(max=0.5) ** power
    to_remission(points[:, 3], set_now)
    expected = Expected(VLP16, Normalization(), cloud=set_now)
    assert suggested in "; ".join(check_input(points, None, expected))


def test_points_beyond_the_field_of_view_give_a_warning_with_the_angles_found() -> None:
    points, _ = scan(PUCK)
    assert "37 % of the points are outside -25..3 deg (found -15.0..15.0)" in of(points, None, ProjectionConfig())
    assert "fill -15.0..15.0 deg of -60..60" in of(points, None, ProjectionConfig(16, 512, 60.0, -60.0))


def test_another_number_of_rings_gives_a_warning() -> None:
    points, rings = scan(np.linspace(-15, 15, 32))
    assert "found 0..31, expected 0..15" in of(points, rings, VLP16)
    points, rings = scan(PUCK)
    assert "found 16 of 32 over the whole" in of(points, rings, ProjectionConfig(64, 1024, 16.0, -16.0, ring_count=32))
    by_ring = ProjectionConfig(32, 1024, 16.0, -16.0, rows="ring_from_bottom")
    assert "found 16 of 32 over the whole" in of(points, rings, by_ring)


@pytest.mark.parametrize(
    ("order", "rows", "warning"),
    [
        (np.arange(16), "ring_from_bottom", ""),
        (np.arange(16), "ring_from_top", "the other way round"),
        (np.arange(16)[::-1], "ring_from_top", ""),
        (np.arange(16)[::-1], "ring_from_bottom", "the other way round"),
        (np.concatenate([np.arange(0, 16, 2), np.arange(1, 16, 2)[::-1]]), "ring_from_bottom", "not by elevation"),
    ],
)
def test_rows_from_rings_in_another_order_give_a_warning(order: np.ndarray, rows: str, warning: str) -> None:
    points, rings = scan(PUCK)
    found = of(points, order[rings].astype(np.int32), ProjectionConfig(16, 1024, 16.0, -16.0, rows=rows))
    assert warning in found and bool(found) == bool(warning)


def test_gaps_between_beams_give_a_warning_without_rings_unless_they_are_filled() -> None:
    points, _ = scan(PUCK)
    sparse = ProjectionConfig(64, 1024, 16.0, -16.0)
    assert "of the image's rows between them are empty" in of(points, None, sparse)
    assert of(points, None, VLP16) == ""


@pytest.mark.parametrize(
    ("columns", "width", "fits"),
    [(1024, 1024, True), (900, 1024, True), (1800, 1024, True), (1024, 2048, False), (512, 1024, False)],
)
def test_an_image_wider_than_the_sensors_turn_gives_a_warning(columns: int, width: int, fits: bool) -> None:
    azimuth = np.pi * (1 - 2 * (np.arange(columns) + 0.5) / columns)
    points = np.stack([10 * np.cos(azimuth), 10 * np.sin(azimuth), 0 * azimuth, 0 * azimuth + 0.25], 1)
    beams = [points + [0, 0, 10 * np.tan(np.radians(elevation)), 0] for elevation in PUCK]
    cloud, projection = np.concatenate(beams).astype(np.float32), ProjectionConfig(64, width, 16.0, -16.0, fill_rows=3)
    seen = np.random.default_rng(0).random(len(cloud)) < 0.8  # some rays meet nothing
    seen[: len(cloud) // 4] = False
    mask = project(torch.from_numpy(cloud[seen]), projection).mask
    found = "; ".join(check_input(cloud[seen], None, Expected(projection, Normalization()), mask))
    assert ("columns do not fit" in found) != fits and bool(found) != fits


def test_a_tilted_cloud_is_checked_after_levelling() -> None:
    points, rings = scan(PUCK)
    extrinsics = Extrinsics.from_angles(0, 30, 0)
    tilted = points.copy()
    tilted[:, :3] = points[:, :3] @ np.array(extrinsics.rotation)
    assert "field of view does not fit" in of(tilted, rings, VLP16)
    assert of(tilted, rings, VLP16, extrinsics) == ""


def on_the_ground(height_m: float) -> np.ndarray:
    """What a VLP-16 so high over a plane sees up to 60 m away, walls to both sides."""
    points, _ = scan(np.linspace(-15, 15, 32))
    ray = points[:, :3] / 10
    far = np.minimum(60, np.where(ray[:, 2] < 0, height_m / np.maximum(-ray[:, 2], 1e-3), 60))
    points[:, :3] = ray * np.minimum(far, 12 / np.maximum(np.abs(ray[:, 1]), 0.1))[:, None]
    return points


@pytest.mark.parametrize("tilt", [0.0, 12.0])
@pytest.mark.parametrize(
    ("height", "said", "warning"),
    [
        (1.73, None, ""),
        (
            0.6,
            None,
            "ground appears 0.6 m below the sensor, the model was trained with 1.73 m; set extrinsics.height_m",
        ),
        (0.6, 0.6, ""),
        (3.0, None, "ground appears 3.0 m below"),
        (
            1.73,
            0.8,
            "ground appears 1.7 m below the sensor, the extrinsics say 0.8 m; set extrinsics.height_m, or correct the",
        ),
    ],
)
def test_a_sensor_at_another_height_than_it_is_said_to_be_gives_a_warning(
    height: float, said: float | None, warning: str, tilt: float
) -> None:
    points = on_the_ground(height)
    extrinsics = Extrinsics.from_angles(0, tilt, 0, said)
    points[:, :3] = points[:, :3] @ np.array(extrinsics.rotation)
    found = "; ".join(check_input(points, None, Expected(VLP16, Normalization(), extrinsics, 1.73)))
    assert warning in found and bool(found) == bool(warning)
    assert check_input(points, None, Expected(VLP16, Normalization(), extrinsics, None)) == ()


def test_clouds_of_few_points_or_only_zeros_give_no_warning() -> None:
    points, rings = scan(PUCK, 20)
    assert of(points, rings, ProjectionConfig()) == ""
    assert of(np.zeros((100_000, 4), np.float32), None, ProjectionConfig()) == ""


# ---- real recordings -------------------------------------------------------------------------------------------------


def recording(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, 4) x, y, z, intensity as recorded, and the rings if the file has them."""
    path = next(OTHERS.rglob(f"{name}*"))
    if path.suffix == ".bin":
        return np.fromfile(path, np.float32).reshape(-1, 4).copy(), None
    data = np.load(path)
    if path.suffix == ".npy":
        columns = [data[field] for field in ("x", "y", "z", "intensity")]
        return np.stack(columns, 1).astype(np.float32), data["ring"].astype(np.int32)
    height, width = data["range_mm"].shape
    points = np.concatenate([data["xyz"], data["reflectivity"][..., None]], 2).reshape(-1, 4)
    return points.astype(np.float32), np.repeat(np.arange(height, dtype=np.int32), width)


def preset(name: str) -> tuple[ProjectionConfig, CloudSettings]:
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    from sqsegv3_ros.inference.parameter_file import read_parameters

    values = read_parameters(ROOT / "config" / "sensors" / f"{name}.yaml")
    settings = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("projection.")}
    assert "width" not in settings  # the model's own: here that of the shipped ones
    intensity = {key: value for key, value in values.items() if key in ("intensity_scale", "intensity_exponent")}
    return ProjectionConfig(width=576, **settings), CloudSettings(**intensity)


def warnings_for(name: str, sensor: str) -> str:
    points, rings = recording(name)
    projection, intensity = preset(sensor)
    to_remission(points[:, 3], intensity)
    mask = project(torch.from_numpy(points), projection).mask
    return "; ".join(check_input(points, rings, Expected(projection, Normalization()), mask))


OWN = {
    "mrpt_vlp16": "vlp16",
    "nebula_vlp16": "vlp16",
    "mrpt_hdl32": "hdl32e",
    "veloview_monterey": "hdl32e",
    "ouster_OS-1-64": "ouster_os1_64",
    "ouster_OS-1-128": "ouster_os1_128",
    "vel000104": "vlp32c",
}


# recorded with firmware that did not calibrate its reflectivity yet: the presets' scale does not fit them
UNCALIBRATED = ("mrpt_hdl32", "ouster_OS-1-64")


@needs_shared
@pytest.mark.parametrize("name", OWN)
def test_real_clouds_fit_their_sensors_preset(name: str) -> None:
    found = warnings_for(name, OWN[name])
    if name in UNCALIBRATED:
        assert found.startswith("intensity does not fit: its median") and found.count("does not fit") == 1
        assert "do not fit" not in found
    else:
        assert found == ""


@needs_shared
@pytest.mark.parametrize("sequence", ["00", "01", "04", "09"])
def test_kitti_fits_what_the_model_learned_from_and_not_twice_scaled(sequence: str) -> None:
    path = DATA / f"semantic_kitti/sequences/{sequence}/velodyne/000000.bin"
    points = np.fromfile(path, np.float32).reshape(-1, 4).copy()
    expected = Expected(ProjectionConfig(), Normalization(), Extrinsics(), 1.73)
    assert check_input(points, None, expected, project(torch.from_numpy(points), expected.projection).mask) == ()
    projection, intensity = preset("hdl64e")
    assert of(points, None, projection) == ""
    to_remission(points[:, 3], intensity)
    expected = Expected(projection, Normalization(), cloud=intensity)
    found = "; ".join(check_input(points, None, expected))
    assert "intensity does not fit: it hardly exceeds" in found and "set intensity_scale: 1 and" in found


@needs_shared
@pytest.mark.parametrize(
    ("name", "ground_m"),
    [("veloview_monterey", 2.2), ("vel000104", 1.1), ("ouster_OS-1-128", None), ("mrpt_vlp16", None)],
)
def test_the_height_of_a_real_sensor_is_told_from_its_cloud(name: str, ground_m: float | None) -> None:
    points, _ = recording(name)
    found = "; ".join(check_input(points, None, Expected(ProjectionConfig(), Normalization(), Extrinsics(), 1.73)))
    assert ("height does not fit" in found) == (ground_m is not None)
    if ground_m is not None:  # as the scans' pictures show it
        assert float(found.rpartition("appears ")[2].split()[0]) == pytest.approx(ground_m, abs=0.15)


@needs_shared
@pytest.mark.parametrize("name", OWN)
def test_real_clouds_do_not_fit_what_a_64_beam_model_learned_from(name: str) -> None:
    points, rings = recording(name)
    found = of(points, rings, ProjectionConfig())
    assert "field of view does not fit" in found and "intensity does not fit: its median" in found


@needs_shared
@pytest.mark.parametrize(
    ("name", "sensor"),
    [
        ("mrpt_vlp16", "hdl32e"), ("mrpt_vlp16", "vlp32c"), ("mrpt_vlp16", "ouster_os1_64"),
        ("nebula_vlp16", "hdl32e"), ("nebula_vlp16", "ouster_os1_128"), ("nebula_vlp16", "hdl64e"),
        ("mrpt_hdl32", "vlp16"), ("mrpt_hdl32", "vlp32c"), ("mrpt_hdl32", "ouster_os1_64"),
        ("veloview_monterey", "vlp16"), ("veloview_monterey", "vlp32c"), ("veloview_monterey", "hdl64e"),
        ("ouster_OS-1-64", "vlp16"), ("ouster_OS-1-64", "ouster_os1_128"), ("ouster_OS-1-64", "hdl64e"),
        ("ouster_OS-1-128", "ouster_os1_64"), ("ouster_OS-1-128", "hdl32e"), ("vel000104", "hdl64e"),
    ],
)  # fmt: skip
def test_real_clouds_with_another_sensors_preset_give_a_warning(name: str, sensor: str) -> None:
    found = warnings_for(name, sensor)
    assert "field of view does not fit" in found or "rings do not fit" in found or "beams do not fit" in found


@needs_shared
def test_an_ouster_recording_with_raw_intensity_of_another_scale_gives_a_warning() -> None:
    assert "intensity does not fit: it hardly exceeds" in warnings_for("000104.bin", "ouster_os1_64")


def test_the_documentation_lists_every_preset_with_its_image() -> None:
    text = (ROOT / "docs" / "sensors.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| preset \| beams \| field of view of the image \((\d+) rows\)", text, re.M)
    row = r"^\| `(\w+)` \| (\d+) \| \+([\d.]+)\.\.-([\d.]+) deg \| [^|]+ \| (\d+) \|$"
    listed = {n: (float(b), float(u), float(d), float(rows), float(f)) for n, b, u, d, f in re.findall(row, text, re.M)}
    presets = {}
    for path in (ROOT / "config" / "sensors").glob("*.yaml"):
        p, _ = preset(path.stem)
        presets[path.stem] = (p.ring_count, p.fov_up_deg, -p.fov_down_deg, p.height, p.fill_rows)
    assert presets and listed == presets
