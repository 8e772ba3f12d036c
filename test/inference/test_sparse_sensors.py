# SPDX-License-Identifier: Apache-2.0
"""Filling the gaps between the beams of a sensor that has fewer of them than the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, fill_gaps, normalize, project
from sqsegv3_ros.inference.segmenter import Segmenter


def scan(elevations_deg: np.ndarray, columns: int = 64, seed: int = 0) -> torch.Tensor:
    """(N, 4): a point of random range and remission in the middle of every column, for each beam."""
    generator = np.random.default_rng(seed)
    azimuth, elevation = np.meshgrid(np.pi - (np.arange(columns) + 0.5) / columns * 2 * np.pi, elevations_deg)
    elevation = np.radians(elevation)
    distance = generator.uniform(2, 50, azimuth.shape)
    xyz = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
    points = [*(axis * distance for axis in xyz), generator.uniform(0, 1, azimuth.shape)]
    return torch.from_numpy(np.stack([p.ravel() for p in points], 1).astype(np.float32))


@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_an_empty_pixel_takes_the_nearest_one_above_or_below_and_no_other(rows: int) -> None:
    points = scan(np.linspace(9.5, -9.5, 20))
    points = points[torch.from_numpy(np.random.default_rng(1).random(len(points)) < 0.3)]
    image = project(points, ProjectionConfig(20, 64, 10.0, -10.0))
    filled = fill_gaps(image, rows)
    expected = image.channels.clone()
    for column in range(64):
        used = [row for row in range(20) if image.mask[row, column]]
        for row in range(20):
            near = min(used, key=lambda r: (abs(r - row), r), default=None)
            if near is not None and abs(near - row) <= rows:
                expected[:, row, column] = image.channels[:, near, column]
    assert torch.equal(filled.channels, expected)
    assert torch.equal(filled.mask, expected[0] >= 0)
    assert (filled.mask != image.mask).any()


def test_what_has_a_point_keeps_it_and_the_way_back_to_the_points_stays() -> None:
    image = project(scan(np.array([8.5, 0.5, -8.5])), ProjectionConfig(20, 64, 10.0, -10.0))
    before = image.channels.clone()
    filled = fill_gaps(image, 3)
    assert torch.equal(filled.channels[:, image.mask], before[:, image.mask])
    assert torch.equal(image.channels, before)
    for name in ("index", "pixel", "point_range", "usable"):
        assert torch.equal(getattr(filled, name), getattr(image, name))
    assert filled.mask.sum() == (5 + 7 + 5) * 64  # 3 rows to each side, as far as the image reaches
    assert fill_gaps(image, 0) is image


def test_pixels_without_a_point_in_reach_are_nothing_to_the_network() -> None:
    image = project(scan(np.array([8.5])), ProjectionConfig(20, 64, 10.0, -10.0))
    network_input = normalize(fill_gaps(image, 2), Normalization())
    assert (network_input[0, :, 4:] == 0).all() and (network_input[0, 0, :4] != 0).all()
    nothing = fill_gaps(project(torch.zeros(0, 4), ProjectionConfig(20, 64)), 2)
    assert not nothing.mask.any() and (nothing.channels == -1).all()


class Recorder(torch.nn.Module):
    """Stands in for a network: class 1 everywhere; keeps what it was shown."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shown = image.clone()
        logits = torch.zeros(1, 20, *image.shape[2:])
        logits[:, 1] = 5.0
        return logits


def test_the_network_sees_16_beams_as_a_picture_without_gaps(small_model: Path) -> None:
    recorder = Recorder()
    beams = scan(np.linspace(14.75, -15.25, 16))
    projection = ProjectionConfig(64, 64, 16.0, -16.0, fill_rows=2)
    segmenter = Segmenter(small_model, backend="torch", device="cpu", projection=projection, knn=KnnConfig("off"))
    segmenter._network = recorder
    result = segmenter.segment(beams)
    assert (recorder.shown != 0).any(1).all()
    shown = recorder.shown[0]
    for row in range(64):  # the beams lie in rows 2, 6, ..., 62
        beam = min(range(2, 64, 4), key=lambda r: (abs(r - row), r))
        assert torch.equal(shown[:, row], shown[:, beam])
    assert (result.labels == 1).all()
    assert (result.label_image == 1).float().mean() == 0.25  # but only pixels with a point have a label
    assert (result.image.index >= 0).sum() == 16 * 64


def test_a_senseless_number_of_rows_is_refused() -> None:
    with pytest.raises(UserError, match=r"fill_rows must be in 0..1024, found -1"):
        ProjectionConfig(fill_rows=-1)
