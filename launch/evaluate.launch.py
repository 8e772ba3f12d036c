# SPDX-License-Identifier: Apache-2.0
"""Evaluate the segmentation node on a bag with ground truth: start the node, a player and the evaluator.

It ends by itself. The exit code of `ros2 launch` is 0 if every scan of the bag was evaluated, otherwise 1. The
arguments of segment.launch.py are available, too.
"""

from __future__ import annotations

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
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage

PACKAGE = "sqsegv3_ros"
NODE_NAME = "sqsegv3"
SCANS = "evaluate_scans"
SWITCH = ["true", "false", "True", "False"]
ARGUMENTS = (
    ("bag", None, "bag whose clouds have a field ground_truth, or SemanticKITTI root with labels", None),
    ("topic", "", "topic of the clouds in the bag; empty: the only one", None),
    ("sequence", "", "sequence of the root; empty: the only one", None),
    ("rate", "1.0", "factor of the recorded pace", None),
    ("follow", "false", "play no faster than the node labels, so that a slow machine drops nothing", SWITCH),
    ("output", "", "JSON file to save the evaluation to; empty: none", None),
    ("labels", "", "label configuration of the ground truth (YAML); empty: the classes of SemanticKITTI", None),
    ("quiet_s", "10.0", "end after this time without a cloud, seconds", None),
    ("start_timeout_s", "60.0", "give up after this time without a first cloud, seconds", None),
)


def resolve(topic: str, namespace: str) -> str:
    """Full name of a topic of the node."""
    from rclpy.expand_topic_name import expand_topic_name

    return str(expand_topic_name(topic, NODE_NAME, f"/{namespace.strip('/')}"))


def player_command(value: dict[str, str], input_topic: str, output_topic: str) -> list[str]:
    """Arguments of `sqsegv3` that replay the bag once both the node and the evaluator have subscribed."""
    command = ["replay", value["bag"], "--output-topic", input_topic, "--rate", value["rate"]]
    command += ["--wait-for-subscribers", "2"]
    for option in ("topic", "sequence"):
        if value[option]:
            command += [f"--{option}", value[option]]
    if value["follow"].lower() == "true":
        command += ["--follow", output_topic]
    if value["use_sim_time"].lower() == "true":
        command.append("--clock")
    return command


def count_scans(context: LaunchContext) -> list[Any]:
    """Store the number of scans to evaluate. An unusable bag raises here, before anything is started."""
    from sqsegv3_ros.evaluation.replay import open_source

    bag, topic, sequence = (LaunchConfiguration(name).perform(context) for name in ("bag", "topic", "sequence"))
    with open_source(Path(bag), topic or None, sequence or None, None) as source:
        context.launch_configurations[SCANS] = str(len(source))
    return []


def start(context: LaunchContext) -> list[Any]:
    """Player and evaluator, for the values of the launch arguments."""
    names = [name for name, *_ in ARGUMENTS] + ["namespace", "input_topic", "output_topic", "use_sim_time"]
    value = {name: LaunchConfiguration(name).perform(context) for name in names}
    input_topic = resolve(value["input_topic"], value["namespace"])
    output_topic = resolve(value["output_topic"], value["namespace"])
    player = ExecuteProcess(
        cmd=[
            ExecutableInPackage(package=PACKAGE, executable="sqsegv3"),
            *player_command(value, input_topic, output_topic),
        ],
        name="player",
        output="screen",
    )
    evaluator = Node(
        package=PACKAGE,
        executable="evaluate_node",
        parameters=[
            {
                "scans": int(context.launch_configurations[SCANS]),
                "output": value["output"],
                "labels": value["labels"],
                "quiet_s": float(value["quiet_s"]),
                "start_timeout_s": float(value["start_timeout_s"]),
            }
        ],
        remappings=[
            ("~/input/ground_truth", input_topic),
            ("~/input/labelled", output_topic),
            ("~/input/label_set", resolve("~/output/label_set", value["namespace"])),
        ],
        output="screen",
    )
    handlers = ((evaluator, on_evaluator_exit), (player, on_player_exit))
    return [*(RegisterEventHandler(OnProcessExit(target_action=a, on_exit=f)) for a, f in handlers), evaluator, player]


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
    """Declare the arguments and start node, player and evaluator."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
        for name, default, description, choices in ARGUMENTS
    ]
    segment = PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "segment.launch.py"))
    first, last = OpaqueFunction(function=count_scans), OpaqueFunction(function=start)
    return LaunchDescription([*declared, first, IncludeLaunchDescription(segment), last])
