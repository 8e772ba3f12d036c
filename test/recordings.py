# SPDX-License-Identifier: Apache-2.0
"""Recordings of Rerun, read back through Rerun's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def read_recording(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by entity in order of the timeline `scan`; static data is one row.

    A row has the timelines as integers and the components as flat arrays: `Points3D:positions` is (3 * N,).
    """
    try:
        from rerun.chunk import RrdReader
    except ImportError:  # before 0.40
        from rerun.experimental import RrdReader

    entities: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream():
        batch = chunk.to_record_batch()
        names = [name for name in batch.schema.names if name not in ("rerun.controls.RowId", "log_time")]
        rows = entities.setdefault(str(chunk.entity_path), [])
        rows += [{name: _value(batch.column(name)[row]) for name in names} for row in range(batch.num_rows)]
    for rows in entities.values():
        rows.sort(key=lambda row: row.get("scan", 0))
    return entities


def _value(scalar: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_timestamp(scalar.type):
        return scalar.value
    if not pyarrow.types.is_list(scalar.type):
        return scalar.as_py()
    values = scalar.values
    while pyarrow.types.is_fixed_size_list(values.type) or pyarrow.types.is_list(values.type):
        values = values.flatten()
    if pyarrow.types.is_struct(values.type):
        return values.to_pylist()
    return np.asarray(values.to_numpy(zero_copy_only=False))
