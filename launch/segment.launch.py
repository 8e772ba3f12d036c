# SPDX-License-Identifier: Apache-2.0
"""Start the segmentation node, and optionally RViz.

A launch file that includes this one is not affected by it: environment variables are set for the node alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

CONFIG = Path(__file__).resolve().parent.parent / "config"
DEFAULTS = CONFIG / "segment.yaml"
NODE_NAME = "sqsegv3"
OUTPUTS = ("points", "filtered", "label_image", "range_image")
SWITCH = ["true", "false", "True", "False"]
ARGUMENTS = (
    ("model", "", "model file, or the name of a shipped model; empty: as in params_file, else default", None),
    ("device", "", "auto, cuda, cuda:N or cpu; empty: as in params_file", None),
    ("input_topic", "/velodyne_points", "clouds of the sensor (sensor_msgs/PointCloud2)", None),
    ("output_topic", "~/output/points", "labelled clouds; ~ is the node's name", None),
    ("params_file", str(DEFAULTS), "parameters of the node; your own file overrides the sensor's preset", None),
    ("sensor", "", "preset of config/sensors; empty: none", None),
    ("namespace", "", "namespace of the node", None),
    ("use_sim_time", "false", "take the time from /clock, as with a replayed bag", SWITCH),
    ("rviz", "false", "show the labelled cloud and the images in RViz", SWITCH),
    ("fastdds_profile", "true", "give Fast DDS shared memory for large clouds, unless a profile is set", SWITCH),
    ("log_level", "info", "debug, info, warn, error or fatal", None),
)


def parameter_files(params_file: str, sensor: str, config: Path = CONFIG) -> list[str]:
    """Parameter files in the order in which the node reads them; the last one wins.

    Raises ValueError for a file that does not exist.
    """
    own = Path(params_file)
    if not own.is_file():
        raise ValueError(f"params_file:={own} is not a file")
    if not sensor:
        return [str(own)]
    presets = {path.stem: path for path in sorted((config / "sensors").glob("*.yaml"))}
    if sensor not in presets:
        raise ValueError(f"sensor:={sensor} is not one of the presets: {', '.join(presets) or 'none is installed'}")
    # the default file sets every parameter, so it must not override the preset
    files = [own, presets[sensor]] if own.resolve() == DEFAULTS else [presets[sensor], own]
    return [str(path) for path in files]


def node_environment(current: Mapping[str, str], fastdds_profile: bool) -> dict[str, str]:
    """Environment variables to add for the node; those that are set already are kept."""
    from sqsegv3_ros.process import use_fastdds_profile

    environment = {"OMP_WAIT_POLICY": "passive", **current}  # spinning threads would occupy the robot's cores
    if fastdds_profile:
        use_fastdds_profile(environment)
    return {name: value for name, value in environment.items() if name not in current}


def resolve(topic: str, namespace: str) -> str:
    """Full name of a topic of the node."""
    from rclpy.expand_topic_name import expand_topic_name

    return str(expand_topic_name(topic, NODE_NAME, f"/{namespace.strip('/')}"))


def topics_in_rviz(namespace: str, output_topic: str) -> list[tuple[str, str]]:
    """Remappings from the topics in segment.rviz to those of the node."""
    topics = {f"~/output/{name}": f"~/output/{name}" for name in OUTPUTS}
    topics["~/output/points"] = output_topic
    remappings = [(resolve(shown, ""), resolve(actual, namespace)) for shown, actual in topics.items()]
    return [(shown, actual) for shown, actual in remappings if shown != actual]


def start(context: LaunchContext) -> list[Node]:
    """Node, and RViz if requested, for the values of the launch arguments."""
    value = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    on = {name: value[name].lower() == "true" for name in ("use_sim_time", "rviz", "fastdds_profile")}
    # without the argument, the parameter files decide
    overrides: dict[str, str | bool] = {name: value[name] for name in ("model", "device") if value[name]}
    if on["use_sim_time"]:
        overrides["use_sim_time"] = True
    segmentation = LifecycleNode(
        package="sqsegv3_ros",
        executable="segment_node",
        name=NODE_NAME,
        namespace=value["namespace"],
        parameters=[*parameter_files(value["params_file"], value["sensor"]), overrides],
        remappings=[("~/input/points", value["input_topic"]), ("~/output/points", value["output_topic"])],
        ros_arguments=["--log-level", value["log_level"]],
        additional_env=node_environment(context.environment, on["fastdds_profile"]),
        output="screen",
        emulate_tty=True,
    )
    if not on["rviz"]:
        return [segmentation]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz_sqsegv3",
        arguments=["-d", str(CONFIG / "segment.rviz")],
        parameters=[{"use_sim_time": on["use_sim_time"]}],
        remappings=topics_in_rviz(value["namespace"], value["output_topic"]),
    )
    # RViz first: if it is not installed, the launch fails before the node runs
    return [rviz, segmentation]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
        for name, default, description, choices in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
