# SPDX-License-Identifier: Apache-2.0
"""Motion of the sensor along a street.

World frame: x along the street at u = 0, y left, z up, metres. A pose is (x, y, z, yaw, pitch, roll): angles in
radians, pitch positive nose down, applied in the order roll, pitch, yaw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.simulation.ground import Plan, heading, height, to_world

Array = npt.NDArray[np.float64]
_AXLES_M, _TRACK_M = 2.7, 1.6


@dataclass(frozen=True)
class Drive:
    """Motion of a vehicle along a street.

    Attributes:
        plan: Plan of the street.
        u_m: Position along the street at time 0.
        speed_mps: Speed; negative in the direction of -u.
        v_m: Lateral position.
        mount_height_m: Height of the sensor above the ground.
        turn_rad: Yaw relative to the direction of travel.
        sway: Seed of the small movements of the body.
    """

    plan: Plan
    u_m: float
    speed_mps: float
    v_m: float
    mount_height_m: float
    turn_rad: float = 0.0
    sway: int = 0

    def place(self, time: Array | float) -> tuple[Array, Array]:
        """Get (u, v) at times in seconds."""
        t = np.asarray(time, dtype=np.float64)
        phase = (self.sway % 997) * 0.37
        v = self.v_m + 0.15 * np.sin(0.25 * t + phase)
        # small changes of speed, as in traffic
        u = self.u_m + self.speed_mps * (t + 0.9 * np.sin(0.21 * t + phase) - 0.9 * np.sin(phase))
        return u, v

    def pose(self, time: Array) -> Array:
        """Get the (T, 6) sensor poses at (T,) times in seconds."""
        t = np.asarray(time, dtype=np.float64)
        u, v = self.place(t)
        toward = -1.0 if self.speed_mps < 0 else 1.0
        x, y = to_world(self.plan, u, v)
        yaw = heading(self.plan, u) + self.turn_rad + (np.pi if toward < 0 else 0.0)
        phase = (self.sway % 991) * 0.71
        along_u, along_v = toward * np.cos(self.turn_rad), toward * np.sin(self.turn_rad)
        long, wide = _AXLES_M / 2, _TRACK_M / 2
        front, rear = (height(self.plan, u + s * along_u * long, v + s * along_v * long) for s in (1, -1))
        left, right = (height(self.plan, u - s * along_v * wide, v + s * along_u * wide) for s in (1, -1))
        pitch = np.arctan((rear - front) / _AXLES_M) + 0.004 * np.sin(7.1 * t + phase)
        roll = np.arctan((left - right) / _TRACK_M) + 0.003 * np.sin(5.3 * t + 2 * phase)
        z = 0.25 * (front + rear + left + right) + self.mount_height_m + 0.01 * np.sin(6.3 * t + phase)
        return np.stack([x, y, z, yaw, pitch, roll], axis=-1)


def rotation_matrices(poses: Array) -> Array:
    """Compute the (T, 3, 3) rotations from sensor axes to world axes of (T, 6) poses."""
    yaw, pitch, roll = poses[:, 3], poses[:, 4], poses[:, 5]
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def pose_matrix(pose: Array) -> Array:
    """Compute the (4, 4) transform from sensor to world of a (6,) pose."""
    result = np.eye(4)
    result[:3, :3] = rotation_matrices(pose[None])[0]
    result[:3, 3] = pose[:3]
    return result
