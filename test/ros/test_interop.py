# SPDX-License-Identifier: Apache-2.0
"""Clients that are not rclpy of this version: an independent RTPS client and another ROS distribution."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from programs import depends_on_discovery, running_node

pytestmark = depends_on_discovery

# a network of its own, as the RTPS client multicasts and must not reach other hosts
NAMESPACE = """
ip link set lo up && ip link add inside0 type veth peer name inside1 && ip addr add 10.213.0.1/24 dev inside0 &&
ip link set inside0 up && ip link set inside1 up && ip link set inside0 multicast on &&
ip route add 224.0.0.0/4 dev inside0 && exec "$@"
"""


def in_namespace(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    return subprocess.run(
        [*unshare, "sh", "-c", NAMESPACE, "sh", *command], text=True, capture_output=True, check=False, **settings
    )


def needs_namespace() -> None:
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the commands unshare and ip, to make a network namespace")
    made = in_namespace("true")
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")


@pytest.mark.parametrize("points", [1000, pytest.param(130_000, marks=pytest.mark.long)])
def test_a_client_without_ros_gets_its_clouds_labelled(points: int, tmp_path: Path) -> None:
    for package, hint in (("rosless", "pip install rosless"), ("rclpy", "pip install 'sqsegv3_ros[ros]'")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: {hint}")
    needs_namespace()
    from faults import write_model

    from sqsegv3_ros.process import use_fastdds_profile

    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "SYSTEM_DEFAULT"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    use_fastdds_profile(environment)
    model = write_model(tmp_path / "model.pt", "1/16", 64)
    domain = random.SystemRandom().randint(110, 200)  # shared memory is not part of the namespace
    script = str(ROOT / "test" / "interop_rosless.py")
    done = in_namespace(
        sys.executable, script, str(model), str(points), "20", str(domain), env=environment, timeout=280
    )
    assert done.stdout.splitlines()[-1:] == ["20 of 20"], (done.stdout, done.stderr[-3000:])


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_client_of_another_distribution_gets_its_clouds_labelled(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    from faults import write_model

    here = {found.name for found in importlib.metadata.distributions()}
    distribution = "jazzy" if "ros-kilted-rclpy" in here else "kilted"
    other = tmp_path / distribution
    subprocess.run([sys.executable, "-m", "venv", str(other)], check=True)
    pins = ROOT / "requirements" / f"ros_{distribution}.txt"
    installed = subprocess.run(
        [str(other / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(pins), "numpy<3"], check=False
    )
    if installed.returncode:
        pytest.skip(f"the packages of {distribution} cannot be installed from here")
    # variables that the wheels set for one virtual environment break another
    inherited = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH", "AMENT_PREFIX_PATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    with running_node(model=write_model(tmp_path / "model.pt", "1/16", 64), threads=1) as node:
        node.wait_for_log("labelling clouds of")
        done = subprocess.run(
            [str(other / "bin" / "python"), str(ROOT / "test" / "interop_client.py"), "1000", "20"],
            env=environment, text=True, capture_output=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1:] == ["20 of 20, active"], (done.stdout, done.stderr[-3000:], node.log)
