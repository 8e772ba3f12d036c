# SPDX-License-Identifier: Apache-2.0
"""How points of a tilted sensor are levelled, and what the network is shown of one at another height."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, project
from sqsegv3_ros.inference.segmenter import Segmenter

ANGLES = [(0.0, 0.0, 0.0), (0.0, 20.0, 0.0), (10.0, -5.0, 0.0), (3.0, 4.0, 180.0)]


def rotated(vector: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    return (
        vector * math.cos(angle)
        + np.cross(axis, vector) * math.sin(angle)
        + axis * (axis @ vector) * (1 - math.cos(angle))
    )


def in_level_frame(vector: np.ndarray, roll: float, pitch: float, yaw: float) -> np.ndarray:
    """REP 103: about the fixed axes x, y, z, in this order."""
    for axis, angle in zip(np.eye(3), (roll, pitch, yaw), strict=True):
        vector = rotated(vector, axis, math.radians(angle))
    return vector


@pytest.mark.parametrize("angles", ANGLES)
def test_points_are_turned_about_fixed_axes_and_keep_their_remission(angles: tuple[float, float, float]) -> None:
    points = np.random.default_rng(0).normal(size=(50, 4))
    levelled = Extrinsics.from_angles(*angles).level(torch.from_numpy(points).float()).numpy()
    expected = [in_level_frame(point[:3], *angles) for point in points]
    np.testing.assert_allclose(levelled[:, :3], expected, atol=1e-5)
    np.testing.assert_array_equal(levelled[:, 3], points[:, 3].astype(np.float32))


def test_a_sensor_that_looks_down_has_a_positive_pitch() -> None:
    ahead = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    assert Extrinsics.from_angles(0, 20, 0).level(ahead)[0, 2] < -3


@pytest.mark.parametrize("angles", ANGLES)
def test_the_network_sees_the_ground_as_deep_below_a_tilted_sensor_as_below_the_models(
    angles: tuple[float, float, float], small_model: Path
) -> None:
    """A sensor at 0.6 m, a model that learned from one at 1.73 m: what it is shown, and in which pixels."""
    azimuth = np.radians(np.arange(-180, 180, 7) + 0.3)
    ground = np.stack([5 * np.cos(azimuth), 5 * np.sin(azimuth), np.full_like(azimuth, -0.6)], 1)
    to_level = np.stack([in_level_frame(axis, *angles) for axis in np.eye(3)], 1)
    seen = np.column_stack([ground @ to_level, np.full(len(ground), 0.5)]).astype(np.float32)

    shown: list[torch.Tensor] = []
    segmenter = Segmenter(small_model, extrinsics=Extrinsics())
    segmenter._network = recorder(shown)
    segmenter.segment(np.column_stack([ground, seen[:, 3]]).astype(np.float32))
    segmenter.extrinsics = Extrinsics.from_angles(*angles, height_m=0.6)
    segmenter.segment(seen)
    level, lifted = (x[0].permute(1, 2, 0).double() * torch.tensor(STDS) + torch.tensor(MEANS) for x in shown)
    used = (shown[0][0] != 0).any(0)
    assert used.sum() == len(ground) and torch.equal((shown[1][0] != 0).any(0), used)  # rays keep their pixels
    torch.testing.assert_close(lifted[used][:, 3], torch.full((len(ground),), -1.73).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(lifted[used][:, 1:3], level[used][:, 1:3], atol=1e-4, rtol=0)
    distance = torch.full((len(ground),), math.hypot(5, 1.73)).double()
    torch.testing.assert_close(lifted[used][:, 0], distance, atol=1e-4, rtol=0)


MEANS, STDS = Normalization().means, Normalization().stds


def recorder(shown: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Stands in for a network; keeps what it is shown."""

    def network(image: torch.Tensor) -> torch.Tensor:
        shown.append(image.clone())
        return torch.zeros(1, 20, *image.shape[2:])

    return network


@pytest.mark.parametrize(("own", "models"), [(None, 1.73), (1.73, 1.73), (0.6, None)])
def test_an_unknown_height_on_either_side_changes_nothing(own: float | None, models: float | None) -> None:
    image = project(torch.tensor([[5.0, 0.0, -0.6, 0.3]]), ProjectionConfig())
    assert Extrinsics(height_m=own).compensate_height(image, models) is image


def test_missing_returns_stay_missing_on_a_raised_sensor() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0, 0.5], [math.nan, 1.0, 1.0, 0.5], [5.0, 0.0, -0.5, 0.5]])
    extrinsics = Extrinsics.from_angles(0, 10, 0, height_m=1.0)
    image = extrinsics.compensate_height(project(extrinsics.level(points), ProjectionConfig()), 1.73)
    assert image.usable.tolist() == [False, False, True]
    assert (image.channels.amax(0) > -1).sum() == 1


def test_angles_without_a_package_that_turns_them_into_a_rotation_say_which_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("tf_transformations", "transforms3d"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"tf_transformations.*pip install transforms3d"):
        Extrinsics.from_angles(0, 10, 0)
    assert Extrinsics.from_angles(0, 0, 0, 1.0).is_level  # needs neither
