# SPDX-License-Identifier: Apache-2.0
"""Inference backends for the exported network: torch (CUDA, CPU) and OpenVINO (CPU)."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from sqsegv3_ros.errors import UserError, install_command, last_line, missing_package
from sqsegv3_ros.inference.model_file import ModelFile
from sqsegv3_ros.inference.torchscript import as_recorded, no_deprecation_warnings

BACKENDS = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
DEVICES = ("auto", "cuda", "cpu")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPENVINO_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_NATIVE_BF16_FLAGS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Runtime:
    """Runtime of the network. Equal runtimes give equal labels.

    Attributes:
        backend: 'torch' or 'openvino'.
        device: Where points, image and logits are.
        precision: 'fp32', 'fp16' or 'bf16', what the network computes in.
        threads: CPU threads that share a scan.
        cuda_graph: Whether the network's kernels are recorded once and replayed.
        hint: What would make it faster, for the log; empty if there is none.
    """

    backend: str
    device: torch.device
    precision: str
    threads: int
    cuda_graph: bool = False
    hint: str = field(default="", compare=False)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device.type == "cpu" else ""
        return f"{self.backend} on {self.device}, {self.precision}{threads}"


class Backend(Protocol):
    """A network, ready to run for one image size."""

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 5, H, W) float32 on the device -> logits (1, C, H, W) float32, which the next call may overwrite."""
        ...


def resolve_runtime(
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    *,
    cuda_graph: bool = False,
) -> Runtime:
    """Resolve what runs the network on this machine.

    Args:
        backend: 'torch', 'openvino', or 'auto': torch on a CUDA device, else OpenVINO if it is installed, else torch.
        device: 'cuda', 'cuda:N', 'cpu', or 'auto': CUDA if there is a device.
        precision: 'fp32', 'fp16', 'bf16', or 'auto': fp16 on CUDA, bf16 with OpenVINO on a CPU with bf16 instructions,
            else fp32.
        threads: CPU threads; None: one per core that the process may use.
        cuda_graph: Record the network's kernels on a CUDA device once and replay them.

    Raises:
        UserError: A value is unknown, or the machine cannot do it.
    """
    _check_choice("backend", backend, BACKENDS)
    _check_choice("precision", precision, PRECISIONS)
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"threads must be in 1..1024, found {threads}")
    if backend == "openvino" and device not in ("auto", "cpu"):
        raise UserError(f"backend 'openvino' runs on the CPU, found device '{device}'; use backend 'torch'")
    if backend == "openvino":
        device = "cpu"
    resolved = resolve_device(device)
    on_cpu, installed, hint = resolved.type == "cpu", importlib.util.find_spec("openvino") is not None, ""
    if backend == "auto":
        backend = "openvino" if on_cpu and installed else "torch"
        if on_cpu and not installed:
            command = install_command("openvino")
            hint = f"OpenVINO is not installed; with it the network is 2 to 4 times faster: {command}"
    elif backend == "openvino" and not installed:
        raise missing_package("openvino", "backend 'openvino'")
    native_bf16 = has_native_bf16()
    if precision == "auto":
        precision = "fp32" if on_cpu else "fp16"
        if backend == "openvino" and native_bf16:
            precision = "bf16"
    elif precision == "bf16" and backend == "openvino" and not native_bf16:
        raise UserError(
            "precision 'bf16' needs a CPU with avx512_bf16 or amx_bf16, which this one lacks; use 'auto' or 'fp32'"
        )
    if cuda_graph and resolved.type != "cuda":
        raise UserError(f"cuda_graph requires a CUDA device; the device is {resolved}")
    return Runtime(backend, resolved, precision, threads or usable_cores(), cuda_graph, hint)


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, and in a container no more than its CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores


def resolve_device(device: str) -> torch.device:
    """Resolve 'auto', 'cuda', 'cuda:N' or 'cpu'. Raises UserError if there is no such device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise UserError(f"device must be one of {', '.join(DEVICES)} or cuda:N, found '{device}'")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise UserError(f"device '{device}' not found (CUDA devices: {count}); use 'auto' or 'cpu'")
    return resolved


def has_native_bf16() -> bool:
    """Whether the CPU has bf16 instructions by its own flags; OpenVINO also reports bf16 if it emulates it."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not set(_NATIVE_BF16_FLAGS).isdisjoint(flags.split())


