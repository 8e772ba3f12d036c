"""The ROS boundary: PointCloud2 messages come in, labelled ones go out. A lifecycle node that brings itself up.

The executor's thread takes clouds, answers services and publishes diagnostics; one worker thread labels the newest
cloud, so that nothing waits for the network but the labels.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, PointCloud2

from sqsegv3_ros import process
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.settings import AT_CONFIGURE, NAMES, SPECS, Settings
from sqsegv3_ros.pointcloud2 import CloudError
from sqsegv3_ros.ros.cloud_subscription import InputSubscription
from sqsegv3_ros.ros.diagnostics import ERROR, OK, WARN, Limits, Monitor, Status
from sqsegv3_ros.ros.latest_worker import Worker

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter, Result

NODE_NAME = "sqsegv3"
DIAGNOSTICS_PERIOD_S = 1.0
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class SegmentNode(LifecycleNode):
    """Labels the newest cloud of ~/input/points and publishes what is subscribed to."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self._cloud_segmenter: CloudSegmenter | None = None
        self._configure_error = ""
        self._outputs: dict[str, Any] = {}
        self._input: InputSubscription | None = None
        self._worker: Worker[tuple[PointCloud2, float]] | None = None
        for spec in SPECS:
            self.declare_parameter(spec.name, spec.default, _descriptor(spec))
        self._settings = Settings({name: self.get_parameter(name).value for name in NAMES})
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._monitor = self._new_monitor()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # steady time: diagnostics go on where the simulated clock stops
        self.create_timer(
            DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    # ---- lifecycle -------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, warm it up, and offer the topics. Fails, with the reason, where something does not fit."""
        from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

        try:
            extrinsics = self._extrinsics_from_tf() if self._settings["base_frame"] else None
            self._cloud_segmenter = cloud_segmenter = CloudSegmenter(self._settings, extrinsics)
            self._create_outputs()
            self._worker = Worker(self._work, "segmentation")
        except Exception as error:  # whatever it is: unconfigured with a reason, not half configured
            self._release()
            self._configure_error = str(error) or type(error).__name__
            self.get_logger().error(f"cannot configure: {self._configure_error}")
            return FAILURE
        self._configure_error = ""
        segmenter = cloud_segmenter.segmenter
        self.get_logger().info(
            f"model {segmenter.info.name} ({segmenter.model.path}), {segmenter.runtime}, "
            f"{segmenter.projection.height} x {segmenter.projection.width} pixels, ready in {cloud_segmenter.startup_s:.2f} s; "
            f"licence of its weights: {segmenter.info.licence}"
        )
        if segmenter.runtime.hint:
            self.get_logger().info(segmenter.runtime.hint)
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to label clouds."""
        result = super().on_activate(state)
        if result != SUCCESS or self._worker is None:
            return result
        self._monitor = self._new_monitor()
        try:
            self._worker.open()
            self._input = InputSubscription(self, "~/input/points", self._on_cloud, lambda n: self._monitor.lost(n))
            self._publish_label_info()
        except Exception as error:  # a QoS override that cannot be used, no memory, ...
            self.get_logger().error(f"cannot activate: {error}")
            self._stop()
            super().on_deactivate(state)
            return FAILURE
        self.get_logger().info(f"labelling clouds of {self._input.topic_name}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to label clouds. One that is in work is finished and thrown away; this does not wait for it."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the model, the device's memory and the topics."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and let go of everything, in whatever state the node is."""
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition has raised: let go of everything, so that the node can be configured again."""
        self._release()
        return SUCCESS

    def destroy_node(self) -> None:
        """Stop the worker before the node goes."""
        self._stop()
        if self._worker is not None:
            self._worker.close()
        super().destroy_node()

    def _stop(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._worker is not None:
            self._worker.shut()  # a publication must not outlive the state that allowed it

    def _release(self) -> None:
        self._stop()
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}
        if self._cloud_segmenter is not None:
            self._cloud_segmenter.release()
            self._cloud_segmenter = None

    # ---- topics ----------------------------------------------------------------------------------------------------

    def _create_outputs(self) -> None:
        from std_msgs.msg import String

        from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

        for name in CloudSegmenter.PRODUCTS:
            self._outputs[name] = self.create_lifecycle_publisher(
                PointCloud2 if name in CloudSegmenter.CLOUDS else Image,
                f"~/output/{name}",
                QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._outputs["label_set"] = self.create_lifecycle_publisher(String, "~/output/label_set", latched)
        try:
            from vision_msgs.msg import LabelInfo
        except ImportError:
            self.get_logger().info("vision_msgs is not installed: ~/output/label_info is not published")
            return
        self._outputs["label_info"] = self.create_lifecycle_publisher(LabelInfo, "~/output/label_info", latched)

    def _publish_label_info(self) -> None:
        import json

        from std_msgs.msg import String

        assert self._cloud_segmenter is not None
        labels = self._cloud_segmenter.segmenter.info.labels
        self._outputs["label_set"].publish(String(data=json.dumps(labels.to_dict())))
        if "label_info" in self._outputs:
            from vision_msgs.msg import LabelInfo, VisionClass

            message = LabelInfo()
            message.header.stamp = self.get_clock().now().to_msg()
            message.class_map = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(labels.names)]
            self._outputs["label_info"].publish(message)

    # ---- clouds ----------------------------------------------------------------------------------------------------

    def _on_cloud(self, cloud: PointCloud2) -> None:
        now = time.monotonic()
        self._monitor.received(now)
        if self._worker is not None and self._worker.put((cloud, now)):
            self._monitor.superseded()

    def _work(self, item: tuple[PointCloud2, float]) -> None:
        """The worker's thread: label a cloud, and survive it."""
        monitor = self._monitor  # a new activation counts anew
        monitor.started(time.monotonic())
        try:
            self._label(*item, monitor)
        except CloudError as error:
            monitor.rejected(time.monotonic(), error.reason, str(error))
            self.get_logger().warning(f"cloud dropped: {error}", throttle_duration_sec=5.0)
        except Exception as error:  # whatever it is, the next cloud may be good
            if self.context.ok():  # else the node is on its way out, and publishing is over
                self.report_failure(error)
        finally:
            monitor.finished()

    def report_failure(self, error: Exception) -> None:
        """Something failed that has nothing to do with the input: say so in log and diagnostics."""
        message = f"{type(error).__name__}: {error}"
        self._monitor.failed(time.monotonic(), message)
        self.get_logger().error(f"labelling failed: {message}", throttle_duration_sec=5.0)

    def _label(self, cloud: PointCloud2, received: float, monitor: Monitor) -> None:
        cloud_segmenter, worker = self._cloud_segmenter, self._worker
        assert cloud_segmenter is not None and worker is not None
        wanted = {name for name in cloud_segmenter.PRODUCTS if self._outputs[name].get_subscription_count() > 0}
        if not wanted:
            monitor.unwanted()
            return
        result = cloud_segmenter.process(cloud, wanted)
        begin = time.perf_counter()
        messages = self._messages(cloud, result)
        with worker.delivering() as still_wanted:
            if not still_wanted:
                return
            for name, message in messages:
                self._outputs[name].publish(message)
        now = time.monotonic()
        stages = {**result.timings_ms, "publish": 1e3 * (time.perf_counter() - begin)}
        monitor.labelled(now, 1e3 * (now - received), stages)
        monitor.warning(result.input_warnings)

    def _messages(self, cloud: PointCloud2, result: Result) -> list[tuple[str, Any]]:
        messages = list(result.clouds.items())
        for name, (encoding, pixels) in result.images.items():
            image = Image(header=cloud.header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
            image.step = pixels.strides[0]
            image.data = _bytes(pixels)
            messages.append((name, image))
        return messages

    # ---- parameters ------------------------------------------------------------------------------------------------

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters if p.name in NAMES}
        if not changes:
            return SetParametersResult(successful=True)
        fixed = sorted(n for n in set(changes) & AT_CONFIGURE if changes[n] != self._settings[n])
        if fixed and self._cloud_segmenter is not None:
            reason = f"{', '.join(fixed)}: read when the node is configured; deactivate and clean it up before"
            return SetParametersResult(successful=False, reason=reason)
        try:
            settings = Settings({**self._settings.values, **changes})
            if self._cloud_segmenter is not None:
                self._cloud_segmenter.apply(settings)
        except Exception as error:  # nothing that a parameter is set to may end the node
            return SetParametersResult(successful=False, reason=str(error) or type(error).__name__)
        self._settings = settings
        self._monitor.limits = self._limits()
        return SetParametersResult(successful=True)

    def _limits(self) -> Limits:
        settings = self._settings
        return Limits(settings["latency_budget_ms"], settings["late_error_after_s"], settings["stale_after_s"])

    def _new_monitor(self) -> Monitor:
        return Monitor(self._limits(), time.monotonic())

    def _extrinsics_from_tf(self) -> Any:
        from sqsegv3_ros.ros.extrinsics_tf import read_extrinsics

        return read_extrinsics(self, self._settings)

    # ---- diagnostics -----------------------------------------------------------------------------------------------

    def _publish_diagnostics(self) -> None:
        statuses = [self._model_status()]
        if self._input is not None:
            self._input.adapt()
            statuses += self._monitor.statuses(time.monotonic())
            statuses[1].values["reliability"] = self._input.reliability.name.lower()
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        hardware = self._cloud_segmenter.segmenter.info.name if self._cloud_segmenter else ""
        # nodes of one name in several namespaces are told apart
        node = self.get_fully_qualified_name().lstrip("/")
        for status in statuses:
            values = [KeyValue(key=key, value=value) for key, value in status.values.items()]
            array.status.append(
                DiagnosticStatus(
                    level=bytes([status.level]),
                    name=f"{node}: {status.name}",
                    message=status.message,
                    hardware_id=hardware,
                    values=values,
                )
            )
        self._diagnostics.publish(array)

    def _model_status(self) -> Status:
        if self._cloud_segmenter is None:
            if self._configure_error:
                return Status("model", ERROR, f"cannot configure: {self._configure_error}")
            return Status("model", WARN, "not configured")
        level, message = (OK, "active") if self._input is not None else (WARN, "not active")
        return Status("model", level, message, self._cloud_segmenter.description())


def _descriptor(spec: Any) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description, additional_constraints=spec.rule)
    if spec.at_configure:
        descriptor.description += " Read when the node is configured."
    if spec.low is not None and isinstance(spec.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(spec.low), to_value=float(spec.high))]
    elif spec.low is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high), step=1)]
    return descriptor


