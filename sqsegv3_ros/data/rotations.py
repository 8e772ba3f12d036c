# SPDX-License-Identifier: Apache-2.0
"""Rotations and rigid transforms from angles and quaternions, and quaternions of rotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.errors import UserError

Matrix = npt.NDArray[np.float64]


def rotation_from_angles(roll: float, pitch: float, yaw: float) -> Matrix:
    """Compute the rotation of fixed-axis angles (REP 103: about x, then y, then z; positive pitch looks down).

    Args:
        roll: About x, radians.
        pitch: About y, radians.
        yaw: About z, radians.

    Returns:
        (3, 3) rotation.

    Raises:
        UserError: Neither tf_transformations nor transforms3d is installed.
    """
    try:
        from tf_transformations import euler_matrix  # installed by rosdep on a robot

        return np.asarray(euler_matrix(roll, pitch, yaw, "sxyz"))[:3, :3]
    except ImportError:
        pass
    try:
        from transforms3d.euler import euler2mat  # wrapped by tf_transformations; for machines without ROS
    except ImportError:
        raise UserError(
            "a rotation from roll, pitch and yaw needs tf_transformations (rosdep install, or "
            "ros-$ROS_DISTRO-tf-transformations) or, without ROS, transforms3d (pip install transforms3d)"
        ) from None
    return np.asarray(euler2mat(roll, pitch, yaw, "sxyz"))


def rotation_from_quaternion(x: float, y: float, z: float, w: float) -> Matrix:
    """Compute the (3, 3) rotation of a quaternion of any length except 0."""
    x, y, z, w = np.array([x, y, z, w]) / np.linalg.norm([x, y, z, w])
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: Matrix) -> tuple[float, float, float, float]:
    """Compute the unit quaternion (x, y, z, w), w >= 0, of a (3, 3) rotation.

    The eigenvector of Bar-Itzhack's symmetric matrix (Journal of Guidance, Control, and Dynamics 23(6), 2000): stable
    at every angle, and the nearest rotation for a matrix that is not exactly orthonormal.
    """
    r = rotation
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r.trace()],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]  # eigh reads the lower triangle
    sign = -1.0 if w < 0 else 1.0
    return float(sign * x), float(sign * y), float(sign * z), float(sign * w)


def transform_from_quaternion(translation: Sequence[float], quaternion: Sequence[float]) -> Matrix:
    """Compute the (4, 4) transform of a translation in metres and a quaternion x, y, z, w."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(*quaternion)
    matrix[:3, 3] = translation
    return matrix
