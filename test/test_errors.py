# SPDX-License-Identifier: Apache-2.0
"""What a user reads when a package is missing: one line, with the command for the distribution found."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

from sqsegv3_ros.errors import install_command, missing_package


@pytest.fixture
def outside_a_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)


def externally_managed(monkeypatch: pytest.MonkeyPatch, folder: Path, managed: bool) -> None:
    if managed:
        (folder / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))


@pytest.mark.usefixtures("outside_a_venv")
@pytest.mark.parametrize(
    ("distribution", "managed", "torch", "openvino"),
    [
        ("humble", False, "pip install torch", "pip install openvino"),
        ("jazzy", True, "pip install --break-system-packages torch", "pip install --break-system-packages openvino"),
        ("kilted", True, "pip install --break-system-packages torch", "pip install --break-system-packages openvino"),
        ("lyrical", True, "sudo apt install python3-torch", "pip install --break-system-packages openvino"),
        ("rolling", True, "sudo apt install python3-torch", "pip install --break-system-packages openvino"),
        ("", False, "pip install torch", "pip install openvino"),
        ("", True, "pip install --break-system-packages torch", "pip install --break-system-packages openvino"),
    ],
)
def test_the_command_fits_the_distribution(
    distribution: str, managed: bool, torch: str, openvino: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    externally_managed(monkeypatch, tmp_path, managed)
    environment = {"ROS_DISTRO": distribution}
    assert install_command("torch", environment=environment) == torch
    assert install_command("openvino", environment=environment) == openvino


@pytest.mark.usefixtures("outside_a_venv")
def test_what_ubuntu_has_is_installed_by_apt_where_ros_is_sourced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    externally_managed(monkeypatch, tmp_path, False)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert str(missing_package("PyYAML", "reading", "tools")).endswith(": sudo apt install python3-yaml")
    assert str(missing_package("rosbags", "reading", "bags")).endswith(": pip install 'sqsegv3_ros[bags]'")
    monkeypatch.delenv("ROS_DISTRO")
    assert str(missing_package("PyYAML", "reading", "tools")).endswith(": pip install 'sqsegv3_ros[tools]'")


def test_a_virtual_environment_gets_pip_whatever_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/somewhere/else")
    assert install_command("torch", environment={"ROS_DISTRO": "lyrical"}) == "pip install torch"


def run_without(package: str, code: str, distribution: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a Python that cannot import a package, outside a virtual environment as far as it can tell."""
    hidden = (
        "import importlib.abc, sys\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.prefix = sys.base_prefix\n"
    )
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "ROS_DISTRO": distribution, "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", hidden + code], env=environment, text=True, capture_output=True, check=False, timeout=120
    )


@pytest.mark.parametrize(("distribution", "command"), [("", "pip install "), ("lyrical", "sudo apt install ")])
def test_the_node_without_torch_says_what_to_install_and_exits_with_2(distribution: str, command: str) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    done = run_without("torch", "from sqsegv3_ros.ros.segment_node import main; sys.exit(main([]))", distribution)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"segment_node: the node needs the Python package 'torch': {command}")
    assert done.stderr.strip().endswith("torch")


def test_a_command_without_torch_says_what_to_install_and_exits_with_2(small_model: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.bin"
    scan.write_bytes(bytes(160))
    arguments = ["label", str(scan), "--model", str(small_model), "--output", str(tmp_path / "labels")]
    done = run_without("torch", f"from sqsegv3_ros.cli import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sqsegv3 label: this command needs the Python package 'torch': pip install ")


def test_a_missing_openvino_is_named_when_it_is_asked_for() -> None:
    code = (
        "import importlib.util; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'openvino' else found(name, *rest)\n"
        "from sqsegv3_ros.inference.backends import resolve_runtime\n"
        "try:\n    resolve_runtime('openvino')\nexcept Exception as error:\n    print(error)\n"
    )
    done = run_without("openvino", code, "jazzy")
    assert done.stdout.startswith("backend 'openvino' needs the Python package 'openvino': pip install "), done.stderr


def test_a_rclpy_of_another_python_or_distribution_is_explained() -> None:
    done = run_without("rclpy", "import sqsegv3_ros.ros.segment_node", "humble")
    assert done.returncode == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.stderr.strip().splitlines()[-1] == (
        f"ImportError: rclpy cannot be imported by Python {version} (No module named 'rclpy'); ROS 2 humble is "
        "sourced: source the distribution that was built for this Python, or pip install 'sqsegv3_ros[ros]'"
    )


def test_replay_without_rclpy_says_once_what_to_do() -> None:
    done = run_without("rclpy", "from sqsegv3_ros.cli import main; sys.exit(main(['replay', 'bag']))")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sqsegv3 replay: replay needs ROS 2: rclpy cannot be imported by Python 3")
    assert done.stderr.count("source") == 2  # "no ROS 2 is sourced", and what to do
    assert done.stderr.count("pip install 'sqsegv3_ros[ros]'") == 1
