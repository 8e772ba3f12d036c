# SPDX-License-Identifier: Apache-2.0
"""Make a virtual environment with `ros2 launch` from the user's sources, for `make test-launch`.

launch, launch_ros and ros2cli are not on PyPI. The environment sees everything that is installed in the one that runs
this script, and adds to it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REPOSITORIES = "github.com/ros2: launch, launch_ros, ros2cli"
PACKAGES = ("launch", "launch_xml", "launch_yaml", "launch_ros", "ros2cli", "ros2pkg", "ros2launch")
FROM_PYPI = ("psutil==7.2.2", "osrf-pycommon==2.0.2")
# launch_ros imports the services of component containers, which are on PyPI for no distribution and not used here
COMPONENT_SERVICES = """
class LoadNode:
    class Request: pass
    class Response: pass
"""


def find_packages(sources: Path) -> list[Path]:
    """The folder of each package below the sources."""
    folders = {path.parent.name: path.parent for path in sources.rglob("package.xml")}
    missing = [name for name in PACKAGES if name not in folders]
    if missing:
        sys.exit(f"{sources} has no package {', '.join(missing)}; expected checkouts of {REPOSITORIES}")
    return [folders[name] for name in PACKAGES]


def make_environment(target: Path, packages: list[Path]) -> None:
    """Create the environment and install the packages, built in copies of their folders."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
    (own,) = target.glob("lib/python3*/site-packages")
    base = Path(sysconfig.get_path("purelib"))
    (own / "base.pth").write_text(f"import site; site.addsitedir({str(base)!r})\n")
    # the start-up hook of ROS's wheels looks for libraries in the environment that runs
    for library in (Path(sys.prefix) / "lib").glob("lib*.so*"):
        (target / "lib" / library.name).symlink_to(library)
    for folder in base.glob("ros_*.libs"):
        (own / folder.name).symlink_to(folder)
    stub = own / "composition_interfaces"
    stub.mkdir()
    (stub / "__init__.py").touch()
    (stub / "srv.py").write_text(COMPONENT_SERVICES)
    with tempfile.TemporaryDirectory() as scratch:
        copies = [str(shutil.copytree(package, Path(scratch) / package.name)) for package in packages]
        install = [target / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *FROM_PYPI], check=True)
        subprocess.run([*install, "--no-deps", "--no-build-isolation", *copies], check=True)


def main() -> None:
    """Make the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="folder of the new environment; replaced if it exists")
    parser.add_argument("sources", type=Path, help=f"folder with checkouts of {REPOSITORIES}")
    arguments = parser.parse_args()
    make_environment(arguments.target.resolve(), find_packages(arguments.sources))


if __name__ == "__main__":
    main()
