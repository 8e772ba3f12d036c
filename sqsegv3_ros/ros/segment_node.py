# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: a lifecycle node that labels PointCloud2 messages.

The executor's thread receives clouds, answers services and publishes diagnostics. One worker thread labels the newest
cloud, so that inference delays nothing but its own result.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros import process
from sqsegv3_ros.errors import UserError, missing_torch
from sqsegv3_ros.inference.settings import DEFAULTS, NODE_NAME, SPEC_OF, Settings, describe_unknown, is_builtin
from sqsegv3_ros.pointcloud2 import CloudError
from sqsegv3_ros.ros.cloud_subscription import CloudSubscription
from sqsegv3_ros.ros.diagnostics import ERROR, OK, WARN, Limits, NodeDiagnostics, Status, to_message
from sqsegv3_ros.ros.distributions import answer_invalid_transitions
from sqsegv3_ros.ros.latest_worker import LatestWorker
from sqsegv3_ros.ros.model_advice import advise_faster_settings
from sqsegv3_ros.ros.parameters import declare, explain_fixed, overrides, undeclare_of_model
from sqsegv3_ros.ros.signals import ignore_signals, treat_sigint_as_sigterm
from sqsegv3_ros.ros.start import start_ros

if TYPE_CHECKING:  # these import torch, which needs `process.prepare` first
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.inference.extrinsics import Extrinsics
    from sqsegv3_ros.ros.extrinsics_tf import TfExtrinsics
    from sqsegv3_ros.ros.output_publishers import OutputPublishers
    from sqsegv3_ros.ros.sweep_poses import SweepPoses

