# SPDX-License-Identifier: Apache-2.0
"""What is installed: the Python package, its two executables, and share/sqsegv3_ros with launch, config and models."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "sqsegv3_ros"
ROOT = Path(__file__).resolve().parent
SHARED_FOLDERS = ("launch", "config", "models")
NOT_INSTALLED = ("kitti",)  # its weights may not be used commercially: only a source checkout has it


def shared_files() -> list[tuple[str, list[str]]]:
    """(target folder, files) for everything below share/, paths relative to this folder as setuptools wants them."""
    index = "share/ament_index/resource_index/packages"
    files = [(index, [f"resource/{PACKAGE}"]), (f"share/{PACKAGE}", ["package.xml"])]
    for top in SHARED_FOLDERS:
        by_folder: dict[Path, list[str]] = {}
        for path in sorted((ROOT / top).rglob("*")):
            relative = path.relative_to(ROOT)
            hidden = any(part.startswith((".", "__")) for part in relative.parts)
            if path.is_file() and not hidden and path.stem not in NOT_INSTALLED:
                by_folder.setdefault(relative.parent, []).append(str(relative))
        files += [(f"share/{PACKAGE}/{folder}", names) for folder, names in by_folder.items()]
    return files


def package_data() -> list[str]:
    """What lies in the package beside Python modules, such as the style sheet of reports."""
    files = (ROOT / PACKAGE).rglob("*.*")
    return sorted(
        str(path.relative_to(ROOT / PACKAGE)) for path in files if path.is_file() and path.suffix not in (".py", ".pyc")
    )


def ros_from_pip(distribution: str, rclpy: str, rmw: str, interfaces: str, lifecycle: str) -> list[str]:
    """ROS 2 as wheels, for machines without a ROS installation. Never two distributions in one environment."""
    prefix = f"ros-{distribution}-"
    messages = ("sensor-msgs", "std-srvs", "diagnostic-msgs", "visualization-msgs", "nav-msgs")
    return [
        f"{prefix}rclpy=={rclpy}",
        f"{prefix}rmw-fastrtps-cpp=={rmw}",
        *(f"{prefix}{name}=={interfaces}" for name in messages),
        f"{prefix}lifecycle-msgs=={lifecycle}",
        "ros-wheels-bootstrapper==0.1.2",
        "transforms3d",  # stands in for tf_transformations, which wraps it
    ]


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Semantic segmentation of live LiDAR point clouds with SqueezeSegV3, as a ROS 2 node and offline.",
    author="sqsegv3_ros maintainers",
    author_email="maintainers@sqsegv3-ros.example",
    maintainer="sqsegv3_ros maintainers",
    maintainer_email="maintainers@sqsegv3-ros.example",
    url="https://sqsegv3-ros.example",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: package_data()},
    data_files=shared_files(),
    python_requires=">=3.10",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)],
    # rclpy and the messages come from the ROS installation, or from the extra `ros`
    install_requires=["numpy>=1.21", "torch>=2.2"],
    extras_require={
        # what a machine without a GPU runs the network with
        "cpu": ["openvino>=2025.0"],
        "tools": ["PyYAML", "tqdm", "Pillow", "matplotlib", "Jinja2", "shtab"],
        "train": ["lightning>=2.6", "torchmetrics>=1.0", "jsonargparse[signatures]>=4.44", "tensorboard", "PyYAML"],
        "simulate": ["embreex"],
        "bags": ["rosbags>=0.11"],
        # point-cloud files: PCD, PLY, LAS
        "files": ["pypcd4>=1.0", "plyfile", "laspy[lazrs]>=2.5"],
        # requires rosbags 0.9 by name, so not together with `bags`; see docs/files.md
        "ouster": ["ouster-sdk>=1.0"],
        # the Rerun viewer
        "view": ["rerun-sdk>=0.31"],
        # `sqsegv3 label --ray`, and its inputs and outputs on s3:// and sftp://
        "cluster": ["ray[default]>=2.60"],
        "remote": ["fsspec", "s3fs", "sshfs"],
        "onnx": ["onnx", "onnxruntime"],
        "docs": ["mkdocs<2", "mkdocs-material", "mkdocstrings[python]"],
        "ros": ros_from_pip("jazzy", rclpy="7.1.6", rmw="8.4.3", interfaces="5.3.6", lifecycle="2.0.3"),
        "ros-kilted": ros_from_pip("kilted", rclpy="9.1.2", rmw="9.3.3", interfaces="5.5.1", lifecycle="2.3.0"),
        # colcon runs pytest because it finds it here
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-PyYAML",
            "colcon-common-extensions",
        ],
    },
    entry_points={
        "console_scripts": [
            "segment_node = sqsegv3_ros.ros.segment_node:main",
            "evaluate_node = sqsegv3_ros.ros.evaluate_node:main",
            "rerun_node = sqsegv3_ros.ros.rerun_node:main",
            "example_class_counter = sqsegv3_ros.ros.example_class_counter:main",
            "sqsegv3 = sqsegv3_ros.cli:main",
        ]
    },
    zip_safe=False,
)
