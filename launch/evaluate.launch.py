# SPDX-License-Identifier: Apache-2.0
"""Evaluate the segmentation node on a bag with ground truth: start the node, a player and the evaluator.

It ends by itself. The exit code of `ros2 launch` is 0 if every scan of the bag was evaluated, otherwise 1. The
arguments of segment.launch.py are available, too.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetLaunchConfiguration,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

PACKAGE = "sqsegv3_ros"
SEGMENT = PathJoinSubstitution([FindPackageShare(PACKAGE), "launch", "segment.launch.py"])


def count_scans(context: LaunchContext) -> list[Any]:
    """The number of scans to evaluate. An unusable bag raises here, before anything is started."""
    from sqsegv3_ros.data.replay import open_source

    bag, topic, sequence = (LaunchConfiguration(name).perform(context) for name in ("bag", "topic", "sequence"))
    with open_source(Path(bag), topic or None, sequence or None, None) as source:
        return [SetLaunchConfiguration("scans", str(len(source)))]


def start_player(context: LaunchContext) -> list[Any]:
    """The player. A function, because its options depend on which arguments are given."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    def full_name(argument: str) -> str:
        return posixpath.join("/", given("namespace"), given(argument))

    options = ["--output-topic", full_name("input_topic"), "--rate", given("rate"), "--wait-for-subscribers", "2"]
    for name in ("topic", "sequence"):
        if given(name):
            options += [f"--{name}", given(name)]
    if given("follow").lower() == "true":
        options += ["--follow", full_name("output_topic")]
    if given("use_sim_time").lower() == "true":
        options.append("--clock")
    sqsegv3 = ExecutableInPackage(package=PACKAGE, executable="sqsegv3")
    player = ExecuteProcess(cmd=[sqsegv3, "replay", given("bag"), *options], name="player", output="screen")
    return [RegisterEventHandler(OnProcessExit(target_action=player, on_exit=on_player_exit)), player]


def on_evaluator_exit(event: Any, context: LaunchContext) -> list[Any]:
    """Shut everything down after the evaluation. Only an exception gives `ros2 launch` the exit code 1."""
    if event.returncode == 0:
        return [EmitEvent(event=Shutdown(reason="every scan was evaluated"))]
    if not context.is_shutdown:
        raise RuntimeError(f"not every scan was evaluated (exit code {event.returncode} of evaluate_node)")
    return []


def on_player_exit(event: Any, context: LaunchContext) -> list[Any]:
    """Fail if the player has failed; otherwise the evaluator decides when it is done."""
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(f"the player failed (exit code {event.returncode}): not every scan was evaluated")
    return []


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start node, evaluator and player."""
    evaluator = Node(
        package=PACKAGE,
        executable="evaluate_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=str)
                for name in ("output", "labels", "label_map")
            },
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=float)
                for name in ("quiet_s", "start_timeout_s")
            },
            {"scans": ParameterValue(LaunchConfiguration("scans"), value_type=int)},
        ],
        remappings=[
            ("~/input/ground_truth", LaunchConfiguration("input_topic")),
            ("~/input/labelled", LaunchConfiguration("output_topic")),
            ("~/input/label_set", "sqsegv3/output/label_set"),
        ],
        output="screen",
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "bag", description="bag with the field ground_truth, or SemanticKITTI data set with labels"
            ),
            DeclareLaunchArgument("topic", default_value="", description="topic in the bag; empty: the only one"),
            DeclareLaunchArgument(
                "sequence", default_value="", description="sequence of the data set; empty: the only one"
            ),
            DeclareLaunchArgument("rate", default_value="1.0", description="factor on the recorded rate"),
            DeclareLaunchArgument(
                "follow",
                default_value="false",
                choices=["true", "false", "True", "False"],
                description="play no faster than the node labels, so that a slow machine drops nothing",
            ),
            DeclareLaunchArgument("output", default_value="", description="JSON file for the evaluation; empty: none"),
            DeclareLaunchArgument(
                "labels", default_value="", description="label configuration of the ground truth; empty: SemanticKITTI"
            ),
            DeclareLaunchArgument(
                "quiet_s", default_value="10.0", description="end after this time without a cloud, seconds"
            ),
            DeclareLaunchArgument(
                "start_timeout_s", default_value="60.0", description="give up without a first cloud, seconds"
            ),
            OpaqueFunction(function=count_scans),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(SEGMENT)),
            RegisterEventHandler(OnProcessExit(target_action=evaluator, on_exit=on_evaluator_exit)),
            evaluator,
            OpaqueFunction(function=start_player),
        ]
    )
