# SPDX-License-Identifier: Apache-2.0
"""A ROS client that talks to a running node: clouds, services, diagnostics."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from programs import wait_until
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2, PointField

from sqsegv3_ros.pointcloud2 import make_cloud

NODE = "/sqsegv3"
RELIABLE = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_COUNT = itertools.count()


class Client:
    """A ROS node of the test: publishes clouds, collects messages, and calls the services of the node `target`."""

    def __init__(self, target: str = NODE) -> None:
        self.target = target
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("test_client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._publishers: dict[Any, Any] = {}
        self._services: dict[tuple[type, str], Any] = {}
        self.diagnostics: dict[str, DiagnosticStatus] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._closing.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self.executor.shutdown()
        self.node.destroy_node()  # not whenever Python collects it: Fast DDS may be gone by then
        rclpy.shutdown(context=self.context)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.diagnostics[status.name.partition(": ")[2]] = status

    def publish(self, cloud: PointCloud2, topic: str = "", qos: QoSProfile = RELIABLE) -> None:
        self.publisher(topic, qos).publish(cloud)

    def publisher(self, topic: str = "", qos: QoSProfile = RELIABLE) -> Any:
        """A publisher with a subscriber; without a topic, that of the target's input."""
        topic = topic or f"{self.target}/input/points"
        key = (topic, qos.reliability)
        if key not in self._publishers:
            self._publishers[key] = self.node.create_publisher(PointCloud2, topic, qos)
        publisher = self._publishers[key]
        wait_until(lambda: publisher.get_subscription_count() > 0, 60, lambda: f"no subscriber of {topic}")
        return publisher

    def close_publisher(self, topic: str, qos: QoSProfile) -> None:
        self.node.destroy_publisher(self._publishers.pop((topic, qos.reliability)))

    def collect(self, kind: Any, topic: str, qos: QoSProfile = RELIABLE, connected: bool = True) -> list[Any]:
        """A list that grows with every message on a topic."""
        messages: list[Any] = []
        subscription = self.node.create_subscription(kind, topic, messages.append, qos)
        if connected:
            name = subscription.topic_name
            wait_until(lambda: self.node.count_publishers(name) > 0, 60, lambda: f"no publisher of {name}")
            time.sleep(0.3)  # the publisher discovers its subscriber a little later
        return messages

    def call(self, kind: Any, service: str, timeout_s: float = 20.0, **request: Any) -> Any:
        """Call a service.

        It is sent again after 3 s: an answer that comes before the server has discovered the client is lost.
        """
        if (kind, service) not in self._services:
            self._services[kind, service] = self.node.create_client(kind, service)
        client = self._services[kind, service]
        assert client.wait_for_service(timeout_s), f"no service {service}"
        futures = [client.call_async(kind.Request(**request))]
        end = time.monotonic() + 3
        while not futures[0].done() and time.monotonic() < end:
            time.sleep(0.01)
        if not futures[0].done() and kind is not ChangeState:  # a second transition would be another one
            futures.append(client.call_async(kind.Request(**request)))
        wait_until(lambda: any(f.done() for f in futures), timeout_s, lambda: f"no answer from {service}")
        return next(f for f in futures if f.done()).result()

    @contextmanager
    def targeting(self, node: str) -> Iterator[None]:
        """Talk to another node within this context."""
        previous, self.target = self.target, node
        try:
            yield
        finally:
            self.target = previous

    def state(self) -> str:
        return self.call(GetState, f"{self.target}/get_state").current_state.label

    def transition(self, name: str, timeout_s: float = 60.0) -> bool:
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        request = Transition(id=number)
        return self.call(ChangeState, f"{self.target}/change_state", timeout_s, transition=request).success

    def get_parameters(self, *names: str) -> list[Any]:
        values = self.call(GetParameters, f"{self.target}/get_parameters", names=list(names)).values
        return [rclpy.parameter.parameter_value_to_python(value) for value in values]

    def set_parameters(self, atomically: bool = False, **values: Any) -> list[tuple[bool, str]]:
        messages = [Parameter(n.replace("__", "."), value=v).to_parameter_msg() for n, v in values.items()]
        if atomically:
            result = self.call(
                SetParametersAtomically, f"{self.target}/set_parameters_atomically", parameters=messages
            ).result
            return [(result.successful, result.reason)]
        results = self.call(SetParameters, f"{self.target}/set_parameters", parameters=messages).results
        return [(result.successful, result.reason) for result in results]

    def describe_parameters(self) -> dict[str, Any]:
        names = list(self.call(ListParameters, f"{self.target}/list_parameters").result.names)
        described = self.call(DescribeParameters, f"{self.target}/describe_parameters", names=names).descriptors
        return {descriptor.name: descriptor for descriptor in described}

    def status(self, name: str, condition: Callable[[DiagnosticStatus], bool], timeout_s: float = 15.0) -> Any:
        """The diagnostic status of that name, once it satisfies the condition."""
        wait_until(
            lambda: name in self.diagnostics and condition(self.diagnostics[name]),
            timeout_s,
            lambda: self.diagnostics.get(name),
        )
        return self.diagnostics[name]


