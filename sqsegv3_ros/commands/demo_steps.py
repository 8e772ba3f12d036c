# SPDX-License-Identifier: Apache-2.0
"""Steps of the demo: simulate a drive, replay it to the live node, evaluate, draw.

Node, player and evaluator are separate processes that communicate over ROS 2, as on a robot.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from sqsegv3_ros.errors import OperationError
from sqsegv3_ros.process import use_fastdds_profile

if TYPE_CHECKING:
    from sqsegv3_ros.evaluation.html_report import View
    from sqsegv3_ros.inference.segmenter import Segmenter

RATE_HZ = 10.0
"""Recorded rate of the drive."""
MAX_LOAD = 0.8
"""Largest share of the period that labelling may take, so that player and evaluator keep up beside it."""
START_TIMEOUT_S = 120.0
INPUT_TOPIC = "/velodyne_points"
LABELLED_TOPIC = "/sqsegv3/output/points"


class DemoFiles:
    """Files that the demo writes: the simulated drive, the evaluation, its report, and the picture of one scan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bag = folder / "drive"
        self.evaluation = folder / "evaluation.json"
        self.report = folder / "report.html"
        self.picture = folder / "scan.png"

    def log(self, process: str) -> Path:
        """Get the file with the output of a process."""
        return self.folder / f"{process}.log"


def simulate_drive(files: DemoFiles, scans: int, seed: int) -> None:
    """Simulate a drive through a city and write it as a bag."""
    from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate

    settings = SimulationSettings(scans, "hdl64e", seed, "city", drive=True)
    for _ in simulate(settings, bag=files.bag, force=True):
        pass


def measure_latency_ms(model: Path, bag: Path) -> float:
    """Measure the median time for one scan of the bag, in this process."""
    from sqsegv3_ros.inference.segmenter import Segmenter

    segmenter = Segmenter(model)
    segmenter.warm_up()
    _, points, _ = next(_read_scans(bag))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        segmenter.segment(points)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def evaluate_live(model: Path, files: DemoFiles, scans: int, real_time: bool) -> bool:
    """Replay the drive to the live node and the evaluator, and print the evaluator's output.

    Args:
        model: Model file.
        files: Files of the demo.
        scans: Number of scans in the drive.
        real_time: Replay at the recorded rate; otherwise send each scan once the one before was labelled.

    Returns:
        Whether every scan was evaluated.

    Raises:
        OperationError: The node does not start, or the evaluator fails.
    """
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 100)))
    use_fastdds_profile(environment)
    files.evaluation.unlink(missing_ok=True)
    quiet_s = 5.0 if real_time else 20.0
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(_process(arguments, files.log(name), environment))

        parameters = _ros_arguments(model=model.resolve())
        node = start("node", "sqsegv3_ros.ros.segment_node", *parameters, "-r", f"~/input/points:={INPUT_TOPIC}")
        _wait_for_output("labelling clouds of", files.log("node"), node)
        output = files.evaluation.resolve()
        parameters = _ros_arguments(output=output, scans=scans, quiet_s=quiet_s, start_timeout_s=180.0)
        evaluator = start("evaluator", "sqsegv3_ros.ros.evaluate_node", *parameters)
        replay = ("sqsegv3_ros.cli", "replay", str(files.bag), "--topic", INPUT_TOPIC, "--wait-for-subscribers", "2")
        start("player", *replay, *([] if real_time else ["--follow", LABELLED_TOPIC]))
        code = evaluator.wait()
    if code not in (0, 1) or not files.evaluation.is_file():
        raise OperationError(f"the evaluator failed (exit code {code}): {_last_line(files.log('evaluator'))}")
    print(files.log("evaluator").read_text(errors="replace"), end="", flush=True)
    return code == 0


