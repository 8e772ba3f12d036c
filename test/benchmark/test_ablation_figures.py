# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 ablate --figures`: coordinate statistics and activations by pixel, against known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PROJECTION, write_checkpoint
from torch.nn import functional

from sqsegv3_ros.benchmark.ablation import figures, observation
from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import write_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, normalize, project
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3

IMAGE = ProjectionConfig(height=8, width=64)


def at(column: float, distance: float, row: float = 4.5) -> list[float]:
    """A point in the middle of a pixel of `IMAGE`, (column + 0.5, row) of the image at some distance, remission 0."""
    azimuth = np.pi * (1 - (column + 0.5) / 32)
    elevation = np.radians(3 - 28 * row / 8)
    horizontal = distance * np.cos(elevation)
    return [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), distance * np.sin(elevation), 0]


def test_means_are_over_the_scans_that_have_a_point_there() -> None:
    scans = [np.array(points, dtype=np.float32) for points in ([at(10, 4), at(40, 8)], [at(10, 6)])]
    found = observation.coordinates(scans, IMAGE)
    assert found.scans == 2
    np.testing.assert_allclose(found.mean[:, 4, 10], at(10, 5)[:3], rtol=1e-5)
    np.testing.assert_allclose(found.mean[:, 4, 40], at(40, 8)[:3], rtol=1e-5)
    assert np.isfinite(found.mean).all(axis=0).sum() == 2


def test_samples_of_a_location_are_the_points_of_its_own_surroundings() -> None:
    scan = np.array([at(33, 4), at(32, 5), at(31, 6), at(30, 7), at(34, 7), at(10, 8)], dtype=np.float32)
    found = observation.coordinates([scan, scan], IMAGE)
    assert found.places == [(row, column) for row in (1, 4, 6) for column in (10, 32, 53)]
    by_place = dict(zip(found.places, found.samples, strict=True))
    distances = {place: sorted(np.linalg.norm(s, axis=1).round(3).tolist()) for place, s in by_place.items()}
    assert {place: d for place, d in distances.items() if d} == {(4, 32): [4, 4, 5, 5, 6, 6], (4, 10): [8, 8]}


def test_evenness_is_the_share_of_the_image_that_is_equally_active() -> None:
    mean = np.zeros((4, 4, 8))
    mean[0] = 3.0
    mean[1, :2, :4] = 0.1
    mean[2, 0, 0] = 7.0
    np.testing.assert_allclose(observation.evenness(mean), [1, 8 / 32, 1 / 32, np.nan])


@pytest.mark.parametrize("block", ["conv", "sac-isk"])
def test_activation_is_the_mean_over_scans_of_the_stages_first_convolution(block: str) -> None:
    torch.manual_seed(0)
    network = SqueezeSegV3(NetworkConfig(block=block).scaled(1 / 8)).eval()
    generator = np.random.default_rng(0)
    scans = [(generator.normal(size=(500, 4)) * [15, 15, 1, 0.2]).astype(np.float32) for _ in range(2)]
    expected = []
    with torch.no_grad():
        for points in scans:
            image = normalize(project(torch.from_numpy(points), IMAGE), Normalization())
            feature = network.encoder[0](network.stem(image), image[:, 1:4])
            narrow = functional.interpolate(image[:, 1:4], size=(8, 32), mode="bilinear", align_corners=True)
            first: Any = network.encoder[1].blocks[0]
            if block == "sac-isk":
                windows = functional.unfold(feature, 3, padding=1).view(1, -1, 8, 32)
                feature = first.attention(narrow) * windows
            expected.append(first.mix(feature)[0].double().numpy())
    found = observation.activation(network, scans, IMAGE, Normalization(), stage=2)
    np.testing.assert_allclose(found.mean, np.mean(expected, axis=0), atol=1e-6)
    chosen = figures.chosen_filters(found)
    assert len(set(chosen)) == len(chosen) and np.isfinite(found.evenness[chosen]).all()
    assert (np.diff(found.evenness[chosen]) >= 0).all()


def test_the_command_plots_and_writes_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'sqsegv3_ros[tools]'")
    generator = np.random.default_rng(0)
    for i in range(3):
        scan = (generator.normal(size=(2000, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
        write_scan(tmp_path / f"data/sequences/00/velodyne/{i:06}.bin", scan)
    write_checkpoint(tmp_path / "x.ckpt", NetworkConfig(block="sac-s").scaled(1 / 8))
    options = ["ablate", "--root", str(tmp_path / "data"), "--width", "64", "--limit", "2", "--figures"]
    assert PROJECTION.width == 64
    assert main([*options, str(tmp_path / "out"), "--checkpoint", str(tmp_path / "x.ckpt")]) == 0
    assert "of 2 scans" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/figures.json").read_text())
    assert result["scans"] == 2 and len(result["locations"]) == 9
    assert result["networks"]["untrained"]["filters"] == 16
    for name in ("coordinates", "locations", "activation"):
        assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert main([*options, str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "b"), "--checkpoint", str(tmp_path / "data")]) == 2
    assert not (tmp_path / "b").exists()


def test_nothing_to_look_at_is_an_error() -> None:
    with pytest.raises(UserError, match="no scans found"):
        observation.coordinates([], IMAGE)
