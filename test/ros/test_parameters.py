# SPDX-License-Identifier: Apache-2.0
"""The parameters of the real node: those that default to the model's, and values that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from diagnostic_msgs.msg import DiagnosticStatus
from live import Client, node_of
from programs import depends_on_discovery, parameters, running, running_node
from rcl_interfaces.msg import ParameterType

from sqsegv3_ros.inference.model_file import load_model, save_model
from sqsegv3_ros.inference.settings import SPEC_OF, SPECS

pytestmark = depends_on_discovery


def test_parameters_show_the_models_values_while_it_is_configured(client: Client, small_model: Path) -> None:
    names = ("projection.width", "projection.fill_rows", "knn.mode", "extrinsics.height_m")
    with (
        node_of(client, model=small_model, knn__mode="'off'", projection__fill_rows=0) as node,
        client.targeting(node.get_fully_qualified_name()),
    ):
        assert client.get_parameters(*names) == [256, 0, "off", 1.73]
        described = client.describe_parameters()
        assert {name for name, spec in SPEC_OF.items()} <= described.keys()
        width = described["projection.width"]
        assert width.type == ParameterType.PARAMETER_INTEGER and not width.dynamic_typing and width.description
        (allowed,) = width.integer_range
        assert (allowed.from_value, allowed.to_value, allowed.step) == (8, 16384, 8)
        assert client.set_parameters(projection__fill_rows=3, stale_after_s=200.0) == [(True, ""), (True, "")]
        assert client.transition("deactivate") and client.transition("cleanup")
        assert not client.describe_parameters().keys() & {s.name for s in SPECS if s.of_model}
        assert client.transition("configure")
        assert client.get_parameters(*names) == [256, 0, "off", 1.73]  # what was set at start holds again
        assert client.get_parameters("stale_after_s") == [200.0]


def test_zero_rows_to_fill_are_less_than_the_models_own(client: Client, tmp_path: Path, small_model: Path) -> None:
    own, filling = load_model(small_model), tmp_path / "filling.pt"
    save_model(filling, own.network, replace(own.info, projection=replace(own.info.projection, fill_rows=3)), {})
    for values, rows in (({}, 3), ({"projection__fill_rows": 0}, 0)):
        with node_of(client, model=filling, **values) as node:
            assert node.get_parameter("projection.fill_rows").value == rows


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projection__fov_up_deg": -40.0}, "fov_down_deg < fov_up_deg"),
        ({"knn__k": 30}, "knn k must be in 1..25"),
        ({"filtered__remove_classes": "[unicorn]"}, "unicorn"),
    ],
)
def test_a_value_that_does_not_fit_the_model_fails_to_configure(
    client: Client, small_model: Path, values: dict[str, Any], message: str
) -> None:
    with node_of(client, model=small_model, configures=False, **values) as node:
        assert message in client.status("model", lambda s: s.level == DiagnosticStatus.ERROR).message
        assert not node.has_parameter("projection.width")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projection__width": 1001}, "parameter projection.width must be in 8..16384; a multiple of 8, found 1001"),
        (
            {"base_frame": "base_link", "extrinsics__yaw_deg": 180.0},
            "extrinsics.yaw_deg is 180, but base_frame is 'base_link', so that rotation and height come from TF",
        ),
    ],
)
def test_a_value_that_no_model_allows_ends_the_node(values: dict[str, Any], message: str) -> None:
    with running_node(**values) as node:
        assert node.exit_code(30) == 2
        assert message in node.log and "Traceback" not in node.log, node.log


def test_a_file_sets_the_models_parameters_and_a_misspelt_one_is_named(
    client: Client, small_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/**: {ros__parameters: {projection: {fov_up_deg: 10, heigth: 32}, knn.search: 7}}")
    arguments = parameters(model=small_model, knn__k=9)
    with running("-m", "sqsegv3_ros.ros.segment_node", *arguments, "--params-file", own) as node:
        node.wait_for_log("labelling clouds of")
        assert "unknown parameter 'projection.heigth'; did you mean 'projection.height'? (ignored)" in node.log
        assert client.get_parameters("projection.fov_up_deg", "knn.search", "knn.k") == [10.0, 7, 9]
