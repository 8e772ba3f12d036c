# SPDX-License-Identifier: Apache-2.0
"""The labelled half of adaptation: streets simulated for the recording's sensor, with its remissions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_scan, write_scan
from sqsegv3_ros.files import progress
from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate
from sqsegv3_ros.simulation.sensors import SensorModel, sensor_named
from sqsegv3_ros.training.adaptation.workspace import DRAFT_SUFFIX

TRAINING, VALIDATION = "00", "01"
"""Sequences of the simulated scans."""

SCANS = 160
VALIDATION_SCANS = 8
_QUANTILES = np.linspace(0.0, 1.0, 257)
_SAMPLED_SCANS = 40
_EVERY = 7  # points that quantiles are computed from


def simulate_source(
    root: Path,
    recording: Path,
    sensor: SensorModel,
    height_m: float,
    *,
    exponent: float,
    seed: int,
    jobs: int,
    scans: int = SCANS,
) -> None:
    """Simulate labelled scans; an interrupted call starts anew.

    Args:
        root: SemanticKITTI data set to write, complete if it exists.
        recording: SemanticKITTI data set of the recording.
        sensor: The sensor.
        height_m: Its height above the ground, metres.
        exponent: Power to which the adapted network raises the remission, relative to its start.
        seed: The same seed gives the same scans.
        jobs: Parallel processes.
        scans: Number of training scans.

    Raises:
        UserError: The scans cannot be written.
    """
    if root.is_dir():
        return
    draft = root.with_name(f"{root.name}{DRAFT_SUFFIX}")
    sensor = replace(sensor, mount_height_m=height_m)
    for sequence, count, offset in ((TRAINING, scans, 0), (VALIDATION, VALIDATION_SCANS, 1)):
        settings = SimulationSettings(count, sensor, seed=2 * seed + offset)
        steps = simulate(settings, draft, sequence=sequence, force=True, jobs=jobs)
        for _ in progress(steps, count, "scan"):
            pass
    match_remission(draft, recording, exponent)
    draft.rename(root)


def sensor_to_dict(sensor: SensorModel) -> dict[str, Any]:
    """Return the measured values of a sensor in plain JSON types."""
    return {
        "elevations_deg": list(sensor.elevations_deg),
        "columns": sensor.columns,
        "min_range_m": sensor.min_range_m,
        "max_range_m": sensor.max_range_m,
        "range_noise_m": sensor.range_noise_m,
        "reach_m": sensor.reach_m,
    }


def sensor_from_dict(name: str, values: Mapping[str, Any] | None) -> SensorModel:
    """Return the sensor with measured values, or the simulated sensor of this name if there are none."""
    if values is None:
        return sensor_named(name)
    return SensorModel(
        name, tuple(values["elevations_deg"]), **{k: v for k, v in values.items() if k != "elevations_deg"}
    )


def match_remission(source: Path, target: Path, exponent: float) -> None:
    """Write the scans of a data set again, with another remission.

    Args:
        source: Data set to change.
        target: Data set whose quantiles the new remission has when it is raised to a power: simulated classes look to
            the adapted network as they would have looked to its start.
        exponent: The power.
    """
    files = find_scans(source)
    from_quantiles, to_quantiles = (_quantiles(scans) for scans in (files, find_scans(target)))
    for file in files:
        points = read_scan(file.path)
        remission = map_quantiles(points[:, 3], from_quantiles, to_quantiles)
        points[:, 3] = remission.clip(min=0.0) ** np.float32(1 / exponent)
        write_scan(file.path, points)


def map_quantiles(
    values: npt.NDArray[np.float32], found: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Map (N,) values with quantiles `found` to values with quantiles `wanted`, both (Q,) ascending.

    A value that fills several quantiles, such as 0, becomes the middle one of theirs.
    """
    unique, first, counts = np.unique(found, return_index=True, return_counts=True)
    return np.interp(values, unique, wanted[first + (counts - 1) // 2]).astype(np.float32)


def _quantiles(files: list[ScanFile]) -> npt.NDArray[np.float64]:
    step = max(1, len(files) // _SAMPLED_SCANS)
    return np.quantile(np.concatenate([read_scan(file.path)[::_EVERY, 3] for file in files[::step]]), _QUANTILES)
