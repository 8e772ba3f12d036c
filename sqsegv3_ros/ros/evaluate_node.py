# SPDX-License-Identifier: Apache-2.0
"""The live evaluation node: compares labelled clouds with the ground truth while the segmentation node runs.

It ends by itself, and prints and saves the evaluation. Exit code: 0 if every scan was evaluated, 1 if not, 2 if
something cannot be evaluated at all.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

from sqsegv3_ros.data.label_map import load_label_map
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.live_evaluation import LiveEvaluation, Matcher, Pair, titled_numbers
from sqsegv3_ros.evaluation.summary import format_summary, write_summary
from sqsegv3_ros.files import expand_home
from sqsegv3_ros.pointcloud2 import format_stamp, read_stamp_ns
from sqsegv3_ros.ros.cloud_subscription import subscribe_serialized
from sqsegv3_ros.ros.parameters import set_range
from sqsegv3_ros.ros.qos import LATCHED
from sqsegv3_ros.ros.signals import stop_on_signals
from sqsegv3_ros.ros.start import start_ros

NODE_NAME = "evaluate_node"
SETTLE_S = 0.5  # between discovering the node and subscribing to scans: it labels nothing before it discovers us
TOPICS = {  # private name -> topic without remapping
    "input/ground_truth": "/velodyne_points",
    "input/labelled": "/sqsegv3/output/points",
    "input/label_set": "/sqsegv3/output/label_set",
}
PARAMETERS: dict[str, tuple[bool | int | float | str, str]] = {
    "labels": ("", "Label configuration of the ground truth (YAML); empty: the classes of SemanticKITTI."),
    "label_map": ("", "The node's label map, into whose classes the ground truth is folded; empty: none."),
    "ground_truth_field": ("ground_truth", "Field of the ground-truth cloud that holds the true class."),
    "label_field": ("label", "Field of the labelled cloud that holds the predicted class."),
    "output": ("", "JSON file to save the evaluation to; empty: none."),
    "scans": (0, "Number of scans to expect; 0: unknown, the evaluation ends when the input is quiet."),
    "quiet_s": (10.0, "The evaluation ends after this time without a cloud, seconds."),
    "start_timeout_s": (60.0, "The evaluation gives up after this time without a first cloud, seconds; 0: never."),
    "max_pending": (32, "Number of clouds that may wait for their partner; the oldest is dropped first."),
    "publish_period_s": (1.0, "Period of ~/summary, seconds."),
}

RANGES: dict[str, tuple[float, float]] = {  # lowest and highest value
    "scans": (0, 1_000_000),
    "quiet_s": (0.1, 86_400.0),
    "start_timeout_s": (0.0, 86_400.0),
    "max_pending": (1, 10_000),
    "publish_period_s": (0.01, 3600.0),
}


class EvaluateNode(Node):
    """Match ground truth and labelled clouds by stamp, and evaluate the pairs on a worker thread.

    Args:
        **kwargs: Arguments of rclpy's Node.

    Attributes:
        settings: Values of the parameters.
        output: File to save the evaluation to, or None.
        evaluation: The evaluation so far.
        error: Why the evaluation cannot continue; None if it can.

    Raises:
        UserError: A parameter cannot be used.
        InvalidParameterValueException: A number is out of its range.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        for name, (default, description) in PARAMETERS.items():
            descriptor = ParameterDescriptor(description=description, read_only=True)
            if name in RANGES:
                set_range(descriptor, type(default), *RANGES[name])
            self.declare_parameter(name, default, descriptor)
        self.settings = {name: self.get_parameter(name).value for name in PARAMETERS}
        self.output = expand_home(self.settings["output"]) if self.settings["output"] else None
        self._labels = LabelSet.from_yaml(self.settings["labels"]) if self.settings["labels"] else SEMANTIC_KITTI
        label_map = None
        if self.settings["label_map"]:
            label_map = load_label_map(self.settings["label_map"]).apply(self._labels)
            self._labels = label_map.labels
        self._matcher = Matcher(self.settings["max_pending"])
        self.evaluation = LiveEvaluation(
            self._labels,
            self._matcher,
            expected=self.settings["scans"] or None,
            ground_truth_field=self.settings["ground_truth_field"],
            label_field=self.settings["label_field"],
            label_map=label_map,
        )
        self.error: UserError | None = None
        self._evaluation_lock = threading.Lock()
        self._pairs: queue.Queue[Pair | None] = queue.Queue(self.settings["max_pending"])
        self._worker = threading.Thread(target=self._evaluate_pairs, name="evaluator", daemon=True)
        self._worker.start()
        self._summary = self.create_publisher(String, "~/summary", LATCHED)
        self._topics = {name: self._resolve(name, default) for name, default in TOPICS.items()}
        self._started_s = self._published_s = time.monotonic()
        self._discovered_s: float | None = None
        self._subscribed = False

    def _resolve(self, name: str, default: str) -> str:
        """Topic that ~/name is remapped to, or else the default."""
        resolved = self.resolve_topic_name(f"~/{name}")
        private = f"{self.get_fully_qualified_name()}/{name}"
        return self.resolve_topic_name(default) if resolved == private else resolved

    # ---- main loop -------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Subscribe and publish when due.

        Returns:
            Whether the evaluation is over.
        """
        now = time.monotonic()
        if not self._subscribed:
            self._subscribe_when_published(now)
        if now - self._published_s >= self.settings["publish_period_s"]:
            self._published_s = now
            self.publish()
        return self.error is not None or self._is_over(now)

    def publish(self) -> None:
        """Publish the results so far."""
        with self._evaluation_lock:
            numbers = self.evaluation.progress()
        self._summary.publish(String(data=json.dumps(numbers)))

    def finish(self) -> None:
        """Evaluate the pairs that are still queued, and end the worker thread."""
        self._pairs.put(None)
        self._worker.join()

    def _is_over(self, now: float) -> bool:
        last_s = self._matcher.last_cloud_s
        if last_s is None:
            timeout_s = self.settings["start_timeout_s"]
            if timeout_s and now - self._started_s > timeout_s:
                self.get_logger().error(f"no ground truth within {timeout_s:g} s: {self._missing_input()}")
                return True
            return False
        if not self._pairs.empty():
            return False
        expected = self.settings["scans"]
        if expected and self._matcher.scans_in >= expected and self._matcher.pending == 0:
            return True
        return bool(now - last_s > self.settings["quiet_s"])

    def _missing_input(self) -> str:
        truth, labelled = self._topics["input/ground_truth"], self._topics["input/labelled"]
        unpublished = [topic for topic in (truth, labelled) if not self.count_publishers(topic)]
        return f"no publisher of {' and '.join(unpublished)}" if unpublished else f"no cloud on {truth}"

    # ---- clouds ----------------------------------------------------------------------------------------------------

    def _subscribe_when_published(self, now: float) -> None:
        truth, labelled = self._topics["input/ground_truth"], self._topics["input/labelled"]
        if self._discovered_s is None:
            if not (self.count_publishers(truth) and self.count_publishers(labelled)):
                return
            self._discovered_s = now
            self.create_subscription(String, self._topics["input/label_set"], self._on_label_set, LATCHED)
            subscribe_serialized(self, labelled, lambda raw: self._match(self._matcher.add_output, raw, labelled))
        elif now - self._discovered_s >= SETTLE_S:
            subscribe_serialized(self, truth, lambda raw: self._match(self._matcher.add_ground_truth, raw, truth))
            self._subscribed = True
            self.get_logger().info(f"evaluating {labelled} against {truth}")

    def _match(self, add: Callable[[int, bytes, float], Pair | None], raw: bytes, topic: str) -> None:
        received_s = time.monotonic()
        with self._fatal_errors(f"a message on {topic}"):
            pair = add(read_stamp_ns(raw), raw, received_s)
            if pair is not None:
                try:
                    self._pairs.put_nowait(pair)
                except queue.Full:
                    self.get_logger().warning("evaluation is slower than labelling: one scan skipped")

    def _on_label_set(self, message: String) -> None:
        with self._fatal_errors(f"the label set on {self._topics['input/label_set']}"):
            found = LabelSet.from_dict(json.loads(message.data))
            if found.names != self._labels.names:
                raise UserError(
                    f"the node labels with the classes of '{found.name}' ({', '.join(found.names)}), the ground truth "
                    f"has those of '{self._labels.name}' ({', '.join(self._labels.names)}); set the parameter labels "
                    "or label_map"
                )

    def _evaluate_pairs(self) -> None:
        while (pair := self._pairs.get()) is not None:
            with self._fatal_errors(f"scan {format_stamp(pair.stamp_ns)}"):
                truth = deserialize_message(pair.ground_truth, PointCloud2)
                output = deserialize_message(pair.output, PointCloud2)
                with self._evaluation_lock:
                    self.evaluation.add(pair, truth, output)

    @contextmanager
    def _fatal_errors(self, subject: str) -> Iterator[None]:
        """Keep the first error, which ends the evaluation, instead of raising it on a thread or in a callback."""
        try:
            yield
        except UserError as error:
            self.error = self.error or error
        except Exception as error:  # bytes that are not a message raise whatever the middleware chooses
            self.error = self.error or UserError(f"{subject} cannot be read: {type(error).__name__}: {error}")


def report(evaluation: LiveEvaluation, path: Path | None) -> None:
    """Print the evaluation, and save it as JSON if a path is given."""
    summary = evaluation.summary()
    if path:
        write_summary(path, summary)
    if evaluation.evaluated:
        print(format_summary(summary) + "\n")
    for title, value in titled_numbers(summary):
        print(f"{title:<18}{value:>8}" if isinstance(value, int) else f"{title:<18}{value:>8.1f}")
    verdict = "every scan was evaluated" if evaluation.complete else "not every scan was evaluated"
    print(f"{evaluation.evaluated} scans evaluated: {verdict}" + (f"; saved to {path}" if path else ""), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate until the last scan, SIGINT or SIGTERM.

    Returns:
        Exit code: 0 if every scan was evaluated, 1 if not, 2 if something cannot be evaluated.
    """
    node = None
    with stop_on_signals() as stop:
        try:
            start_ros(arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = EvaluateNode()
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            while not stop.is_set() and not node.step():
                executor.spin_once(timeout_sec=0.1)
            node.finish()
            if node.error is not None:
                raise node.error
            node.publish()
            report(node.evaluation, node.output)
            return 0 if node.evaluation.complete else 1
        except (UserError, InvalidParameterTypeException, InvalidParameterValueException) as error:
            print(f"evaluate_node: {error}", file=sys.stderr)
            return 2
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