def make_backend(model: ModelFile, runtime: Runtime, height: int, width: int) -> Backend:
    """Make a backend for images of one size.

    Args:
        model: The model; it is not changed.
        runtime: From `resolve_runtime`.
        height: Rows of the image.
        width: Columns of the image.

    Raises:
        UserError: The network cannot be compiled, or not in the precision asked for.
    """
    multiple, least = model.info.width_multiple, model.info.minimum_width
    if width % multiple or width < least:
        raise UserError(
            f"the image width must be a multiple of {multiple}, at least {least}, for model {model.path}, found {width}"
        )
    if runtime.backend == "openvino":
        return OpenVinoBackend(model, runtime, (1, 5, height, width))
    network = TorchBackend(model, runtime)
    return GraphedBackend(network) if runtime.cuda_graph else network


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Limit torch to this many CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchBackend:
    """The network run by torch."""

    def __init__(self, model: ModelFile, runtime: Runtime) -> None:
        self._dtype = _DTYPES[runtime.precision]
        # a copy: the model file may serve another backend, too
        network = copy.deepcopy(model.network)
        for parameter in network.parameters():  # TorchScript's copies are no leaves, of which `to` would warn
            parameter.detach_()
        self._network = network.to(device=runtime.device, dtype=self._dtype)
        self._on_cpu, self._threads = runtime.device.type == "cpu", runtime.threads

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 5, H, W) float32 on the device -> logits (1, C, H, W) float32."""
        if not self._on_cpu:
            return cast(Tensor, self._network(image.to(self._dtype)).float())
        with torch_threads(self._threads), as_recorded():
            return cast(Tensor, self._network(image.to(self._dtype)).float())


class GraphedBackend:
    """A network on a CUDA device, captured once as a CUDA graph and replayed."""

    def __init__(self, network: TorchBackend) -> None:
        self._network = network
        self._image, self._logits, self._graph = torch.empty(0), torch.empty(0), torch.cuda.CUDAGraph()

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 5, H, W) float32 on the device -> logits (1, C, H, W) float32, which the next call overwrites."""
        if self._image.shape != image.shape:
            self._record(image)
        self._image.copy_(image)
        self._graph.replay()
        return self._logits

    def _record(self, image: Tensor) -> None:
        image, graph = image.clone(), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # TorchScript optimises what the first runs have shown, which cannot be recorded
                self._network(image)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            self._logits = self._network(image)
        self._image, self._graph = image, graph


class OpenVinoBackend:
    """The network compiled by OpenVINO for the CPU and one image size."""

    def __init__(self, model: ModelFile, runtime: Runtime, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        graph = _convert(model, shape)
        settings = openvino_settings(runtime.threads, runtime.precision)
        try:
            compiled = _openvino_core().compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot compile model {model.path}: {last_line(error)}") from error
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != OPENVINO_TYPES[runtime.precision]:
            raise UserError(
                f"OpenVINO runs model {model.path} in {found} on this CPU instead of {runtime.precision}; "
                "use precision 'auto'"
            )
        self._request = compiled.create_infer_request()

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 5, H, W) float32 on the CPU -> logits (1, C, H, W) float32, which the next call overwrites."""
        if tuple(image.shape) != self.shape:
            raise UserError(f"the network is compiled for an image {self.shape}, found {tuple(image.shape)}")
        # memory is shared in both directions; numpy views need a tensor that is not one of inference mode
        result = self._request.infer([image.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])


def openvino_settings(threads: int, precision: str) -> dict[str, Any]:
    """Settings that compile a network for the latency of one scan."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two nodes would share a core
    }


_openvino_lock = threading.RLock()


def import_openvino() -> ModuleType:
    """Import OpenVINO without its usage statistics, which it would send to the vendor at every import."""
    name = "openvino_telemetry"
    with _openvino_lock:
        hidden = name not in sys.modules
        if hidden:
            sys.modules[name] = None  # type: ignore[assignment]  # cannot be imported: OpenVINO then does without
        try:
            import openvino
        finally:
            if hidden:
                del sys.modules[name]
    return openvino


def _openvino_core() -> Any:
    """The one Core of this process, kept until it ends.

    OpenVINO 2026.4 gives the thread that compiles a Core's first network a signal stack of the Core's, and unmaps it
    with the Core even if it is in use: after two Cores, or one that another thread deletes, the next signal to be
    handled on that stack (SIGINT in Python) kills the process.
    """
    with _openvino_lock:
        return _make_openvino_core()


@functools.cache
def _make_openvino_core() -> Any:
    return import_openvino().Core()


def _convert(model: ModelFile, shape: tuple[int, int, int, int]) -> Any:
    # through the frontend itself: openvino.convert_model would send usage statistics, too
    openvino = import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with _signals_deferred(), no_deprecation_warnings():
            decoder = TorchScriptPythonDecoder(model.network)  # has to outlive the conversion
            frontend = FrontEndManager().load_by_framework("pytorch")
            graph = frontend.load(decoder)
            image = graph.get_inputs()[0]  # a loaded network does not say what it takes
            graph.set_element_type(image, openvino.Type.f32)
            graph.set_partial_shape(image, openvino.PartialShape(list(shape)))
            return frontend.convert(graph)
    except Exception as error:  # the frontend's own have no common class
        raise UserError(
            f"OpenVINO cannot convert model {model.path}: {last_line(error)}; use backend: torch (--backend torch)"
        ) from error


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Handle SIGINT and SIGTERM only after the block.

    OpenVINO calls Python while it converts, and drops a KeyboardInterrupt from there or reports an error of the model.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # the others receive no signals
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[tuple[int, Any]] = []
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
        for number, frame in received[:1]:
            handlers[number](number, frame)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, found '{value}'")
