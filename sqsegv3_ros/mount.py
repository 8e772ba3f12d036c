"""The sensor's mount: how a tilted sensor's points are levelled before they are projected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError

Rows = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
_IDENTITY: Rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Mount:
    """A rotation from the sensor's frame to a level one with the same origin, and a shift along the vertical.

    rotation: row-major 3 x 3. lift_m: added to the levelled z; positive for a sensor that sits higher than the one
    that the model learned from would, so that the ground lies where the model expects it.
    """

    rotation: Rows = _IDENTITY
    lift_m: float = 0.0

    @classmethod
    def from_angles(
        cls,
        roll_deg: float,
        pitch_deg: float,
        yaw_deg: float,
        height_m: float = 0.0,
        model_height_m: float | None = None,
    ) -> Mount:
        """A mount from its angles (REP 103: fixed axes x, y, z; positive pitch looks down) and heights over ground.

        height_m 0, or an unknown height of the model's sensor, leaves the height as it is. Raises UserError where
        angles are given and no package turns them into a rotation.
        """
        lift = height_m - model_height_m if height_m and model_height_m else 0.0
        if not (roll_deg or pitch_deg or yaw_deg):
            return cls(lift_m=lift)
        return cls(_rows(_rotation(*(math.radians(a) for a in (roll_deg, pitch_deg, yaw_deg)))), lift)

    @classmethod
    def from_quaternion(cls, x: float, y: float, z: float, w: float, lift_m: float = 0.0) -> Mount:
        """A mount from the rotation of a transform level frame <- sensor frame."""
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        x, y, z, w = x / norm, y / norm, z / norm, w / norm
        matrix = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        return cls(_rows(np.array(matrix)), lift_m)

    @property
    def is_level(self) -> bool:
        """Whether points stay as they are."""
        return self == Mount()

    def level(self, points: Tensor) -> Tensor:
        """(N, 4) float32 x, y, z, remission in the sensor frame -> the same in the level frame.

        (0, 0, 0), by which drivers say that nothing came back, stays where it is.
        """
        if self.is_level:
            return points
        xyz = points[:, :3] @ points.new_tensor(self.rotation).T
        if self.lift_m:
            xyz[:, 2] += self.lift_m * (points[:, :3] != 0).any(1)
        return torch.cat([xyz, points[:, 3:]], 1)


def _rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    try:
        from tf_transformations import euler_matrix  # a robot has it by rosdep

        return np.asarray(euler_matrix(roll, pitch, yaw, "sxyz"))[:3, :3]
    except ImportError:
        pass
    try:
        from transforms3d.euler import euler2mat  # what tf_transformations wraps, for machines without ROS
    except ImportError:
        raise UserError(
            "a tilted mount needs tf_transformations (rosdep install, or ros-$ROS_DISTRO-tf-transformations) or, "
            "without ROS, transforms3d (pip install transforms3d)"
        ) from None
    return np.asarray(euler2mat(roll, pitch, yaw, "sxyz"))


def _rows(matrix: np.ndarray) -> Rows:
    a, b, c = ((float(row[0]), float(row[1]), float(row[2])) for row in matrix)
    return a, b, c
