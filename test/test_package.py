# SPDX-License-Identifier: Apache-2.0
"""What a user gets from pip and from colcon, and whether package.xml says what the code needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT
from installing import colcon_build, copy_source, needs_colcon, run, site_packages

EXECUTABLES = ("segment_node", "evaluate_node", "rerun_node", "example_class_counter", "sqsegv3")
# imported from a ROS installation, and the package of package.xml that provides it if the names differ
ROS_MODULES = {"rclpy", "launch", "launch_ros", "tf2_ros", "tf_transformations", "sensor_msgs_py"}
BROUGHT_BY = {"tf2_ros": "tf2_ros_py"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source") / "sqsegv3_ros")


def shared_in_source() -> set[str]:
    files = {"package.xml"}
    for folder in ("launch", "config", "models"):
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        files |= {str(p.relative_to(ROOT)) for p in paths if not p.name.startswith(".") and p.suffix != ".pyc"}
    return files


def check_share(prefix: Path) -> None:
    share = prefix / "share"
    assert (share / "ament_index" / "resource_index" / "packages" / "sqsegv3_ros").is_file()
    not_free = {"models/kitti.pt", "models/kitti.md"}
    found = {name for name in shared_in_source() if (share / "sqsegv3_ros" / name).is_file()}
    assert found == shared_in_source() - not_free


def check_package_files(package: Path) -> None:
    source = ROOT / "sqsegv3_ros"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    missing = {str(name) for name in files if not (package / name).is_file()}
    assert not missing


def test_pip_installs_both_commands_on_the_path_and_everything_in_share(source: Path, tmp_path: Path) -> None:
    run(
        *(sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--use-pep517"),
        *("--ignore-installed", "--no-warn-script-location", "--prefix", tmp_path, source),
        cwd=tmp_path,
    )
    installed = site_packages(tmp_path)
    for name in EXECUTABLES:
        assert (tmp_path / "bin" / name).is_file()
    check_share(tmp_path)
    check_package_files(installed / "sqsegv3_ros")
    usage = run(tmp_path / "bin" / "sqsegv3", "--help", cwd=tmp_path, PYTHONPATH=str(installed)).stdout
    assert "import-official" in usage


@needs_colcon
@pytest.mark.parametrize("options", [(), ("--symlink-install",)], ids=["copied", "symlinked"])
def test_colcon_installs_executables_where_ros2_run_looks(
    source: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    prefix = colcon_build(source, tmp_path, *options)
    check_share(prefix)
    code = "import sqsegv3_ros, pathlib; print(pathlib.Path(sqsegv3_ros.__file__).resolve().parent)"
    sourced = f". {tmp_path}/install/setup.sh && "
    package = run("sh", "-c", f"{sourced}{sys.executable} -c '{code}'", cwd=tmp_path).stdout.strip()
    assert Path(package).is_relative_to(source if options else prefix)
    check_package_files(Path(package))
    executables = prefix / "lib" / "sqsegv3_ros"
    for name in EXECUTABLES:
        assert (executables / name).is_file()
    usage = run("sh", "-c", f"{sourced}{executables}/sqsegv3 --help", cwd=tmp_path).stdout
    assert "import-official" in usage


@needs_colcon
def test_colcon_test_runs_pytest_and_reports_its_failures(tmp_path: Path) -> None:
    source = copy_source(tmp_path / "src")
    for path in (source / "test").rglob("test_*.py"):
        path.unlink()
    (source / "test" / "conftest.py").unlink()
    (source / "test" / "test_two.py").write_text("def test_good(): pass\n\n\ndef test_bad(): assert False\n")
    folders = ["--build-base", tmp_path / "build", "--install-base", tmp_path / "install"]
    colcon_build(source, tmp_path)
    run(sys.executable, "-m", "colcon", "--log-base", tmp_path / "log", "test", "--base-paths", source, *folders,
        cwd=tmp_path)  # fmt: skip
    result = run("sh", "-c", "colcon test-result --test-result-base build --all || true", cwd=tmp_path).stdout
    assert "2 tests, 0 errors, 1 failure, 0 skipped" in result


def imported_from_ros(paths: list[Path]) -> set[str]:
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return {n for n in names if n in ROS_MODULES or n.endswith(("_msgs", "_interfaces"))}


def test_package_xml_names_every_ros_package_that_is_imported() -> None:
    root = ET.parse(ROOT / "package.xml").getroot()
    assert root.get("format") == "3"
    assert root.findtext("export/build_type") == "ament_python"
    declared = {element.text for element in root if element.tag.endswith("depend")}
    imported = imported_from_ros([*(ROOT / "sqsegv3_ros").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])
    assert {"rclpy", "sensor_msgs", "launch_ros"} <= imported
    assert {BROUGHT_BY.get(name, name) for name in imported} - declared == set()


def test_package_xml_is_what_the_build_farm_accepts() -> None:
    package_xml = pytest.importorskip("catkin_pkg.package", reason="needs catkin_pkg, which comes with colcon")
    text = (ROOT / "package.xml").read_text(encoding="utf-8")
    warnings: list[str] = []
    for distribution, has_torch in (
        ("humble", False),
        ("jazzy", False),
        ("kilted", False),
        ("lyrical", True),
        ("rolling", True),
    ):
        package = package_xml.parse_package_string(text, warnings=warnings)
        package.evaluate_conditions({"ROS_DISTRO": distribution})
        used = {depend.name for depend in package.exec_depends if depend.evaluated_condition}
        assert ("python3-torch" in used) is has_torch, distribution
        assert not [name for name in used if name.endswith("-pip")], "the build farm has no pip"
    assert not warnings
    assert [str(name) for name in package.licenses] == ["Apache-2.0", "CC-BY-NC-SA-4.0"]
    assert package.authors and package.urls


def test_placeholders_are_named_in_the_release_checklist() -> None:
    assert "sqsegv3-ros.example" in (ROOT / "docs" / "maintaining.md").read_text(encoding="utf-8")
    for name in ("package.xml", "setup.py"):
        addresses = re.findall(r"[\w.-]+\.example\b", (ROOT / name).read_text(encoding="utf-8"))
        assert set(addresses) == {"sqsegv3-ros.example"}, name


def test_versions_agree_and_the_changelog_has_a_forthcoming_section(
    source: Path,
) -> None:
    version = ET.parse(ROOT / "package.xml").getroot().findtext("version")
    assert version
    assert run(sys.executable, "setup.py", "--version", cwd=source).stdout.strip().splitlines()[-1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "\nForthcoming\n-----------\n" in (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")


def test_the_table_of_conventions_names_tests_that_exist() -> None:
    named = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_only_numpy_and_torch_are_required(source: Path) -> None:
    # everything else is an extra, or comes with ROS: a robot gets no training stack
    code = (
        "import setuptools, runpy; setuptools.setup = lambda **kw: print(kw['install_requires'])\n"
        "runpy.run_path('setup.py')"
    )
    required = ast.literal_eval(run(sys.executable, "-c", code, cwd=source).stdout.strip())
    assert sorted(name.partition(">")[0] for name in required) == ["numpy", "torch"]


def test_every_source_file_names_its_licence() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py", "*.sh"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    line = "# SPDX-License-Identifier: Apache-2.0"
    assert not [f for f in tracked.stdout.split() if line not in (ROOT / f).read_text().splitlines()[:2]]
