# SPDX-License-Identifier: Apache-2.0
"""Rotations from angles and quaternions and back, compared with Rodrigues' formula and quaternion products."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sqsegv3_ros.data.rotations import quaternion_from_rotation, rotation_from_angles, rotation_from_quaternion


def rodrigues(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-9, math.pi])
def test_a_quaternion_describes_its_rotation_at_every_angle(angle: float) -> None:
    generator = np.random.default_rng(0)
    for axis in [*generator.normal(size=(20, 3)), *np.eye(3), *-np.eye(3)]:
        rotation = rodrigues(axis, angle)
        x, y, z, w = quaternion_from_rotation(rotation)
        assert w >= 0 and w == pytest.approx(abs(math.cos(angle / 2)), abs=1e-12)
        np.testing.assert_allclose(rotation_from_quaternion(2 * x, 2 * y, 2 * z, 2 * w), rotation, atol=1e-9)
        v = np.array([x, y, z])
        for p in np.eye(3):
            rotated = p + 2 * w * np.cross(v, p) + 2 * np.cross(v, np.cross(v, p))
            np.testing.assert_allclose(rotated, rotation @ p, atol=1e-9)


def test_roll_pitch_and_yaw_rotate_about_the_fixed_axes_in_this_order() -> None:
    pytest.importorskip("transforms3d")
    x, y, z = np.eye(3)
    expected = rodrigues(z, 0.5) @ rodrigues(y, -0.3) @ rodrigues(x, 0.2)
    np.testing.assert_allclose(rotation_from_angles(0.2, -0.3, 0.5), expected, atol=1e-12)
