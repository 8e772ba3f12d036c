# SPDX-License-Identifier: Apache-2.0
"""Parameter files, read without ROS."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.settings import read_parameters


def parameter_file(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "node",
    [
        "/**: {ros__parameters: %s}",
        "sqsegv3: {ros__parameters: %s}",
        "/sqsegv3: {ros__parameters: %s}",
        "/robot/sqsegv3: {ros__parameters: %s}",
        "/*/sqsegv3: {ros__parameters: %s}",
        "/**/sqsegv3: {ros__parameters: %s}",
        "robot: {sqsegv3: {ros__parameters: %s}}",
        "/robot: {/front: {sqsegv3: {ros__parameters: %s}}}",
    ],
)
def test_keys_that_name_the_node_are_read(tmp_path: Path, node: str) -> None:
    path = parameter_file(tmp_path, node % "{knn: {k: 3}, publish.rgb: false}")
    assert read_parameters(path) == {"knn.k": 3, "publish.rgb": False}


def test_other_nodes_are_ignored_and_later_values_beat_earlier_ones(tmp_path: Path) -> None:
    text = """
/lidar: {ros__parameters: {knn: {k: 9}, frame_id: velodyne}}
/sqsegv3: {ros__parameters: {knn: {k: 3, search: 3}}}
/**: {ros__parameters: {knn: {k: 5}}}
/sqsegv3/driver: {ros__parameters: {knn: {k: 9}}}
/old_sqsegv3: {ros__parameters: {knn: {k: 9}}}
"""
    assert read_parameters(parameter_file(tmp_path, text)) == {"knn.k": 5, "knn.search": 3}


def test_a_file_for_other_nodes_only_is_refused_with_their_names(tmp_path: Path) -> None:
    path = parameter_file(tmp_path, "/lidar: {ros__parameters: {a: 1}}\nrobot: {imu: {ros__parameters: {b: 1}}}")
    with pytest.raises(UserError, match=re.escape("of /lidar, /robot/imu; expected /**, /sqsegv3 or /**/sqsegv3")):
        read_parameters(path)
    with pytest.raises(UserError, match="of no node; expected"):
        read_parameters(parameter_file(tmp_path, "ros__parameters: {knn.k: 3}"))


def test_parameters_of_every_node_are_skipped_by_their_exact_names(tmp_path: Path) -> None:
    builtin = "use_sim_time: true, start_type_description_service: false, qos_overrides: {/points: {depth: 3}}"
    assert read_parameters(parameter_file(tmp_path, f"/**: {{ros__parameters: {{{builtin}, knn.k: 3}}}}")) == {
        "knn.k": 3
    }
    for name in ("use_sim_times", "qos_overrides_"):
        with pytest.raises(UserError, match=f"unknown parameter '{name}'"):
            read_parameters(parameter_file(tmp_path, f"/**: {{ros__parameters: {{{name}: true}}}}"))
