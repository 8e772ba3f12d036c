"""The ROS boundary of replay: a source's clouds come in, sensor_msgs/PointCloud2 and /clock go out through rclpy."""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from sqsegv3_ros.errors import OperationError
from sqsegv3_ros.evaluation.live_evaluation import stamp_of
from sqsegv3_ros.evaluation.replay import Player, Report, Source, TimedCloud
from sqsegv3_ros.pointcloud2 import make_cloud
from sqsegv3_ros.process import use_fastdds_profile
from sqsegv3_ros.ros.listening import subscribe_as_offered

NODE_NAME = "sqsegv3_replay"
DEPTH = 10
DELIVERY_S = 2.0  # how long the last clouds may take to reach everybody
SETTLE_S = 0.3  # between seeing a subscriber and being seen by it
LINGER_S = 0.3  # ... and best-effort subscribers, which do not say when they have them


@dataclass(frozen=True)
class ReplaySettings:
    """How to replay.

    topic: to publish on; None for the one recorded. clock_hz: of /clock; None for none. subscribers: wait for so many
    before the first cloud. follow: a topic of clouds; the next cloud goes out when the last one's stamp was seen there,
    or after follow_timeout_s.
    """

    topic: str | None = None
    rate: float = 1.0
    loop: bool = False
    clock_hz: float | None = None
    reliable: bool = True
    subscribers: int = 0
    follow: str | None = None
    follow_timeout_s: float = 30.0


def replay(source: Source, settings: ReplaySettings, arguments: list[str] | None = None) -> Report:
    """Publish a source until its end, SIGINT or SIGTERM. arguments: for rclpy, such as --ros-args."""
    use_fastdds_profile()
    stop = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        publisher = _CloudPublisher(source.topic, settings, stop)
        try:
            return publisher.replay(source)
        finally:
            publisher.close()
    finally:
        rclpy.try_shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _CloudPublisher:
    def __init__(self, recorded_topic: str, settings: ReplaySettings, stop: threading.Event) -> None:
        self._settings, self._stop = settings, stop
        self._node = rclpy.create_node(NODE_NAME, start_parameter_services=False, enable_rosout=False)
        reliability = ReliabilityPolicy.RELIABLE if settings.reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=DEPTH, reliability=reliability)
        self._clouds = self._node.create_publisher(PointCloud2, settings.topic or recorded_topic, qos)
        self._clock: Any = None
        if settings.clock_hz is not None:
            self._clock = self._node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._follower = _Follower(self._node, settings) if settings.follow else None

    @property
    def topic(self) -> str:
        return str(self._clouds.topic_name)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._node.destroy_node()

    def replay(self, source: Source) -> Report:
        settings = self._settings
        if self._wait_for_listeners():
            return Report(len(source), interrupted=True)
        player = Player(
            self._publish,
            self._stop.wait,
            rate=settings.rate,
            loop=settings.loop,
            tick=None if self._clock is None else self._tick,
            clock_hz=settings.clock_hz or 1.0,
            ready=None if self._follower is None else self._follower.answered,
        )
        report = player.play(source)
        if report.published and not report.interrupted:
            self._deliver()
        return report

    def _publish(self, cloud: TimedCloud) -> None:
        message: Any = cloud.cdr
        if cloud.points is not None:
            stamp = Time(sec=cloud.time_ns // 10**9, nanosec=cloud.time_ns % 10**9)
            message = make_cloud(cloud.points, PointCloud2, PointField, Header(stamp=stamp, frame_id=cloud.frame))
        if self._follower is not None:
            self._follower.sent(stamp_of(message) if isinstance(message, bytes) else cloud.time_ns)
        self._clouds.publish(message)

    def _tick(self, time_ns: int) -> None:
        self._clock.publish(Clock(clock=Time(sec=time_ns // 10**9, nanosec=time_ns % 10**9)))

    def _wait_for_listeners(self) -> bool:
        """Wait for subscribers, and for whoever is followed. Returns whether to stop."""
        wanted = self._settings.subscribers
        awaited = [(lambda: self._clouds.get_subscription_count() >= wanted, f"{wanted} subscribers of {self.topic}")]
        if self._follower is not None:
            awaited.append((self._follower.subscribed, f"a publisher of {self._settings.follow}"))
        for there, what in awaited:
            if there():
                continue
            print(f"waiting for {what}", file=sys.stderr, flush=True)
            while not there():
                if self._stop.wait(0.02):
                    return True
        return self._stop.wait(SETTLE_S) if wanted or self._follower is not None else False

    def _deliver(self) -> None:
        """Stay until the last clouds have arrived: they would be lost with this process."""
        if self._settings.reliable:
            self._clouds.wait_for_all_acked(Duration(seconds=DELIVERY_S))
        self._stop.wait(LINGER_S)


class _Follower:
    """Tells whether the last cloud that was sent has come back on another topic."""

    def __init__(self, node: Any, settings: ReplaySettings) -> None:
        self._node, self._timeout_s = node, settings.follow_timeout_s
        self._topic = node.resolve_topic_name(settings.follow)
        self._awaited: int | None = None
        self._deadline_s = 0.0
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._subscription: Any = None

    def subscribed(self) -> bool:
        """Subscribe if somebody publishes the topic. Returns whether that is done."""
        if self._subscription is None and self._node.count_publishers(self._topic):
            self._subscription = subscribe_as_offered(self._node, self._topic, self._on_cloud)
        return self._subscription is not None

    def sent(self, stamp_ns: int) -> None:
        self._awaited, self._deadline_s = stamp_ns, time.monotonic() + self._timeout_s

    def answered(self) -> bool:
        """Whether the next cloud may go out. Raises OperationError where no answer comes in time."""
        if self._awaited is None:
            return True
        self._executor.spin_once(timeout_sec=0)
        if self._awaited is not None and time.monotonic() > self._deadline_s:
            raise OperationError(
                f"no cloud with stamp {self._awaited / 1e9:.9f} came back on {self._topic} within "
                f"{self._timeout_s:g} s; is the node active, and does it label this topic?"
            )
        return self._awaited is None

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1)

    def _on_cloud(self, raw: bytes) -> None:
        if stamp_of(raw) == self._awaited:
            self._awaited = None
