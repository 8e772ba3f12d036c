"""How points of a tilted sensor are levelled: the arithmetic, and the mount that is read from TF."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
import torch

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.mount import Mount

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
    levelled = Mount.from_angles(*angles).level(torch.from_numpy(points).float()).numpy()
    expected = [in_level_frame(point[:3], *angles) for point in points]
    np.testing.assert_allclose(levelled[:, :3], expected, atol=1e-5)
    np.testing.assert_array_equal(levelled[:, 3], points[:, 3].astype(np.float32))


def test_a_sensor_that_looks_down_has_a_positive_pitch() -> None:
    ahead = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    assert Mount.from_angles(0, 20, 0).level(ahead)[0, 2] < -3


@pytest.mark.parametrize("angles", ANGLES)
def test_the_ground_comes_to_lie_as_deep_below_a_tilted_sensor_as_below_the_models(
    angles: tuple[float, float, float],
) -> None:
    """A sensor at 0.6 m, a model that learned from one at 1.73 m."""
    corners = ([5.0, 0.0, -0.6], [-3.0, 4.0, -0.6], [0.0, -8.0, -0.6])
    to_level = np.stack([in_level_frame(axis, *angles) for axis in np.eye(3)], 1)
    seen = np.array([to_level.T @ corner for corner in corners])
    mount = Mount.from_angles(*angles, height_m=0.6, model_height_m=1.73)
    levelled = mount.level(torch.from_numpy(np.column_stack([seen, np.zeros(3)])).float()).numpy()
    np.testing.assert_allclose(levelled[:, 2], -1.73, atol=1e-5)
    np.testing.assert_allclose(levelled[:, :2], np.array(corners)[:, :2], atol=1e-5)


def test_missing_returns_stay_missing_in_a_lifted_cloud() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0, 0.5], [math.nan, 1.0, 1.0, 0.5], [0.0, 0.0, 2.0, 0.5]])
    levelled = Mount.from_angles(0, 10, 0, height_m=1.0, model_height_m=1.73).level(points)
    assert levelled[0].tolist() == [0, 0, 0, 0.5]
    assert levelled[1].isnan().any()
    assert levelled[2, 2] == pytest.approx(2 * math.cos(math.radians(10)) - 0.73)


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
        Mount.from_angles(0, 10, 0)
    assert Mount.from_angles(0, 0, 0, 1.0, 1.5).lift_m == -0.5  # needs neither
