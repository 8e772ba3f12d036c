"""Starts the segmentation node: launch arguments come in, a labelled cloud for every cloud of the sensor goes out.

Where a robot's own launch file includes this one, nothing leaks out of it: the environment is set for the node alone.
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
# Kilted and later read the first, and warn where the second is set; Jazzy and earlier read the second alone
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
READ_THE_SECOND = ("humble", "iron", "jazzy")
OUTPUTS = ("points", "filtered", "label_image", "range_image")
SWITCH = ["true", "false", "True", "False"]
ARGUMENTS = (
    ("model", "", "model file, or the name of one that ships; empty: as params_file says, else default", None),
    ("device", "", "auto, cuda, cuda:N or cpu; empty: as params_file says", None),
    ("input_topic", "/velodyne_points", "the sensor's clouds (sensor_msgs/PointCloud2)", None),
    ("output_topic", "~/output/points", "the labelled clouds; ~ is the node's own name", None),
    ("params_file", str(DEFAULTS), "the node's parameters; a file of your own beats the preset of sensor", None),
    ("sensor", "", "preset of config/sensors; empty: none", None),
    ("namespace", "", "namespace of the node", None),
    ("use_sim_time", "false", "take the time from /clock, as with a replayed bag", SWITCH),
    ("rviz", "false", "show the labelled cloud and the images in RViz", SWITCH),
    ("fastdds_profile", "true", "give Fast DDS shared memory for big clouds, unless a profile is set already", SWITCH),
    ("log_level", "info", "debug, info, warn, error or fatal", None),
)


def parameter_files(params_file: str, sensor: str, config: Path = CONFIG) -> list[str]:
    """The parameter files in the order in which the node reads them: what the user wrote comes last and wins.

    Raises ValueError for one that is not there.
    """
    own = Path(params_file)
    if not own.is_file():
        raise ValueError(f"params_file:={own} is not a file")
    if not sensor:
        return [str(own)]
    presets = {path.stem: path for path in sorted((config / "sensors").glob("*.yaml"))}
    if sensor not in presets:
        raise ValueError(f"sensor:={sensor} is not one of the presets: {', '.join(presets) or 'none is installed'}")
    # the file of defaults sets every parameter, so that nothing would be left of a preset that is read before it
    files = [own, presets[sensor]] if own.resolve() == DEFAULTS else [presets[sensor], own]
    return [str(path) for path in files]


def node_environment(current: Mapping[str, str], fastdds_profile: bool, config: Path = CONFIG) -> dict[str, str]:
    """The variables that the node gets in addition; what the user has set stays as it is."""
    # OpenMP threads that spin between layers would take the cores from the other processes of the robot
    added = {} if "OMP_WAIT_POLICY" in current else {"OMP_WAIT_POLICY": "passive"}
    if fastdds_profile and not any(current.get(name) for name in PROFILE_VARIABLES):
        distribution = current.get("ROS_DISTRO", "")
        names = PROFILE_VARIABLES[1:] if distribution in READ_THE_SECOND else PROFILE_VARIABLES[:1]
        added.update(dict.fromkeys(names if distribution else PROFILE_VARIABLES, str(config / "fastdds.xml")))
    return added


def topics_in_rviz(namespace: str, output_topic: str) -> list[tuple[str, str]]:
    """Remaps from the topics that segment.rviz names to those of the node that is started."""
    node = "/" + "/".join(part for part in (*namespace.split("/"), NODE_NAME) if part)
    remaps = [(f"/{NODE_NAME}/output/{name}", f"{node}/output/{name}") for name in OUTPUTS]
    if output_topic.startswith("~"):
        output_topic = node + output_topic[1:]
    elif not output_topic.startswith("/"):
        output_topic = f"{node.removesuffix(NODE_NAME)}{output_topic}"
    remaps[0] = (remaps[0][0], output_topic)
    return [(shown, actual) for shown, actual in remaps if shown != actual]


def start(context: LaunchContext) -> list[Node]:
    """The node, and RViz if wanted, by the values of the launch arguments."""
    value = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    on = {name: value[name].lower() == "true" for name in ("use_sim_time", "rviz", "fastdds_profile")}
    # an argument that is not given leaves the parameter as the files say
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
    viewer = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz_sqsegv3",
        arguments=["-d", str(CONFIG / "segment.rviz")],
        parameters=[{"use_sim_time": on["use_sim_time"]}],
        remappings=topics_in_rviz(value["namespace"], value["output_topic"]),
    )
    # the viewer first: where it is not installed, the launch fails before a node is left running behind it
    return [viewer, segmentation]


def generate_launch_description() -> LaunchDescription:
    """The arguments and what is started by them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
        for name, default, description, choices in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
