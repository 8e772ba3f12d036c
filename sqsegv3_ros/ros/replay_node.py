# SPDX-License-Identifier: Apache-2.0
"""The replay node: publishes the clouds of a bag or a sequence, and optionally /clock."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from sqsegv3_ros.data.replay import Player, Report, Source, TimedCloud
from sqsegv3_ros.errors import OperationError
from sqsegv3_ros.pointcloud2 import make_cloud, read_stamp_ns
from sqsegv3_ros.process import use_fastdds_profile
from sqsegv3_ros.ros.cloud_subscription import subscribe_serialized
from sqsegv3_ros.ros.signals import stop_on_signals

NODE_NAME = "sqsegv3_replay"
DEPTH = 10
DELIVERY_S = 2.0  # longest wait for the acknowledgement of the last clouds
SETTLE_S = 0.3  # between discovering a subscriber and being discovered by it
FOLLOW_TIMEOUT_S = 30.0  # longest wait for the last stamp on the followed topic
LINGER_S = 0.3  # for best-effort subscribers, which acknowledge nothing


@dataclass(frozen=True)
class ReplaySettings:
    """How to replay.

    Attributes:
        topic: Topic to publish on; None: the recorded one.
        rate: Factor of the recorded pace.
        loop: Start again after the last cloud.
        clock_hz: Rate of /clock; None: none.
        reliable: Reliability of the publisher.
        subscribers: Number of subscribers to wait for before the first cloud.
        follow: Topic of labelled clouds; the next cloud is published after the last one's stamp was received there.
    """

    topic: str | None = None
    rate: float = 1.0
    loop: bool = False
    clock_hz: float | None = None
    reliable: bool = True
    subscribers: int = 0
    follow: str | None = None


def replay(source: Source, settings: ReplaySettings, arguments: list[str] | None = None) -> Report:
    """Publish a source until its end, SIGINT or SIGTERM.

    Args:
        source: Clouds to publish.
        settings: How to publish them.
        arguments: Arguments for rclpy, such as --ros-args.

    Raises:
        OperationError: The followed topic does not answer in time.
    """
    use_fastdds_profile()
    with stop_on_signals() as stop:
        try:
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            publisher = _CloudPublisher(source.topic, settings, stop)
            try:
                return publisher.replay(source)
            finally:
                publisher.close()
        finally:
            rclpy.try_shutdown()


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
        self._follower = _Follower(self._node, settings.follow) if settings.follow else None

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._node.destroy_node()

    def replay(self, source: Source) -> Report:
        settings = self._settings
        if self._wait_for_peers():
            return Report(len(source), interrupted=True)
        player = Player(
            self._publish,
            self._stop.wait,
            rate=settings.rate,
            loop=settings.loop,
            tick=None if self._clock is None else self._publish_clock,
            clock_hz=settings.clock_hz or 1.0,
            ready=None if self._follower is None else self._follower.is_ready,
        )
        report = player.play(source)
        if report.published and not report.interrupted:
            self._wait_for_delivery()
        return report

    def _publish(self, cloud: TimedCloud) -> None:
        message: Any = cloud.cdr
        if cloud.points is not None:
            stamp = Time(sec=cloud.time_ns // 10**9, nanosec=cloud.time_ns % 10**9)
            message = make_cloud(cloud.points, PointCloud2, PointField, Header(stamp=stamp, frame_id=cloud.frame))
        if self._follower is not None:
            self._follower.expect(read_stamp_ns(message) if isinstance(message, bytes) else cloud.time_ns)
        self._clouds.publish(message)

    def _publish_clock(self, time_ns: int) -> None:
        self._clock.publish(Clock(clock=Time(sec=time_ns // 10**9, nanosec=time_ns % 10**9)))

    def _wait_for_peers(self) -> bool:
        """Wait for the subscribers and for the publisher to follow. Returns whether to stop."""
        count, topic = self._settings.subscribers, self._clouds.topic_name
        conditions = [(lambda: self._clouds.get_subscription_count() >= count, f"{count} subscribers of {topic}")]
        if self._follower is not None:
            conditions.append((self._follower.subscribe, f"a publisher of {self._settings.follow}"))
        for is_met, description in conditions:
            if is_met():
                continue
            print(f"waiting for {description}", file=sys.stderr, flush=True)
            while not is_met():
                if self._stop.wait(0.02):
                    return True
        return self._stop.wait(SETTLE_S) if count or self._follower is not None else False

    def _wait_for_delivery(self) -> None:
        """Keep the process alive until the last clouds are delivered."""
        if self._settings.reliable:
            self._clouds.wait_for_all_acked(Duration(seconds=DELIVERY_S))
        self._stop.wait(LINGER_S)


class _Follower:
    """Wait for the stamp of the last published cloud on another topic."""

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._topic = node.resolve_topic_name(topic)
        self._expected_ns: int | None = None
        self._deadline_s = 0.0
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._subscription: Any = None

    def subscribe(self) -> bool:
        """Subscribe if the topic has a publisher. Returns whether it is subscribed."""
        if self._subscription is None and self._node.count_publishers(self._topic):
            self._subscription = subscribe_serialized(self._node, self._topic, self._on_cloud)
        return self._subscription is not None

    def expect(self, stamp_ns: int) -> None:
        self._expected_ns, self._deadline_s = stamp_ns, time.monotonic() + FOLLOW_TIMEOUT_S

    def is_ready(self) -> bool:
        """Whether the next cloud may be published. Raises OperationError after the timeout."""
        if self._expected_ns is None:
            return True
        self._executor.spin_once(timeout_sec=0)
        if self._expected_ns is not None and time.monotonic() > self._deadline_s:
            raise OperationError(
                f"no cloud with stamp {self._expected_ns / 1e9:.9f} received on {self._topic} within "
                f"{FOLLOW_TIMEOUT_S:g} s; check that the node is active and that it labels this topic"
            )
        return self._expected_ns is None

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1)

    def _on_cloud(self, raw: bytes) -> None:
        if read_stamp_ns(raw) == self._expected_ns:
            self._expected_ns = None
