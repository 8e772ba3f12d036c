# SPDX-License-Identifier: Apache-2.0
"""Every launch file with the real `ros2 launch`: `make test-launch`, or a sourced ROS 2."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from installing import colcon_build, copy_source, needs_colcon, site_packages
from launch_files import declared_arguments
from programs import Program, wait_until

ROS2 = shutil.which("ros2")
pytestmark = [
    needs_colcon,
    pytest.mark.skipif(
        importlib.util.find_spec("launch_ros") is None or ROS2 is None,
        reason="needs ROS 2's launch_ros and the ros2 command, which do not come from pip: make test-launch",
    ),
]

Launch = Callable[..., AbstractContextManager[Program]]
START_S = 120.0  # ros2 and torch, on a busy machine


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Context manager: a running `ros2 launch` of the installed package, or of the launch file at a path."""
    folder = tmp_path_factory.mktemp("workspace")
    prefix = colcon_build(copy_source(folder / "src"), folder)
    # launch reads files of its own package: in the virtual environment of `make test-launch`, those are in sys.prefix
    paths = {"AMENT_PREFIX_PATH": [prefix, sys.prefix], "PYTHONPATH": [site_packages(prefix)]}
    environment = {
        name: os.pathsep.join(filter(None, [*map(str, folders), os.environ.get(name, "")]))
        for name, folders in paths.items()
    }

    @contextmanager
    def running(file: str | Path, *arguments: object) -> Iterator[Program]:
        package = [] if isinstance(file, Path) else ["sqsegv3_ros"]
        program = Program([str(ROS2), "launch", *package, str(file), *map(str, arguments)], environment)
        try:
            yield program
        finally:
            program.end()
            program.kill()  # what it left running

    return running


def check_labels(client: Any, launched: Program, topic: str, output: str) -> list[str]:
    """Publish clouds until one is labelled. Returns the names of its fields."""
    from live import publish_until_labelled
    from sensor_msgs.msg import PointCloud2

    labelled = client.collect(PointCloud2, output, connected=False)
    wait_until(lambda: client.node.count_subscribers(topic), START_S, lambda: launched.log)
    publish_until_labelled(client, labelled, topic)
    return [field.name for field in labelled[0].fields]


def parameter_file(path: Path, parameters: str) -> Path:
    path.write_text(f"/**: {{ros__parameters: {{{parameters}}}}}\n")
    return path


def test_arguments_are_shown_with_their_defaults(launch: Launch) -> None:
    for name in ("segment", "two_lidars", "evaluate"):
        with launch(f"{name}.launch.py", "--show-args") as launched:
            assert launched.exit_code() == 0, launched.log
            shown = dict(re.findall(r"'(\w+)':\n(?: .*\n)*? +\(default: '?(.*?)'?\)", launched.log + "\n"))
            declared = declared_arguments(ROOT / "launch" / f"{name}.launch.py")
            assert {key: shown.get(key) for key in declared} == declared


def test_the_node_has_preset_then_own_file_then_arguments_and_remapped_topics(
    client: Any, launch: Launch, small_model: Path, tmp_path: Path
) -> None:
    own = parameter_file(
        tmp_path / "own.yaml",
        "model: /no.pt, device: cuda, intensity_scale: 0.5, latency_budget_ms: 2500.0, publish: {confidence: false}",
    )
    arguments = [f"model:={small_model}", "device:=cpu", f"params_file:={own}", "sensor:=vlp16", "namespace:=roof"]
    arguments += ["input_topic:=/lidar/top/points", "output_topic:=labelled"]
    with launch("segment.launch.py", *arguments) as launched, client.targeting("/roof/sqsegv3"):
        names = check_labels(client, launched, "/lidar/top/points", "/roof/labelled")
        assert names == ["x", "y", "z", "intensity", "rgb", "label"]
        values = client.get_parameters(
            "model", "device", "intensity_scale", "latency_budget_ms", "projection.fov_up_deg", "use_sim_time"
        )
        preset = (ROOT / "config" / "sensors" / "vlp16.yaml").read_text(encoding="utf-8")
        fov_up_deg = float(re.findall(r"fov_up_deg: ([\d.]+)", preset)[0])
        # argument, argument, own file over preset, own file, preset, default
        assert values == [str(small_model), "cpu", 0.5, 2500.0, fov_up_deg, False]
        assert launched.stop(signal.SIGINT, 60) == 0, launched.log
    assert "process has finished cleanly" in launched.log


def test_a_lifecycle_manager_can_start_the_node_and_a_killed_node_is_started_again(
    client: Any, launch: Launch, small_model: Path
) -> None:
    arguments = [f"model:={small_model}", "namespace:=managed", "autostart:=false", "respawn:=true", "log_level:=warn"]
    with launch("segment.launch.py", *arguments) as launched, client.targeting("/managed/sqsegv3"):

        def pids() -> list[int]:
            return [int(pid) for pid in re.findall(r"process started with pid \[(\d+)\]", launched.log)]

        wait_until(lambda: client.node.count_publishers("/managed/sqsegv3/transition_event"), START_S)
        assert client.state() == "unconfigured"
        assert client.transition("configure") and client.transition("activate")
        assert "ready in" not in launched.log  # the log level
        os.kill(pids()[0], signal.SIGKILL)
        wait_until(lambda: len(pids()) == 2, 30, lambda: launched.log)


