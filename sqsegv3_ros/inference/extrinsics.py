# SPDX-License-Identifier: Apache-2.0
"""Extrinsics of the sensor: levelling of a tilted sensor's points, and height compensation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sqsegv3_ros.data.rotations import rotation_from_angles, rotation_from_quaternion
from sqsegv3_ros.inference.range_image import EMPTY, RangeImage

Rows = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
_IDENTITY: Rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Extrinsics:
    """A rotation from the sensor's frame to a level one with the same origin, and the sensor's height.

    Attributes:
        rotation: Row-major 3 x 3.
        height_m: Height above the ground, metres; None if unknown, which is as the model's sensor.
    """

    rotation: Rows = _IDENTITY
    height_m: float | None = None

    @classmethod
    def from_angles(
        cls, roll_deg: float, pitch_deg: float, yaw_deg: float, height_m: float | None = None
    ) -> Extrinsics:
        """Extrinsics from angles (REP 103: fixed axes x, y, z; positive pitch looks down).

        Raises UserError if no package that converts angles is installed.
        """
        if not (roll_deg or pitch_deg or yaw_deg):
            return cls(height_m=height_m)
        return cls(_rows(rotation_from_angles(*(math.radians(a) for a in (roll_deg, pitch_deg, yaw_deg)))), height_m)

    @classmethod
    def from_quaternion(cls, x: float, y: float, z: float, w: float, height_m: float | None = None) -> Extrinsics:
        """Extrinsics from the rotation of a transform level frame <- sensor frame."""
        return cls(_rows(rotation_from_quaternion(x, y, z, w)), height_m)

    @property
    def is_level(self) -> bool:
        """Whether points keep their coordinates."""
        return self.rotation == _IDENTITY

    def level(self, points: Tensor) -> Tensor:
        """Rotate points into the level frame.

        Args:
            points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
        """
        if self.is_level:
            return points
        return torch.cat([points[:, :3] @ points.new_tensor(self.rotation).T, points[:, 3:]], 1)

    def compensate_height(self, image: RangeImage, model_height_m: float | None) -> RangeImage:
        """Shift the image's coordinates to those that a sensor at the model's height would measure.

        The ground is then at the height that the model knows; otherwise it takes roads for cars. Every point keeps its
        pixel, so the spacing of the beams does not change.

        Args:
            image: Range image in the level frame.
            model_height_m: Height of the sensor that the model was trained with, metres; None: unknown, no change.
        """
        if self.height_m is None or model_height_m is None or self.height_m == model_height_m:
            return image
        _, x, y, z, remission = image.channels
        z = z + (self.height_m - model_height_m)
        channels = torch.stack([(x * x + y * y + z * z).sqrt(), x, y, z, remission])
        return replace(image, channels=channels.masked_fill_(~image.mask, EMPTY))


def _rows(matrix: np.ndarray) -> Rows:
    a, b, c = ((float(row[0]), float(row[1]), float(row[2])) for row in matrix)
    return a, b, c