DIAGNOSTICS_PERIOD_S = 1.0
THROTTLE_S = 5.0
MISSING_LOG_PERIOD_S = 10.0
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class SegmentNode(LifecycleNode):
    """Label the newest cloud of ~/input/points and publish every output that has a subscriber.

    Args:
        **kwargs: Arguments of rclpy's LifecycleNode.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        answer_invalid_transitions(self)
        self._cloud_segmenter: CloudSegmenter | None = None
        self._outputs: OutputPublishers | None = None
        self._worker: LatestWorker[tuple[PointCloud2, float, Extrinsics | None]] | None = None
        self._tf_extrinsics: TfExtrinsics | None = None
        self._poses: SweepPoses | None = None
        self._input: CloudSubscription | None = None
        self._configure_error = ""
        self._startup_s = 0.0
        self._given = {name: value for name, value in overrides(self).items() if not is_builtin(name)}
        for name in sorted(self._given.keys() - SPEC_OF.keys()):
            self.get_logger().warning(f"{describe_unknown(name)} (ignored)")
            del self._given[name]
        self._settings = Settings({**DEFAULTS, **self._given})
        declare(self, self._settings, of_model=False)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self._new_diagnostics()
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # steady time: diagnostics continue while the simulated clock is paused
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)

    # ---- clouds ----------------------------------------------------------------------------------------------------

    def _on_cloud(self, cloud: PointCloud2) -> None:
        now = time.monotonic()
        self._diagnostics.received(now)
        try:
            extrinsics = self._tf_extrinsics.find(cloud.header.frame_id) if self._tf_extrinsics else None
        except UserError as error:
            self._diagnostics.rejected(now, "no_transform", str(error))
            self.get_logger().warning(f"cloud rejected: {error}", throttle_duration_sec=THROTTLE_S)
            return
        if self._worker is not None and self._worker.put((cloud, now, extrinsics)):
            self._diagnostics.dropped_newer_available()

    def _process(self, item: tuple[PointCloud2, float, Extrinsics | None]) -> None:
        """Label a cloud on the worker's thread. Report any error, as the next cloud may be usable."""
        diagnostics = self._diagnostics  # an activation replaces it
        diagnostics.started(time.monotonic())
        try:
            self._label(*item, diagnostics)
        except CloudError as error:
            diagnostics.rejected(time.monotonic(), error.reason, str(error))
            self.get_logger().warning(f"cloud rejected: {error}", throttle_duration_sec=THROTTLE_S)
        except Exception as error:
            if self.context.ok():  # otherwise the node is shutting down and cannot publish any more
                message = f"labelling failed: {type(error).__name__}: {error}"
                diagnostics.failed(time.monotonic(), message)
                self.get_logger().error(message, throttle_duration_sec=THROTTLE_S)
        finally:
            diagnostics.finished()

    def _label(
        self, cloud: PointCloud2, received: float, extrinsics: Extrinsics | None, diagnostics: NodeDiagnostics
    ) -> None:
        """Convert, call, publish."""
        segmenter, outputs, worker = self._cloud_segmenter, self._outputs, self._worker
        assert segmenter is not None and outputs is not None and worker is not None
        products = outputs.subscribed_products()
        if not products:
            diagnostics.skipped_no_subscribers()
            return
        result = segmenter.process(cloud, products, extrinsics, self._poses.find if self._poses else None)
        begin = time.perf_counter()
        messages = outputs.to_messages(result, cloud.header)
        with worker.publish_guard() as allowed:
            if not allowed:
                return
            outputs.publish(messages)
            stages = {**result.timings_ms, "publish": 1e3 * (time.perf_counter() - begin)}
            outputs.publish_times(stages)
        now = time.monotonic()
        diagnostics.labelled(now, 1e3 * (now - received), stages)
        diagnostics.set_input_warnings(result.input_warnings)

    # ---- lifecycle -------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the model and create the outputs. On failure the node stays unconfigured."""
        from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter, read_model
        from sqsegv3_ros.ros.extrinsics_tf import TfExtrinsics
        from sqsegv3_ros.ros.output_publishers import OutputPublishers
        from sqsegv3_ros.ros.sweep_poses import SweepPoses

        begin = time.perf_counter()
        try:
            if self._settings["base_frame"]:
                self._tf_extrinsics = TfExtrinsics(self, self._settings["base_frame"])
            if self._settings["sweeps.count"] > 1:
                self._poses = SweepPoses(self, self._settings)
            model = read_model(self._settings)
            self._settings = self._settings.for_model(model.info)
            declare(self, self._settings, of_model=True)
            self._cloud_segmenter = cloud_segmenter = CloudSegmenter(model, self._settings)
            self._outputs = OutputPublishers(self)
            self._worker = LatestWorker(self._process, "segmentation")
        except Exception as error:
            self._release()
            self._configure_error = str(error) or type(error).__name__
            retry = f"ros2 lifecycle set {self.get_fully_qualified_name()} configure"
            self.get_logger().error(f"cannot configure: {self._configure_error}; fix it, then `{retry}`")
            return FAILURE
        self._configure_error = ""
        self._startup_s = time.perf_counter() - begin
        segmenter = cloud_segmenter.segmenter
        self.get_logger().info(
            f"model {segmenter.info.name} ({segmenter.model_path}), {segmenter.runtime}, "
            f"{segmenter.projection.height} x {segmenter.projection.width} pixels"
            f"{' averaged with the mirrored image' if segmenter.average_mirrored else ''}, "
            f"ready in {self._startup_s:.2f} s; licence of the weights: {segmenter.info.licence}"
        )
        if segmenter.runtime.hint:
            self.get_logger().info(segmenter.runtime.hint)
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the input and start labelling."""
        result = super().on_activate(state)
        if result != SUCCESS or self._worker is None:
            return result
        assert self._cloud_segmenter is not None and self._outputs is not None
        self._diagnostics = self._new_diagnostics()
        try:
            self._worker.resume()
            self._input = CloudSubscription(
                self,
                "~/input/points",
                self._on_cloud,
                lambda count: self._diagnostics.dropped_in_transport(count),
                self._settings["input_reliability"],
            )
            self._outputs.publish_labels(self._cloud_segmenter.segmenter.info.labels)
        except Exception as error:  # an invalid QoS override, no memory, ...
            self.get_logger().error(f"cannot activate: {error}")
            self._stop()
            super().on_deactivate(state)
            return FAILURE
        self.get_logger().info(f"labelling clouds of {self._input.topic_name}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop labelling, without waiting for the cloud being processed; its result is discarded."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model, the device's memory and the outputs."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release everything, from any state."""
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything after a transition that raised, so that the node can be configured again."""
        self._release()
        return SUCCESS

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node."""
        self._stop()
        if self._worker is not None:
            self._worker.close()
        super().destroy_node()

    def _stop(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._worker is not None:
            self._worker.pause()  # nothing may be published after the transition

    def _release(self) -> None:
        self._stop()
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        if self._cloud_segmenter is not None:
            self._cloud_segmenter.release()
            self._cloud_segmenter = None
        if self._tf_extrinsics is not None:
            self._tf_extrinsics.close()
            self._tf_extrinsics = None
        if self._poses is not None:
            self._poses.close()
            self._poses = None
        undeclare_of_model(self)
        others = {name: self._settings[name] for name in DEFAULTS}
        self._settings = Settings({**self._given, **others})

    # ---- parameters ------------------------------------------------------------------------------------------------

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters if p.name in SPEC_OF}
        if not changes:
            return SetParametersResult(successful=True)
        if self._cloud_segmenter is not None:
            fixed = [n for n, value in changes.items() if SPEC_OF[n].at_configure and value != self._settings[n]]
            if fixed:
                return SetParametersResult(successful=False, reason="; ".join(map(explain_fixed, sorted(fixed))))
        try:
            settings = Settings({**self._settings.values, **changes})
            if self._cloud_segmenter is not None:
                self._cloud_segmenter.apply(settings)
        except Exception as error:  # no value may end the node
            return SetParametersResult(successful=False, reason=str(error) or type(error).__name__)
        self._settings = settings
        self._diagnostics.limits = self._limits()
        if self._input is not None:
            self._input.choice = settings["input_reliability"]
        return SetParametersResult(successful=True)

    # ---- diagnostics -----------------------------------------------------------------------------------------------

    def report_callback_failure(self, error: Exception) -> None:
        """Log which callback raised an error, and show it in the diagnostics."""
        message = f"callback {_failed_callback(error)} failed: {type(error).__name__}: {error}"
        self._diagnostics.callback_failed(time.monotonic(), message)
        self.get_logger().error(message, throttle_duration_sec=THROTTLE_S)

    def _new_diagnostics(self) -> NodeDiagnostics:
        return NodeDiagnostics(self._limits(), time.monotonic())

    def _limits(self) -> Limits:
        settings = self._settings
        return Limits(settings["latency_budget_ms"], settings["late_error_after_s"], settings["stale_after_s"])

    def _publish_diagnostics(self) -> None:
        statuses = [self._model_status()]
        if self._input is not None:
            self._check_publishers(self._input)
            statuses += self._diagnostics.statuses(time.monotonic())
            received = next(status for status in statuses if status.name == "input")
            received.values["publishers"] = str(self.count_publishers(self._input.topic_name))
            received.values["reliability"] = self._input.reliability.name.lower()
        name = self.get_fully_qualified_name()
        hardware_id = self._cloud_segmenter.segmenter.info.name if self._cloud_segmenter else ""
        stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(to_message(statuses, name, hardware_id, stamp))
        advise_faster_settings(self.get_logger(), self._cloud_segmenter, self._diagnostics)

    def _check_publishers(self, subscription: CloudSubscription) -> None:
        missing = subscription.missing_publisher()
        self._diagnostics.set_missing_publisher(missing)
        if missing:
            self.get_logger().warning(missing, throttle_duration_sec=MISSING_LOG_PERIOD_S)

    def _model_status(self) -> Status:
        if self._cloud_segmenter is None:
            if self._configure_error:
                return Status("model", ERROR, f"cannot configure: {self._configure_error}")
            return Status("model", WARN, "not configured")
        level, message = (OK, "active") if self._input is not None else (WARN, "not active")
        values = {**self._cloud_segmenter.description(), "startup_s": f"{self._startup_s:.2f}"}
        return Status("model", level, message, values)