def test_two_lidars_are_labelled_by_a_node_each_with_its_own_preset(
    client: Any, launch: Launch, small_model: Path, tmp_path: Path
) -> None:
    rear = parameter_file(tmp_path / "rear.yaml", "threads: 1")
    arguments = [f"model:={small_model}", "device:=cpu", "front_sensor:=vlp16", f"rear_params_file:={rear}"]
    arguments += ["front_output_topic:=/labelled"]
    with launch("two_lidars.launch.py", *arguments) as launched:
        for side, output in (("front", "/labelled"), ("rear", "/rear/sqsegv3/output/points")):
            check_labels(client, launched, f"/{side}/points", output)
        assert client.node.count_publishers("/labelled") == 1
        found = {}
        for side in ("front", "rear"):
            with client.targeting(f"/{side}/sqsegv3"):
                found[side] = client.get_parameters("intensity_scale", "threads")
        assert found["rear"] == [1.0, 1]  # not those of the front
        assert found["front"][0] != 1.0 and found["front"][1] == 0
        assert launched.stop(signal.SIGINT, 60) == 0, launched.log


def test_labelled_clouds_are_recorded_for_rerun(client: Any, launch: Launch, small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk: pip install 'sqsegv3_ros[view]'")
    from recordings import read_recording
    from sensor_msgs.msg import PointCloud2

    from sqsegv3_ros.pointcloud2 import CloudSettings, decode, read_field

    file = tmp_path / "new" / "live.rrd"
    arguments = [f"model:={small_model}", "device:=cpu", "namespace:=roof", "input_topic:=/top/points"]
    arguments += ["output_topic:=labelled", f"rerun_recording:={file}"]
    with launch("segment.launch.py", *arguments) as launched:
        wait_until(lambda: f"showing /roof/sqsegv3 in {file}" in launched.log, START_S, lambda: launched.log)
        wait_until(lambda: client.node.count_subscribers("/roof/labelled"), START_S, lambda: launched.log)
        check_labels(client, launched, "/top/points", "/roof/labelled")
        labelled = client.collect(PointCloud2, "/roof/labelled")
        check_labels(client, launched, "/top/points", "/roof/labelled")
        wait_until(lambda: labelled, 30)
        assert launched.stop(signal.SIGINT, 60) == 0, launched.log
    assert launched.log.count("process has finished cleanly") == 2, launched.log

    found = read_recording(file)
    recorded = {row["time"]: row for row in found["/lidar/points"]}
    for cloud in labelled:
        row = recorded[cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec]
        points = decode(cloud, CloudSettings(intensity_fields=(), ring_field="")).points
        assert row["Points3D:positions"].tolist() == points[:, :3].ravel().tolist()
        assert row["Points3D:class_ids"].tolist() == read_field(cloud, "label").tolist()
    assert {"/range_image", "/label_image", "/lidar/confidence"} <= found.keys()


INCLUDING = """
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import PushRosNamespace, SetParameter
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    file = PathJoinSubstitution([FindPackageShare("sqsegv3_ros"), "launch", "segment.launch.py"])
    arguments = {{"namespace": "roof", "model": "{model}", "input_topic": "/robot/points"}}
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments.items())
    group = [PushRosNamespace("robot"), SetParameter("stale_after_s", 7.0), include]
    return LaunchDescription([GroupAction(group)])
"""


def test_another_launch_file_can_include_the_node_in_its_namespace_with_its_parameters(
    client: Any, launch: Launch, small_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "robot.launch.py"
    file.write_text(INCLUDING.format(model=small_model))
    with launch(file) as launched, client.targeting("/robot/roof/sqsegv3"):
        check_labels(client, launched, "/robot/points", "/robot/roof/sqsegv3/output/points")
        assert client.get_parameters("stale_after_s") == [7.0]


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("segment.launch.py", ["sensor:=vlp17"], "'hdl32e', 'hdl64e'"),
        ("segment.launch.py", ["params_file:=/nowhere/own.yaml"], "No such file or directory: '/nowhere/own.yaml'"),
        ("segment.launch.py", ["autostart:=maybe"], "Valid options are"),
        ("segment.launch.py", ["rviz:=true"], "package 'rviz2' not found"),
        ("two_lidars.launch.py", ["rear_sensor:=vlp17"], "'hdl32e', 'hdl64e'"),
        ("evaluate.launch.py", [], "bag"),
        ("evaluate.launch.py", ["bag:=/nowhere"], "does not exist"),
    ],
)
def test_a_wrong_argument_ends_the_launch_with_a_reason(
    launch: Launch, file: str, arguments: list[str], message: str
) -> None:
    if "rviz:=true" in arguments and shutil.which("rviz2"):
        pytest.skip("RViz is installed")
    with launch(file, *arguments) as launched:
        assert launched.exit_code(START_S) == 1, launched.log
        assert message in launched.log


def test_the_exit_code_says_whether_every_scan_was_evaluated(launch: Launch, small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
    from recording import record, scans

    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(3, 5000)})
    written = tmp_path / "evaluation.json"

    def launched(*arguments: str) -> tuple[int, str]:
        with launch("evaluate.launch.py", f"model:={small_model}", f"bag:={bag}", *arguments) as program:
            return program.exit_code(200), program.log

    code, text = launched("follow:=true", "namespace:=front", f"output:={written}")
    assert code == 0, text
    assert json.loads(written.read_text())["scans_evaluated"] == 3
    code, text = launched("follow:=true", "label_map:=traversability", f"output:={written}")
    assert code == 0, text
    assert json.loads(written.read_text())["iou"].keys() == {"drivable", "obstacle", "dynamic"}
    code, text = launched("rate:=1000", "quiet_s:=2")
    assert code == 1 and "not every scan was evaluated" in text, text
