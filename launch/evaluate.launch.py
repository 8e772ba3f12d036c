"""Starts the segmentation node, a player and the evaluator: a bag with ground truth comes in, an evaluation goes out.

It ends by itself. The exit code of `ros2 launch` is 0 where every scan of the bag was evaluated, 1 where not. All
arguments of segment.launch.py hold here too.
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
    ("bag", None, "bag with a field ground_truth in its clouds, or SemanticKITTI root with labels", None),
    ("topic", "", "which clouds of the bag; empty: the only ones", None),
    ("sequence", "", "which sequence of the root; empty: the only one", None),
    ("rate", "1.0", "times the recorded pace", None),
    ("follow", "false", "play no faster than the node labels, so that a slow machine loses nothing", SWITCH),
    ("output", "", "JSON file to save the evaluation to; empty: none", None),
    ("labels", "", "label configuration of the ground truth (YAML); empty: SemanticKITTI's classes", None),
    ("quiet_s", "10.0", "end after so many seconds without a cloud", None),
    ("start_timeout_s", "60.0", "give up where no cloud comes for so many seconds", None),
)


def absolute(topic: str, namespace: str) -> str:
    """The full name of a topic as the node named it: ~ is the node's own name, relative names lie in its namespace."""
    space = "".join(f"/{part}" for part in namespace.split("/") if part)
    if topic.startswith("~"):
        return f"{space}/{NODE_NAME}{topic[1:]}"
    return topic if topic.startswith("/") else f"{space}/{topic}"


def player_command(value: dict[str, str], input_topic: str, output_topic: str) -> list[str]:
    """The arguments of `sqsegv3` that replay what is to be evaluated: to the node and the evaluator, once both listen."""
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
    """Note how many scans the evaluator has to see. Raises, before anything is started, where there are none to replay."""
    from sqsegv3_ros.evaluation.replay import open_source

    bag, topic, sequence = (LaunchConfiguration(name).perform(context) for name in ("bag", "topic", "sequence"))
    with open_source(Path(bag), topic or None, sequence or None, None) as source:
        context.launch_configurations[SCANS] = str(len(source))
    return []


def start(context: LaunchContext) -> list[Any]:
    """Player and evaluate, by the values of the launch arguments."""
    names = [name for name, *_ in ARGUMENTS] + ["namespace", "input_topic", "output_topic", "use_sim_time"]
    value = {name: LaunchConfiguration(name).perform(context) for name in names}
    input_topic = absolute(value["input_topic"], value["namespace"])
    output_topic = absolute(value["output_topic"], value["namespace"])
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
            ("~/input/label_set", absolute("~/output/label_set", value["namespace"])),
        ],
        output="screen",
    )
    ends = ((evaluator, when_evaluated), (player, when_played))
    return [*(RegisterEventHandler(OnProcessExit(target_action=a, on_exit=f)) for a, f in ends), evaluator, player]


def when_evaluated(event: Any, context: LaunchContext) -> list[Any]:
    """The evaluate has ended, and with it everything; an exception is what gives `ros2 launch` the exit code 1."""
    if event.returncode == 0:
        return [EmitEvent(event=Shutdown(reason="every scan was evaluated"))]
    if not context.is_shutdown:
        raise RuntimeError(f"not every scan was evaluated (exit code {event.returncode} of evaluate_node)")
    return []


def when_played(event: Any, context: LaunchContext) -> list[Any]:
    """The player has ended: well, and the evaluator decides when it has seen enough, or not, and nothing more will come."""
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(
            f"the player failed (exit code {event.returncode}): what it could not play was not evaluated"
        )
    return []


def generate_launch_description() -> LaunchDescription:
    """The arguments and what is started by them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
        for name, default, description, choices in ARGUMENTS
    ]
    segment = PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "segment.launch.py"))
    first, last = OpaqueFunction(function=count_scans), OpaqueFunction(function=start)
    return LaunchDescription([*declared, first, IncludeLaunchDescription(segment), last])