@contextmanager
def node_of(client: Client, *arguments: str, configures: bool = True, **parameters: Any) -> Iterator[Any]:
    """The real node in this process, as a process for each sensor would import torch again. torch loads fastest."""
    from sqsegv3_ros.ros.segment_node import SUCCESS, SegmentNode

    context = rclpy.Context()
    # a namespace of its own: clouds published before it is discovered would go to the previous node
    arguments += ("-r", f"__ns:=/node{next(_COUNT)}")
    for name, value in {"stale_after_s": 300.0, "backend": "torch", **parameters}.items():
        arguments += ("-p", f"{name.replace('__', '.')}:={value}")
    rclpy.init(args=["--ros-args", *arguments], context=context)
    node = SegmentNode(context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    try:
        assert (node.trigger_configure() == SUCCESS) == configures
        if configures:
            node.trigger_activate()
        client.diagnostics.clear()
        spinning.start()
        yield node
    finally:
        executor.shutdown(timeout_sec=5)
        spinning.join(5)
        node.destroy_node()
        rclpy.shutdown(context=context)


def outputs_of(client: Client, node: Any, cloud: PointCloud2, **kinds: Any) -> dict[str, Any]:
    """What a node, or the node of a name, publishes for a cloud on ~/output/<name>, by name; kinds: types by name."""
    name = node if isinstance(node, str) else node.get_fully_qualified_name()
    results = {output: client.collect(kind, f"{name}/output/{output}") for output, kind in kinds.items()}

    def answers() -> dict[str, Any]:
        found = {o: next((m for m in messages if m.header == cloud.header), None) for o, messages in results.items()}
        return found if all(found.values()) else {}

    for _ in range(10):  # the node may not have discovered the publisher or the subscribers yet
        client.publish(cloud, f"{name}/input/points")
        end = time.monotonic() + 3
        while not answers() and time.monotonic() < end:
            time.sleep(0.01)
        if answers():
            return answers()
    raise AssertionError(f"not all of {', '.join(kinds)} for a cloud; {client.diagnostics}")


def street(count: int = 20_000, seed: int = 0) -> np.ndarray:
    """(N, 4) float32 points of a 64-beam sensor 1.73 m above flat ground, between two walls."""
    generator = np.random.default_rng(seed)
    azimuth = generator.uniform(-np.pi, np.pi, count)
    elevation = np.radians(generator.uniform(-24.8, 2.0, count))
    to_ground = np.where(elevation < 0, 1.73 / np.maximum(np.sin(-elevation), 1e-6), np.inf)
    to_wall = 8.0 / np.maximum(np.abs(np.sin(azimuth)) * np.cos(elevation), 1e-6)
    distance = np.minimum(np.minimum(to_ground, to_wall), 80.0)
    horizontal = distance * np.cos(elevation)
    points = [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), distance * np.sin(elevation)]
    return np.stack([*points, generator.uniform(0, 0.6, count)], 1).astype(np.float32)


def message(points: np.ndarray, stamp_s: int = 1, frame: str = "velodyne") -> PointCloud2:
    """A PointCloud2 of (N, 4) float32 x, y, z, intensity."""
    cloud = make_cloud(points, PointCloud2, PointField)
    cloud.header.frame_id = frame
    cloud.header.stamp.sec = stamp_s
    return cloud


def publish_until_labelled(client: Client, labelled: list[PointCloud2], topic: str) -> None:
    """Publish clouds until one is labelled: the node skips clouds before it discovers the subscriber of its output."""

    def is_labelled() -> bool:
        client.publish(message(street()), topic)
        end = time.monotonic() + 1
        while not labelled and time.monotonic() < end:
            time.sleep(0.01)
        return bool(labelled)

    wait_until(is_labelled, 60, lambda: f"no labelled cloud for the clouds on {topic}")
