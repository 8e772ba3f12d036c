"""The ROS boundary of the live evaluator: ground truth and labelled clouds come in, the evaluation goes out.

It ends by itself, prints and saves the evaluation, and its exit code says whether every scan was evaluated: 0 yes, 1 no,
2 where something cannot be evaluated at all.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.live_evaluation import LiveEvaluation, Matcher, Pair, stamp_of, titled
from sqsegv3_ros.evaluation.summary import format_summary
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.ros.listening import subscribe_as_offered

NODE_NAME = "evaluate_node"
SETTLE_S = 0.5  # between seeing the node's publisher and asking for scans: it computes nothing before it sees us
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TOPICS = {  # private name -> the topic if it is not remapped
    "input/ground_truth": "/velodyne_points",
    "input/labelled": "/sqsegv3/output/points",
    "input/label_set": "/sqsegv3/output/label_set",
}
PARAMETERS: dict[str, tuple[bool | int | float | str, str]] = {
    "labels": ("", "Label configuration of the ground truth (YAML); empty: SemanticKITTI's classes."),
    "ground_truth_field": ("ground_truth", "Field of the ground-truth cloud that holds the true class."),
    "label_field": ("label", "Field of the labelled cloud that holds the predicted class."),
    "output": ("", "JSON file that the evaluation is saved to; empty: none."),
    "scans": (0, "How many scans there will be; 0: not known, the input being quiet is the end."),
    "quiet_s": (10.0, "Without any cloud for so long the evaluation ends, seconds."),
    "start_timeout_s": (60.0, "Without a first cloud for so long it gives up, seconds; 0: never."),
    "max_pending": (32, "How many clouds may wait for their partner; the oldest is given up first."),
    "publish_period_s": (1.0, "How often ~/summary is published, seconds."),
}


class EvaluateNode(Node):
    """Subscribes once both topics are offered, matches what comes, and evaluates it on a thread of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        for name, (default, description) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=description, read_only=True))
        self.settings = {name: self.get_parameter(name).value for name in PARAMETERS}
        self._labels = LabelSet.from_yaml(self.settings["labels"]) if self.settings["labels"] else SEMANTIC_KITTI
        self._matcher = Matcher(self.settings["max_pending"])
        self.evaluation = LiveEvaluation(
            self._labels,
            self._matcher,
            expected=self.settings["scans"] or None,
            ground_truth_field=self.settings["ground_truth_field"],
            label_field=self.settings["label_field"],
        )
        self.error: UserError | None = None
        self._lock = threading.Lock()  # of the evaluation
        self._pairs: queue.Queue[Pair | None] = queue.Queue(self.settings["max_pending"])
        self._worker = threading.Thread(target=self._evaluate, name="evaluator", daemon=True)
        self._worker.start()
        self._summary = self.create_publisher(String, "~/summary", LATCHED)
        self._topics = {name: self._topic(name, default) for name, default in TOPICS.items()}
        self._started_s = self._published_s = time.monotonic()
        self._offered_s: float | None = None
        self._listening = False

    def _topic(self, name: str, default: str) -> str:
        """The topic that ~/name is remapped to, else the default."""
        resolved = self.resolve_topic_name(f"~/{name}")
        own = f"{self.get_fully_qualified_name()}/{name}"
        return self.resolve_topic_name(default) if resolved == own else resolved

    # ---- what the main loop calls ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """To be called again and again: subscribe, publish, and say whether the evaluation is over."""
        now = time.monotonic()
        if not self._listening:
            self._listen_when_offered(now)
        if now - self._published_s >= self.settings["publish_period_s"]:
            self._published_s = now
            self.publish()
        return self.error is not None or self._is_over(now)

    def publish(self) -> None:
        """Publish the numbers so far."""
        with self._lock:
            brief = self.evaluation.brief()
        self._summary.publish(String(data=json.dumps(brief)))

    def finish(self) -> None:
        """Evaluate what has been matched, then stop."""
        self._pairs.put(None)
        self._worker.join()

    def _is_over(self, now: float) -> bool:
        last_s = self._matcher.quiet_since_s
        if last_s is None:
            limit_s = self.settings["start_timeout_s"]
            if limit_s and now - self._started_s > limit_s:
                self.get_logger().error(f"no ground truth within {limit_s:g} s: {self._missing()}")
                return True
            return False
        if not self._pairs.empty():
            return False
        wanted = self.settings["scans"]
        if wanted and self._matcher.scans_in >= wanted and self._matcher.pending == 0:
            return True
        return bool(now - last_s > self.settings["quiet_s"])

    def _missing(self) -> str:
        truth, labelled = self._topics["input/ground_truth"], self._topics["input/labelled"]
        absent = [topic for topic in (truth, labelled) if not self.count_publishers(topic)]
        return f"nobody publishes {' nor '.join(absent)}" if absent else f"nothing came on {truth}"

    # ---- clouds ----------------------------------------------------------------------------------------------------

    def _listen_when_offered(self, now: float) -> None:
        truth, labelled = self._topics["input/ground_truth"], self._topics["input/labelled"]
        if self._offered_s is None:
            if not (self.count_publishers(truth) and self.count_publishers(labelled)):
                return
            self._offered_s = now
            self.create_subscription(String, self._topics["input/label_set"], self._on_label_set, LATCHED)
            subscribe_as_offered(self, labelled, self._on_output)
        elif now - self._offered_s >= SETTLE_S:
            subscribe_as_offered(self, truth, self._on_input)
            self._listening = True
            self.get_logger().info(f"evaluating {labelled} by {truth}")

    def _on_input(self, raw: bytes) -> None:
        self._matched(self._matcher.input(stamp_of(raw), raw, time.monotonic()))

    def _on_output(self, raw: bytes) -> None:
        self._matched(self._matcher.output(stamp_of(raw), raw, time.monotonic()))

    def _matched(self, pair: Pair | None) -> None:
        if pair is not None:
            try:
                self._pairs.put_nowait(pair)
            except queue.Full:
                self.get_logger().warning("evaluating is slower than labelling: a scan is not evaluated")

    def _on_label_set(self, message: String) -> None:
        announced = LabelSet.from_dict(json.loads(message.data))
        if announced.names != self._labels.names:
            self.error = UserError(
                f"the node labels with the classes of '{announced.name}' ({', '.join(announced.names)}), the ground "
                f"truth has those of '{self._labels.name}' ({', '.join(self._labels.names)}); set the parameter labels"
            )

    def _evaluate(self) -> None:
        while (pair := self._pairs.get()) is not None:
            truth = deserialize_message(pair.ground_truth, PointCloud2)
            output = deserialize_message(pair.output, PointCloud2)
            try:
                with self._lock:
                    self.evaluation.add(pair, truth, output)
            except UserError as error:
                self.error = self.error or error


def report(evaluation: LiveEvaluation, path: str) -> None:
    """Print the evaluation, and save it where a path is given."""
    summary = evaluation.summary()
    if path:
        write_atomically(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    if evaluation.evaluated:
        print(format_summary(summary) + "\n")
    for title, value in titled(summary):
        print(f"{title:<18}{value:>8}" if isinstance(value, int) else f"{title:<18}{value:>8.1f}")
    verdict = "every scan was evaluated" if evaluation.complete else "not every scan was evaluated"
    print(f"{evaluation.evaluated} scans evaluated: {verdict}" + (f"; saved to {path}" if path else ""), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate until the end of the scans, SIGINT or SIGTERM. Returns the exit code."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    node = None
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = EvaluateNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set() and not node.step():
            executor.spin_once(timeout_sec=0.1)
        node.finish()
        if node.error is not None:
            raise node.error
        node.publish()
        report(node.evaluation, node.settings["output"])
        return 0 if node.evaluation.complete else 1
    except (UserError, InvalidParameterTypeException) as error:
        print(f"evaluate_node: {error}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
