# SPDX-License-Identifier: Apache-2.0
"""Start two segmentation nodes, /front/sqsegv3 and /rear/sqsegv3, for two LiDARs of one robot.

An example to copy: it includes segment.launch.py once for each sensor. The other arguments of that file hold for both.
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

SEGMENT = PathJoinSubstitution([FindPackageShare("sqsegv3_ros"), "launch", "segment.launch.py"])


def lidar(side: str) -> GroupAction:
    """One node, in a scope of its own so that its arguments do not reach the other."""
    names = ("input_topic", "sensor", "params_file", "rerun_recording")
    arguments = {name: LaunchConfiguration(f"{side}_{name}") for name in names}
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(SEGMENT), launch_arguments={"namespace": side, **arguments}.items()
    )
    return GroupAction([segment])


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments of each sensor, and start both nodes."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("front_input_topic", default_value="/front/points", description="front: clouds"),
            DeclareLaunchArgument("front_sensor", default_value="", description="front: preset; empty: none"),
            DeclareLaunchArgument("front_params_file", default_value="", description="front: parameters; empty: none"),
            DeclareLaunchArgument("rear_input_topic", default_value="/rear/points", description="rear: clouds"),
            DeclareLaunchArgument("rear_sensor", default_value="", description="rear: preset; empty: none"),
            DeclareLaunchArgument("rear_params_file", default_value="", description="rear: parameters; empty: none"),
            DeclareLaunchArgument(
                "front_rerun_recording", default_value="", description="front: .rrd file; empty: viewer"
            ),
            DeclareLaunchArgument(
                "rear_rerun_recording", default_value="", description="rear: .rrd file; empty: viewer"
            ),
            lidar("front"),
            lidar("rear"),
        ]
    )
