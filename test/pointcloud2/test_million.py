# SPDX-License-Identifier: Apache-2.0
"""A million malformed clouds of a seeded mutator, compared with numpy."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from clouds import expected_columns
from mutations import malformed_clouds
from test_malformed import DEFAULT, MAX_POINTS, attempt, check_encoded, is_consistent, is_decodable, reference

from sqsegv3_ros.pointcloud2 import INTENSITY_FIELDS, REASONS, CloudError, decode


def run(seed: int, count: int) -> Counter[str]:
    """Check clouds of a seed, and count how many are accepted, and refused for which reason."""
    outcome: Counter[str] = Counter()
    for number, cloud in enumerate(malformed_clouds(seed, count)):
        try:
            decoded = decode(cloud, DEFAULT)
        except CloudError as error:
            assert error.reason in REASONS and str(error).isascii() and 10 < len(str(error)) < 1500, (seed, number)
            assert not is_decodable(cloud, DEFAULT), (seed, number, str(error))
            outcome[error.reason] += 1
        else:
            assert is_decodable(cloud, DEFAULT), (seed, number)
            expected = reference(cloud)
            intensity = next(name for name in INTENSITY_FIELDS if name in expected.dtype.names)
            np.testing.assert_array_equal(decoded.points, expected_columns(expected, intensity), f"{seed} {number}")
            outcome["accepted"] += 1
        # a labelled cloud has up to three more fields, of at most 256
        if (
            number % 20 == 0
            and len(cloud.fields) <= 253
            and (cloud.height * cloud.width <= MAX_POINTS or not is_consistent(cloud, None))
        ):
            check_encoded(cloud)
    return outcome


EXPECTED = {
    "accepted", "no_fields", "too_many_fields", "duplicate_field", "unknown_datatype", "field_outside_point",
    "number_out_of_range", "zero_point_step", "too_many_points", "row_step_too_small", "data_too_short",
    "data_too_long", "missing_field",
}  # fmt: skip


def test_thousands_of_malformed_clouds_are_decoded_as_by_numpy_or_refused_with_a_reason() -> None:
    outcome = run(0, 5000)
    assert set(outcome) == EXPECTED and outcome["accepted"] > 250, outcome


def test_malformed_clouds_take_bounded_memory() -> None:
    clouds = list(malformed_clouds(1, 2000))
    tracemalloc.start()
    try:
        for cloud in clouds:
            attempt(decode, cloud, DEFAULT)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_million_malformed_clouds_are_decoded_as_by_numpy_or_refused_with_a_reason() -> None:
    outcome: Counter[str] = Counter()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for part in pool.map(run, range(100, 200), [10_000] * 100):
            outcome += part
    print(dict(outcome.most_common()))
    assert outcome.total() == 1_000_000 and set(outcome) == EXPECTED
