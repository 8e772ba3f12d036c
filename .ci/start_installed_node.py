# SPDX-License-Identifier: Apache-2.0
"""Start the node that colcon installed, as on a robot. Exits with 0 if it starts, labels a cloud and stops.

The model is a small one with random weights: this is about the installation.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from conftest import make_model  # noqa: E402
from live import NODE, Client, publish_until_labelled  # noqa: E402
from programs import wait_until  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402


def main(workspace: Path) -> None:
    """Start, label one cloud, stop by SIGINT. Raises AssertionError at the first thing that is not as it should be."""
    prefix = workspace / "install" / "sqsegv3_ros"
    sourced = f". {workspace}/install/setup.sh && cd {workspace} && "
    where = "import sqsegv3_ros; print(sqsegv3_ros.__file__)"
    used = subprocess.check_output(["bash", "-c", f"{sourced} {sys.executable} -c '{where}'"], text=True).strip()
    assert Path(used).is_relative_to(prefix), f"{used} is not what colcon installed in {prefix}"
    print(f"the package is {used}")

    model = make_model(workspace / "small.pt")
    node = prefix / "lib" / "sqsegv3_ros" / "segment_node"
    command = f"{sourced} exec {node} --ros-args --params-file {prefix}/share/sqsegv3_ros/config/segment.yaml"
    process = subprocess.Popen(["bash", "-c", f"{command} -p model:={model}"])
    client = Client()
    try:
        labelled = client.collect(PointCloud2, f"{NODE}/output/points", connected=False)
        wait_until(lambda: client.state() == "active", 120)
        print("the node is active")
        publish_until_labelled(client, labelled, f"{NODE}/input/points")
        print(f"a cloud came back with the fields {', '.join(field.name for field in labelled[0].fields)}")
    finally:
        client.close()
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, f"the node gave exit code {code} after SIGINT"
    print("the node stopped at SIGINT with exit code 0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
