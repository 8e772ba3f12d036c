# SPDX-License-Identifier: Apache-2.0
"""Start the segmentation node, and optionally RViz or the Rerun viewer.

May be included by other launch files and more than once: it sets nothing but its own arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

CONFIG = PathJoinSubstitution([FindPackageShare("sqsegv3_ros"), "config"])
PRESETS = sorted(path.stem for path in (Path(__file__).resolve().parent.parent / "config" / "sensors").glob("*.yaml"))
BOOLEANS = ["true", "false", "True", "False"]
OTHER_OUTPUTS = ("filtered", "obstacles", "label_image", "range_image", "entropy_image")


def start_node(context: LaunchContext) -> list[Any]:
    """The node. A function, because an argument that is not given must not override the parameter files."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters: list[Any] = []
    if given("sensor"):
        parameters.append(PathJoinSubstitution([CONFIG, "sensors", f"{given('sensor')}.yaml"]))
    if given("params_file"):
        parameters.append(ParameterFile(given("params_file"), allow_substs=True))
    parameters += [{name: given(name)} for name in ("model", "device") if given(name)]
    if given("autostart").lower() == "false":
        parameters.append({"autostart": False})
    if given("use_sim_time").lower() == "true":
        parameters.append({"use_sim_time": True})
    node = LifecycleNode(
        package="sqsegv3_ros",
        executable="segment_node",
        name="sqsegv3",
        namespace=LaunchConfiguration("namespace"),
        parameters=parameters,
        remappings=[
            ("~/input/points", LaunchConfiguration("input_topic")),
            ("~/output/points", LaunchConfiguration("output_topic")),
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=2.0,
        output="screen",
        emulate_tty=True,
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start the viewers and the node."""
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz_sqsegv3",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", PathJoinSubstitution([CONFIG, "segment.rviz"])],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        # from the topics in segment.rviz
        remappings=[
            ("/sqsegv3/output/points", LaunchConfiguration("output_topic")),
            *((f"/sqsegv3/output/{name}", f"sqsegv3/output/{name}") for name in OTHER_OUTPUTS),
        ],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    rerun = Node(
        package="sqsegv3_ros",
        executable="rerun_node",
        name="rerun_sqsegv3",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {"use_sim_time": LaunchConfiguration("use_sim_time")},
            {"recording": ParameterValue(LaunchConfiguration("rerun_recording"), value_type=str)},
        ],
        remappings=[("sqsegv3/output/points", LaunchConfiguration("output_topic"))],
        output="screen",
        condition=IfCondition(LaunchConfiguration("rerun")),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "model", default_value="", description="model file, or name of a shipped model; empty: see params_file"
            ),
            DeclareLaunchArgument(
                "device", default_value="", description="auto, cuda, cuda:N or cpu; empty: see params_file"
            ),
            DeclareLaunchArgument(
                "input_topic", default_value="/velodyne_points", description="clouds of the sensor (PointCloud2)"
            ),
            DeclareLaunchArgument("output_topic", default_value="sqsegv3/output/points", description="labelled clouds"),
            DeclareLaunchArgument(
                "sensor", default_value="", choices=["", *PRESETS], description="preset of config/sensors; empty: none"
            ),
            DeclareLaunchArgument(
                "params_file", default_value="", description="your parameters, which override the preset; empty: none"
            ),
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                choices=BOOLEANS,
                description="configure and activate at start; false: wait for a lifecycle manager",
            ),
            DeclareLaunchArgument(
                "respawn", default_value="false", choices=BOOLEANS, description="start the node again if it dies"
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", choices=BOOLEANS, description="take the time from /clock"
            ),
            DeclareLaunchArgument(
                "rviz", default_value="false", choices=BOOLEANS, description="show the outputs in RViz"
            ),
            DeclareLaunchArgument(
                "rerun", default_value="false", choices=BOOLEANS, description="show the outputs in the Rerun viewer"
            ),
            DeclareLaunchArgument(
                "rerun_recording", default_value="", description="with rerun: .rrd file to record to; empty: the viewer"
            ),
            DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
            rviz,  # before the node: if it is not installed, the launch fails at once
            rerun,
            OpaqueFunction(function=start_node),
        ]
    )
