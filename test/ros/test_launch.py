# SPDX-License-Identifier: Apache-2.0
"""The launch file and the configuration files that it passes to the node."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from launch_files import load_launch_file

from sqsegv3_ros.inference.model_file import find_model, read_info
from sqsegv3_ros.inference.settings import DEFAULTS, SPECS, Settings

CONFIG = ROOT / "config"
FASTDDS, FASTRTPS = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return load_launch_file("segment", monkeypatch)


@pytest.fixture
def config_with_presets(tmp_path: Path) -> Path:
    (tmp_path / "sensors").mkdir()
    for name in ("vlp16", "hdl32e"):
        (tmp_path / "sensors" / f"{name}.yaml").write_text("/**: {ros__parameters: {projection: {height: 16}}}\n")
    return tmp_path


def test_a_sensor_preset_overrides_the_defaults_and_the_users_file_overrides_the_preset(
    launch_file: Any, config_with_presets: Path
) -> None:
    defaults = str(CONFIG / "segment.yaml")
    preset = str(config_with_presets / "sensors" / "vlp16.yaml")
    own = str(config_with_presets / "own.yaml")
    Path(own).write_text("/**: {ros__parameters: {extrinsics: {yaw_deg: 90.0}}}\n")
    assert launch_file.parameter_files(own, "", config_with_presets) == [own]
    assert launch_file.parameter_files(own, "vlp16", config_with_presets) == [preset, own]
    assert launch_file.parameter_files(defaults, "vlp16", config_with_presets) == [defaults, preset]


def test_an_unknown_sensor_is_refused_with_the_available_presets(launch_file: Any, config_with_presets: Path) -> None:
    own = str(CONFIG / "segment.yaml")
    for wrong in ("vlp17", "../segment", "vlp16.yaml"):
        with pytest.raises(ValueError, match=re.escape(f"sensor:={wrong} ") + ".*hdl32e, vlp16"):
            launch_file.parameter_files(own, wrong, config_with_presets)
    with pytest.raises(ValueError, match="none is installed"):
        launch_file.parameter_files(own, "vlp16", config_with_presets / "sensors")


def test_a_missing_parameter_file_is_refused(launch_file: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params_file:=.*absent.yaml is not a file"):
        launch_file.parameter_files(str(tmp_path / "absent.yaml"), "")


@pytest.mark.parametrize(
    ("distribution", "names"),
    [("humble", {FASTRTPS}), ("jazzy", {FASTRTPS}), ("kilted", {FASTDDS}), ("lyrical", {FASTDDS})],
)
def test_the_fast_dds_profile_is_set_in_the_variable_that_the_distribution_reads(
    launch_file: Any, distribution: str, names: set[str]
) -> None:
    added = launch_file.node_environment({"ROS_DISTRO": distribution}, True)
    assert {name for name in added if name.startswith("FAST")} == names
    assert {added[name] for name in names} == {str(CONFIG / "fastdds.xml")}
    assert Path(added[names.pop()]).is_file()


def test_a_fast_dds_profile_of_the_user_is_kept_and_the_profile_can_be_switched_off(launch_file: Any) -> None:
    assert {FASTDDS, FASTRTPS} & launch_file.node_environment({}, True).keys()
    for current, wanted in (({FASTDDS: "mine"}, True), ({FASTRTPS: "mine"}, True), ({}, False)):
        assert launch_file.node_environment(current, wanted) == {"OMP_WAIT_POLICY": "passive"}
    assert launch_file.node_environment({"OMP_WAIT_POLICY": "active"}, False) == {}


def test_rviz_follows_namespace_and_output_topic(launch_file: Any) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    default = "~/output/points"
    assert launch_file.topics_in_rviz("", default) == []
    assert launch_file.topics_in_rviz("", "/lidar/labelled") == [("/sqsegv3/output/points", "/lidar/labelled")]
    for namespace in ("front", "/front"):
        remaps = dict(launch_file.topics_in_rviz(namespace, default))
        assert len(remaps) == 4
        for shown, actual in remaps.items():
            assert actual == f"/front{shown}"
        remaps = dict(launch_file.topics_in_rviz(namespace, "labelled"))
        assert remaps["/sqsegv3/output/points"] == "/front/labelled"


def test_documentation_names_every_launch_argument_with_its_default(launch_file: Any) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / "launch.md").read_text(encoding="utf-8"), re.M)
    documented = {name: default.strip("`") for name, default in rows}
    defaults = {name: default for name, default, *_ in launch_file.ARGUMENTS}
    defaults["params_file"] = "config/segment.yaml"
    assert documented == {name: default or "empty" for name, default in defaults.items()}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under their ROS names, joined by dots."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        result.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return result


def parameters_of(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'sqsegv3_ros[tools]'")
    return flat(yaml.safe_load(text)["/**"]["ros__parameters"])


def test_parameter_file_documents_every_parameter_with_its_default_and_when_it_is_read() -> None:
    text = (CONFIG / "segment.yaml").read_text(encoding="utf-8")
    set_there = parameters_of(text)
    assert {n: repr(v) for n, v in set_there.items()} == {name: repr(value) for name, value in DEFAULTS.items()}

    default = read_info(find_model("default"))
    uncommented = re.sub(r"^    # ( *\w+:( |$))", r"    \1", text, flags=re.M)
    values = parameters_of(uncommented)
    assert {n: repr(v) for n, v in values.items()} == {
        name: repr(value) for name, value in Settings(DEFAULTS).for_model(default).values.items()
    }
    for mark, names in (
        ("configure", {spec.name for spec in SPECS if spec.at_configure}),
        ("read-only", {spec.name for spec in SPECS if spec.read_only}),
    ):
        marked = set(re.findall(rf"^ +(\w+):.*# \[{mark}\]", uncommented, re.M))
        assert marked == {name.rpartition(".")[2] for name in names}
