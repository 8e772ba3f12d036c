# SPDX-License-Identifier: Apache-2.0
"""The launch files and the configuration files that they pass to the node, without `launch`."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from launch_files import LAUNCH_FILES, calls, declared_arguments, keywords

from sqsegv3_ros.inference.model_file import find_model, read_info
from sqsegv3_ros.inference.settings import DEFAULTS, SPECS, Settings

CONFIG = ROOT / "config"


def documented_arguments(page: str) -> dict[str, str | None]:
    """Names and defaults in the first table of launch arguments of a page; a row may hold several of both."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = text.split("\n| argument |", 1)[1].split("\n\n", 1)[0]
    arguments: dict[str, str | None] = {}
    for names, defaults in re.findall(r"^\| (`.*?`) \| (.*?) \|", table, re.M):
        rows = re.findall(r"\w+", names)
        values = [{"required": None, "empty": ""}.get(d, d.strip("`")) for d in defaults.split(", ")]
        arguments |= zip(rows, values if len(values) == len(rows) else values * len(rows), strict=True)
    return arguments


@pytest.mark.parametrize(("name", "page"), [("segment", "launch.md"), ("evaluate", "replay.md")])
def test_documentation_names_every_launch_argument_with_its_default(name: str, page: str) -> None:
    assert documented_arguments(page) == declared_arguments(ROOT / "launch" / f"{name}.launch.py")


def test_documentation_names_the_arguments_of_two_lidars() -> None:
    text = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8").split("\n## Two LiDARs\n", 1)[1]
    names = re.findall(r"`(\w+)`", text.split("for other names.", 1)[1].split("have the prefixes", 1)[0])
    assert declared_arguments(ROOT / "launch" / "two_lidars.launch.py").keys() == {
        f"{prefix}_{name}" for prefix in ("front", "rear") for name in names
    }


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_launch_argument_is_described_and_every_used_one_is_declared(path: Path) -> None:
    declarations = calls(path, "DeclareLaunchArgument")
    assert all("description" in keywords(call) for call in declarations)
    assert len(declarations) == len(declared_arguments(path)) > 5
    included = {} if path.stem.startswith("segment") else declared_arguments(ROOT / "launch" / "segment.launch.py")
    computed = {ast.literal_eval(call.args[0]) for call in calls(path, "SetLaunchConfiguration")}
    known = {*declared_arguments(path), *included, *computed}
    used = {call.args[0].value for call in calls(path, "LaunchConfiguration") if isinstance(call.args[0], ast.Constant)}
    used |= {ast.literal_eval(call.args[0]) for call in calls(path, "given") if isinstance(call.args[0], ast.Constant)}
    assert used <= known, used - known


def test_the_player_accepts_the_options_of_the_evaluation() -> None:
    from sqsegv3_ros.commands import replay

    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    accepted = {option for action in parser._actions for option in action.option_strings}
    tree = ast.parse((ROOT / "launch" / "evaluate.launch.py").read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    options = {text for text in texts if re.fullmatch(r"--[a-z-]+", text)}
    assert {"--output-topic", "--rate", "--wait-for-subscribers", "--follow", "--clock"} <= options <= accepted
    assert {"--topic", "--sequence"} <= accepted


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