def write_pictures(model: Path, files: DemoFiles, worst: int = 3) -> None:
    """Write the report, with the worst scans, and a picture of the scan in the middle of the drive."""
    from sqsegv3_ros.evaluation.html_report import Sample, build_report, worst_scans
    from sqsegv3_ros.evaluation.summary import read_summary
    from sqsegv3_ros.files import write_atomically
    from sqsegv3_ros.inference.segmenter import Segmenter
    from sqsegv3_ros.viewing.pictures import encode_png
    from sqsegv3_ros.viewing.scan_picture import draw_scan

    summary = read_summary(files.evaluation)
    names = [scan["name"] for scan in worst_scans(summary, worst)]
    segmenter = Segmenter(model)
    samples: dict[str, Sample] = {}
    views: list[View] = []
    for number, (name, points, ground_truth) in enumerate(_read_scans(files.bag)):
        is_middle = number == summary["scan_count"] // 2
        if name not in names and not is_middle:
            continue
        labels = segmenter.segment(points).labels
        samples[name] = Sample(name, points, labels, ground_truth)
        if is_middle:
            title = f"{name} s of a simulated drive, labelled by {segmenter.info.name}"
            picture = draw_scan(title, points, segmenter.info.labels, labels, ground_truth)
            write_atomically(files.picture, encode_png(picture))
            views = _navigation_views(segmenter, points, ground_truth)
    note = f"A simulated drive, labelled live by {segmenter.info.name}."
    report = build_report(summary, [samples[name] for name in names if name in samples], note, views)
    write_atomically(files.report, report.encode())


def _navigation_views(segmenter: Segmenter, points: npt.NDArray[Any], ground_truth: npt.NDArray[Any]) -> list[View]:
    """A scan with the label map `traversability`, and its points in ~/output/obstacles."""
    from sqsegv3_ros.data.label_map import load_label_map
    from sqsegv3_ros.evaluation.html_report import View
    from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
    from sqsegv3_ros.inference.point_filter import FilterConfig, PointFilter, ground_classes
    from sqsegv3_ros.viewing.pictures import display_colors

    labels, result = segmenter.info.labels, segmenter.segment(points)
    folded = load_label_map("traversability").apply(labels)
    matrix = ConfusionMatrix(folded.labels)
    predicted = folded.fold(result.labels)
    matrix.add(predicted, folded.fold(ground_truth))
    classes = list(zip(folded.labels.names, matrix.scores().iou, strict=True))[1:]
    scores = ", ".join(f"{name} {100 * iou:.0f} %" for name, iou in classes)
    obstacles = PointFilter(FilterConfig(remove_classes=tuple(ground_classes(labels))), labels).mask(
        points, result.labels, result.confidences, segmenter.extrinsics
    )
    colors = display_colors(labels)[result.labels]
    return [
        View(f"label map traversability (IoU: {scores})", points, display_colors(folded.labels)[predicted]),
        View(f"obstacles: {obstacles.sum():,} of {len(points):,} points", points[obstacles], colors[obstacles]),
    ]


def _read_scans(bag: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, points and ground truth of every scan."""
    from sqsegv3_ros.data.rosbag_reader import BagReader
    from sqsegv3_ros.pointcloud2 import decode, format_stamp, read_field, read_stamp_ns

    with BagReader(bag) as reader:
        for message in reader.messages(INPUT_TOPIC):
            cloud = reader.cloud(message)
            yield format_stamp(read_stamp_ns(message.raw)), decode(cloud).points, read_field(cloud, "ground_truth")


def _ros_arguments(**parameters: Any) -> list[str]:
    return ["--ros-args", *(word for name, value in parameters.items() for word in ("-p", f"{name}:={value}"))]


@contextmanager
def _process(arguments: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m arguments` within the block; then send SIGINT and, if that fails, SIGKILL."""
    with log.open("wb") as output:
        command = [sys.executable, "-u", "-m", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
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


def _wait_for_output(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            raise OperationError(f"the node did not start: {_last_line(log)}")
        time.sleep(0.1)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'no output'} (full output: {log})"
