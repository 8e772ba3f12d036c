"""The whole system at work on a simulated drive: numbers, a report and a picture come out. Needs no data and no ROS.

The node, the player and the evaluator are processes of their own that talk over ROS 2, as they do on a robot.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import OperationError
from sqsegv3_ros.process import use_fastdds_profile

PACE_HZ = 10.0
SHARE_OF_PERIOD = 0.8  # of a period that labelling may take for player and evaluate to keep up beside it
START_TIMEOUT_S = 120.0
LABELLED_TOPIC = "/sqsegv3/output/points"
INPUT_TOPIC = "/velodyne_points"


@dataclass(frozen=True)
class DemoFiles:
    """What the demo writes, below one folder."""

    folder: Path

    @property
    def bag(self) -> Path:
        """The simulated drive."""
        return self.folder / "drive"

    @property
    def evaluation(self) -> Path:
        """The evaluate's numbers."""
        return self.folder / "evaluation.json"

    @property
    def report(self) -> Path:
        """The page to read."""
        return self.folder / "report.html"

    @property
    def picture(self) -> Path:
        """One labelled scan."""
        return self.folder / "scan.png"

    def log(self, process: str) -> Path:
        """What a process printed."""
        return self.folder / f"{process}.log"


def simulate_drive(files: DemoFiles, scans: int, seed: int) -> None:
    """Simulate a drive through a city and write it as a bag."""
    from sqsegv3_ros.simulation.dataset import Settings, simulate

    for _ in simulate(Settings(scans, "hdl64e", seed, "city", True, "compensated"), bag=files.bag, force=True):
        pass


def latency_ms(model: Path, bag: Path) -> float:
    """How long this machine needs for one scan of the bag, in this process."""
    from sqsegv3_ros.inference.segmenter import Segmenter

    segmenter = Segmenter(model)
    segmenter.warm_up()
    points = next(_scans(bag)).points
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        segmenter.segment(points)
        times.append(1e3 * (time.perf_counter() - begin))
    return sorted(times)[len(times) // 2]


def drive_live(model: Path, files: DemoFiles, scans: int, keeps_pace: bool) -> bool:
    """Replay the drive at the live node while the evaluator watches. Returns whether every scan was evaluated.

    keeps_pace: play at the recorded 10 Hz; otherwise each scan is sent when the one before has come back.
    """
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 100)))
    use_fastdds_profile(environment)
    files.evaluation.unlink(missing_ok=True)
    quiet_s = 5.0 if keeps_pace else 20.0  # without a scan: the drive is over
    evaluation = str(files.evaluation.resolve())
    parameters = {"output": evaluation, "scans": scans, "quiet_s": quiet_s, "start_timeout_s": 180.0}
    replay = ["sqsegv3_ros.cli", "replay", str(files.bag), "--topic", INPUT_TOPIC, "--wait-for-subscribers", "2"]
    with ExitStack() as stack:
        node_arguments = _ros_arguments({"model": str(model.resolve())}, {"~/input/points": INPUT_TOPIC})
        node = stack.enter_context(
            _process(files, "node", ["sqsegv3_ros.ros.segment_node", *node_arguments], environment)
        )
        _wait_for(files.log("node"), "labelling clouds of", node)
        evaluator_arguments = ["sqsegv3_ros.ros.evaluate_node", *_ros_arguments(parameters, {})]
        evaluator = stack.enter_context(_process(files, "evaluator", evaluator_arguments, environment))
        player_arguments = [*replay, *([] if keeps_pace else ["--follow", LABELLED_TOPIC])]
        stack.enter_context(_process(files, "player", player_arguments, environment))
        code = evaluator.wait()
    if code not in (0, 1) or not files.evaluation.is_file():
        raise OperationError(f"the evaluator failed (exit code {code}): {_tail(files.log('evaluator'))}")
    return code == 0


def write_pictures(model: Path, files: DemoFiles, worst: int = 3) -> None:
    """The report, with the scans of the lowest mIoU, and a picture of the scan in the middle of the drive."""
    from sqsegv3_ros.evaluation.report_page import Sample, build_report, read_summary
    from sqsegv3_ros.evaluation.sheet import png_of, scan_sheet
    from sqsegv3_ros.files import write_atomically
    from sqsegv3_ros.inference.segmenter import Segmenter

    summary = read_summary(files.evaluation)
    evaluated = sorted((s for s in summary["scans"] if s["evaluated_points"]), key=lambda s: s["miou_present"])
    wanted = [scan["name"] for scan in evaluated[:worst]]
    segmenter = Segmenter(model)
    samples: dict[str, Sample] = {}
    for number, scan in enumerate(_scans(files.bag)):
        is_middle = number == summary["scan_count"] // 2
        if scan.name not in wanted and not is_middle:
            continue
        labels = segmenter.segment(scan.points).labels
        if scan.name in wanted:
            samples[scan.name] = Sample(scan.name, scan.points, labels, scan.ground_truth)
        if is_middle:
            title = f"{scan.name} s of a simulated drive, labelled by {segmenter.info.name}"
            sheet = scan_sheet(title, scan.points, segmenter.info.labels, labels, scan.ground_truth)
            write_atomically(files.picture, png_of(sheet))
    note = f"A simulated drive, labelled live by {segmenter.info.name}."
    write_atomically(files.report, build_report(summary, [samples[n] for n in wanted if n in samples], note).encode())


@dataclass(frozen=True)
class _Scan:
    name: str
    points: Any
    ground_truth: Any


def _scans(bag: Path) -> Iterator[_Scan]:
    from sqsegv3_ros.data.rosbag_reader import BagReader
    from sqsegv3_ros.evaluation.live_evaluation import stamp_of
    from sqsegv3_ros.pointcloud2 import decode, read_field

    with BagReader(bag) as reader:
        for message in reader.messages(INPUT_TOPIC):
            cloud = reader.cloud(message)
            stamp = stamp_of(message.raw)
            name = f"{stamp // 10**9}.{stamp % 10**9:09d}"
            yield _Scan(name, decode(cloud).points, read_field(cloud, "ground_truth"))


def _ros_arguments(parameters: dict[str, Any], remaps: dict[str, str]) -> list[str]:
    words = ["--ros-args"]
    for name, value in parameters.items():
        words += ["-p", f"{name}:={value}"]
    for source, target in remaps.items():
        words += ["-r", f"{source}:={target}"]
    return words


@contextmanager
def _process(
    files: DemoFiles, name: str, arguments: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m arguments` for as long as the block lasts; then SIGINT, and in the end SIGKILL."""
    with files.log(name).open("wb") as log:
        command = [sys.executable, "-u", "-m", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            raise OperationError(f"the node did not start: {_tail(log)}")
        time.sleep(0.1)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it printed nothing'} (all of it: {log})"
