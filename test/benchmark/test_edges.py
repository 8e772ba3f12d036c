# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from sqsegv3_ros.benchmark.measure import EDGE, off_the_edges


@pytest.mark.parametrize(("width", "edge"), [(512, EDGE), (2048, EDGE), (8192, 4 * EDGE)])
def test_points_at_a_pixels_edge_are_left_out_of_comparisons(width: int, edge: float) -> None:
    """Points whose column and row are known: the middle of a pixel, just inside the margin, and just outside it."""
    projection = {"fov_up_deg": 3.0, "fov_down_deg": -25.0, "height": 64, "width": width}

    def at(u: float, v: float) -> list[float]:
        azimuth = np.pi * (1 - 2 * u / width)
        elevation = np.radians(28.0) * (1 - v / 64) - np.radians(25.0)
        horizontal = 10 * np.cos(elevation)
        return [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), 10 * np.sin(elevation), 0.5]

    kept = [at(100.5, 20.5), at(100.0 + 4 * edge, 20.5), at(101.0 - 4 * edge, 20.5), at(100.5, 20.0 + 4 * edge)]
    lost = [at(100.0 + edge / 4, 20.5), at(101.0 - edge / 4, 20.5), at(100.5, 21.0 - edge / 4)]
    points = np.array(kept + lost, np.float32)
    np.testing.assert_array_equal(off_the_edges(points, projection), points[: len(kept)])