def _bytes(values: Any) -> Any:
    from array import array

    data = array("B")
    data.frombytes(values.data.cast("B"))
    return data


def main(arguments: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Exit code 0 after these, 2 where its parameters cannot be used."""
    process.prepare()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for jobs in the background
        signal.signal(signal.SIGINT, _end)
    node = None
    try:
        rclpy.init(args=arguments)
        executor = SingleThreadedExecutor()
        node = SegmentNode()
        # here, not when configuring: an import of torch that failed half-way cannot be tried again
        importlib.import_module("sqsegv3_ros.inference.cloud_segmenter")
        executor.add_node(node)
        if rclpy.ok() and node.get_parameter("autostart").value and node.trigger_configure() == SUCCESS:
            node.trigger_activate()
        _spin(executor, node)
    except ExternalShutdownException:
        pass
    except (UserError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"segment_node: {error}", file=sys.stderr)
        return 2
    except Exception:
        if rclpy.ok():
            raise
        # else a signal came while the node was being made: what rclpy says then is no error of ours
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not cut the farewell short
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _end(number: int, frame: Any) -> None:
    """Ctrl-C ends the node as SIGTERM does. A KeyboardInterrupt in the middle of torch's or rclpy's C++ may abort."""
    os.kill(os.getpid(), signal.SIGTERM)


def _spin(executor: SingleThreadedExecutor, node: SegmentNode) -> None:
    """Until the context is shut down. A callback that raises is reported, and the node goes on."""
    while rclpy.ok():
        try:
            executor.spin()
        except ExternalShutdownException:
            raise
        except Exception as error:
            if not rclpy.ok():
                return
            node.report_failure(error)
            time.sleep(0.01)  # whatever fails at once and for ever leaves time to the others


if __name__ == "__main__":
    sys.exit(main())
