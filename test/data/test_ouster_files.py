# SPDX-License-Identifier: Apache-2.0
"""Ouster recordings, written by Ouster's own library, against the formula in Ouster's manual."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqsegv3_ros.data.point_files import FileCloud, find_point_files, read_clouds
from sqsegv3_ros.errors import UserError

core = pytest.importorskip("ouster.sdk.core", reason="needs ouster-sdk: make test-ouster")

SCANS = 2


@pytest.fixture(scope="module")
def info() -> Any:
    made = core.SensorInfo.from_default(core.LidarMode._512x10)
    made.format.udp_profile_lidar = core.UDPProfileLidar.RNG19_RFL8_SIG16_NIR16
    made.config.udp_port_lidar, made.config.udp_port_imu = 7502, 7503
    return made


def ranges_mm(info: Any, scan: int) -> np.ndarray:
    """(H, W) staggered: another range in every pixel, and no return in every seventh column."""
    result = 2000 + scan + 10 * np.arange(info.h)[:, None] + 4 * np.arange(info.w)
    result[:, ::7] = 0
    return result


def reflectivity(info: Any) -> np.ndarray:
    return (np.arange(info.h)[:, None] + np.arange(info.w)) % 256


@pytest.fixture(scope="module")
def folder(info: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drive.osf, drive.pcap and drive.json with two scans."""
    from ouster.sdk import osf, pcap

    path = tmp_path_factory.mktemp("ouster")
    frames = []
    for number in range(SCANS):
        frame = core.LidarFrame(info)
        frame.field("RANGE")[:] = ranges_mm(info, number)
        frame.field("REFLECTIVITY")[:] = reflectivity(info)
        frame.status[:], frame.frame_id, frame.measurement_id[:] = 1, number + 1, np.arange(info.w)
        frame.timestamp[:] = 10**9 * (number + 1) + 100_000 * np.arange(info.w)
        frame.packet_timestamp[:] = frame.timestamp[:: info.format.columns_per_packet]
        frames.append(frame)
    with osf.Writer(str(path / "drive.osf"), info) as writer:
        for frame in frames:
            writer.save(0, frame)
    packets = []
    for frame in frames:
        for packet in core.frame_to_packets(frame, core.PacketFormat(info), info.init_id, 0):
            packet.host_timestamp = 10**9 * int(frame.frame_id) + 10**6 * len(packets)
            packets.append(packet)
    pcap.record(packets, str(path / "drive.pcap"))
    (path / "drive.json").write_text(info.to_json_string())
    return path


def expected_points(info: Any, scan: int) -> np.ndarray:
    """(H, W, 4) destaggered points in the sensor frame, after Ouster's manual ("Lidar Range to XYZ")."""
    distance, offset = ranges_mm(info, scan).astype(float), info.lidar_origin_to_beam_origin_mm
    encoder = 2 * np.pi * (1 - np.arange(info.w) / info.w)[None, :]
    azimuth = -np.radians(np.array(info.beam_azimuth_angles))[:, None]
    altitude = np.radians(np.array(info.beam_altitude_angles))[:, None]
    across = (distance - offset) * np.cos(altitude)
    x = across * np.cos(encoder + azimuth) + offset * np.cos(encoder)
    y = across * np.sin(encoder + azimuth) + offset * np.sin(encoder)
    z = (distance - offset) * np.sin(altitude)
    in_sensor = np.stack([x, y, z, np.ones_like(x)], -1) @ np.asarray(info.lidar_to_sensor_transform).T
    points = np.concatenate([in_sensor[..., :3] / 1000, reflectivity(info)[..., None]], -1)
    points[distance == 0, :3] = 0
    shifts = info.format.pixel_shift_by_row
    return np.stack([np.roll(row, shift, axis=0) for row, shift in zip(points, shifts, strict=True)])


def clouds(path: Path) -> list[FileCloud]:
    (file,) = find_point_files(path)
    return list(read_clouds(file))


@pytest.mark.parametrize("suffix", [".osf", ".pcap"])
def test_every_scan_of_a_recording_is_read_row_by_row(folder: Path, info: Any, suffix: str) -> None:
    found = clouds(folder / f"drive{suffix}")
    assert [cloud.name for cloud in found] == ["drive/000000", "drive/000001"]
    for scan, cloud in enumerate(found):
        np.testing.assert_allclose(cloud.points, expected_points(info, scan).reshape(-1, 4), atol=1e-5)
        np.testing.assert_array_equal(cloud.rings, np.repeat(np.arange(info.h), info.w))


def test_a_pcap_without_its_metadata_and_damaged_recordings_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "drive.pcap", tmp_path / "lonely.pcap")
    with pytest.raises(UserError, match=r"the sensor's metadata must be beside it, as <name>\.json"):
        clouds(tmp_path / "lonely.pcap")
    for name in ("drive.osf", "drive.pcap"):
        data = (folder / name).read_bytes()
        shutil.copy(folder / "drive.json", tmp_path)
        for damaged in (b"", data[:3000], b"hello" * 100):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=str(tmp_path / name)) as error:
                clouds(tmp_path / name)
            assert "Failed to create" not in str(error.value)