def _failed_callback(error: Exception) -> str:
    """Name and place of the callback that raised: the first function called by rclpy."""
    frames = traceback.extract_tb(error.__traceback__)
    rclpy_folder = str(Path(rclpy.__file__).parent)
    in_rclpy = [frame.filename.startswith(rclpy_folder) for frame in frames]
    called = (frame for frame, below, here in zip(frames[1:], in_rclpy, in_rclpy[1:], strict=False) if below > here)
    callback = next(called, frames[-1])
    return f"{callback.name} ({Path(callback.filename).name}:{callback.lineno})"


def spin(executor: SingleThreadedExecutor, node: SegmentNode) -> None:
    """Spin until the context is shut down. A callback that raises is reported, and the node continues."""
    while rclpy.ok():
        try:
            executor.spin()
        except ExternalShutdownException:
            raise
        except Exception as error:
            if not rclpy.ok():
                return
            node.report_callback_failure(error)
            time.sleep(0.01)  # a callback that always fails must not starve the others


def main(arguments: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        Exit code: 0 after a signal, 2 if a parameter or a ROS argument is invalid or torch is not installed.
    """
    process.prepare()
    process.use_fastdds_profile()
    treat_sigint_as_sigterm()
    node = None
    try:
        start_ros(arguments)
        executor = SingleThreadedExecutor()
        node = SegmentNode()
        # not in on_configure: a failed import of torch cannot be repeated in the same process
        _import_torch()
        executor.add_node(node)
        if rclpy.ok() and node.get_parameter("autostart").value and node.trigger_configure() == SUCCESS:
            node.trigger_activate()
        spin(executor, node)
    except ExternalShutdownException:
        pass
    except (UserError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"segment_node: {error}", file=sys.stderr)
        return 2
    except Exception:
        if rclpy.ok():
            raise
        # otherwise a signal has interrupted the start, and rclpy's error is expected
    finally:
        ignore_signals()  # a second Ctrl-C must not interrupt the shutdown
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _import_torch() -> None:
    try:
        importlib.import_module("sqsegv3_ros.inference.cloud_segmenter")
    except ModuleNotFoundError as error:
        raise missing_torch(error, "the node") from error


if __name__ == "__main__":
    sys.exit(main())
