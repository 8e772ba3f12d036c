# SPDX-License-Identifier: Apache-2.0
"""The values of the parameters, and parameter files, without ROS."""

from __future__ import annotations

import math
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.knn import MODES
from sqsegv3_ros.inference.model_file import ModelInfo, read_info
from sqsegv3_ros.inference.parameter_file import read_parameters
from sqsegv3_ros.inference.range_image import OUTSIDE_FOV, ROWS
from sqsegv3_ros.inference.settings import DEFAULTS, SPEC_OF, SPECS, Settings


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


# ---- values ----------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> Settings:
    """Settings with these values; a double underscore stands for a dot."""
    return Settings({**DEFAULTS, **{name.replace("__", "."): value for name, value in changes.items()}})


@pytest.fixture(scope="module")
def info(small_model: Path) -> ModelInfo:
    return read_info(small_model)


def test_what_is_not_set_is_the_models_own_value(info: ModelInfo) -> None:
    complete = settings().for_model(info)
    assert complete.projection(info) == info.projection and complete.knn(info) == info.knn
    assert complete.values.keys() == SPEC_OF.keys()
    assert (complete["projection.width"], complete["knn.search"], complete["projection.ring_count"]) == (256, 5, 0)
    assert complete["extrinsics.height_m"] == complete.height_m == 1.73
    of_unknown_height = settings().for_model(replace(info, sensor_height_m=None))
    assert of_unknown_height["extrinsics.height_m"] == 0 and of_unknown_height.height_m is None


def test_zero_is_a_value_and_not_the_models(info: ModelInfo) -> None:
    own = replace(info, projection=replace(info.projection, fill_rows=3, ring_count=16))
    assert settings().for_model(own)["projection.fill_rows"] == 3
    changed = {"fov_up_deg": 0.0, "fill_rows": 0, "ring_count": 0}
    changes = {f"projection__{name}": value for name, value in changed.items()}
    complete = settings(**changes, knn__cutoff_m=0, extrinsics__height_m=0.0).for_model(own)
    assert complete.projection(own) == replace(own.projection, fov_up_deg=0.0, fill_rows=0, ring_count=None)
    assert complete.knn(own) == replace(own.knn, cutoff_m=0.0)
    assert complete.height_m is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of 'auto', 'fp32', 'fp16', 'bf16', found 'fp8'"),
        ({"projection__rows": ""}, "projection.rows must be one of 'elevation', "),
        ({"projection__fov_up_deg": 120.0}, r"projection.fov_up_deg must be in -90..90, found 120"),
        ({"projection__fov_up_deg": math.nan}, "projection.fov_up_deg must be finite"),
        ({"projection__width": 1001}, r"projection.width must be in 8..16384; a multiple of 8, found 1001"),
        ({"projection__width": 0}, r"projection.width must be in 8..16384; a multiple of 8, found 0"),
        ({"projection__height": 64.0}, r"projection.height must be int, found 64.0"),
        ({"knn__mode": False}, "knn.mode must be str, found False; quote the text, as YAML reads off, no, on and yes"),
        ({"knn__search": 4}, r"knn.search must be in 1..15; odd, found 4"),
        ({"knn__sigma": math.inf}, "knn.sigma must be finite"),
        ({"model_sha256": "abc"}, "64 hexadecimal"),
        ({"intensity_scale": 0.0}, "intensity_scale must be in"),
        ({"intensity_fields": "intensity"}, "intensity_fields must be list of str"),
        ({"filtered__remove_classes": [1]}, "filtered.remove_classes must be list of str"),
        ({"extrinsics__pitch_deg": math.nan}, "extrinsics.pitch_deg must be finite"),
        ({"stale_after_s": math.nan}, "stale_after_s must be finite"),
        ({"mount__yaw_deg": 90.0}, "unknown parameter 'mount.yaw_deg'"),
        (
            {"base_frame": "base_link", "extrinsics__pitch_deg": 15.0},
            "extrinsics.pitch_deg is 15, but base_frame is 'base_link', so that rotation and height come from TF; "
            "leave base_frame empty, or set the angles to 0.0",
        ),
        ({"base_frame": "base_link", "extrinsics__height_m": 1.2}, "extrinsics.height_m is 1.2, but base_frame is"),
    ],
)
def test_values_that_no_model_allows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_a_base_frame_leaves_no_height_of_its_own(info: ModelInfo) -> None:
    complete = settings(base_frame="base_link", extrinsics__yaw_deg=0.0).for_model(info)
    assert SPEC_OF.keys() - complete.values.keys() == {"extrinsics.height_m"}


def test_whole_numbers_are_accepted_for_decimals() -> None:
    value = settings(extrinsics__yaw_deg=180)["extrinsics.yaw_deg"]
    assert value == 180 and type(value) is float


def test_every_parameter_has_a_description_and_every_number_a_range_or_a_rule() -> None:
    for spec in SPECS:
        assert spec.description
        if spec.kind in (int, float):
            assert spec.low is not None or spec.rule, spec.name


def test_choices_are_those_of_the_algorithm() -> None:
    for name, choices in (("knn.mode", MODES), ("projection.rows", ROWS), ("projection.outside_fov", OUTSIDE_FOV)):
        assert set(SPEC_OF[name].choices) == set(choices)


def test_the_table_in_the_documentation_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs/site/parameter_table.py"))
    table = (ROOT / "docs/parameters.md").read_text().partition(script["MARKER"])[2]
    assert table.strip() == script["parameter_table"](), "run `make parameters`"
    assert len(table.strip().splitlines()) == 2 + len(SPECS)
