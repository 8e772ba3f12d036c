"""The segmenter: the points of a scan go in, a label and a confidence for every point come out. No ROS in it.

The paper's figure 1 in order: project the points, infer the classes of the pixels, restore the points' labels.
"""

from __future__ import annotations

import atexit
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sqsegv3_ros.artifact import Artifact, find_model, load_artifact
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.knn import KnnConfig, refine
from sqsegv3_ros.mount import Mount
from sqsegv3_ros.parallel import as_written, share, threads_share, torch_shares
from sqsegv3_ros.projection import ProjectionConfig, RangeImage, fill_gaps, normalize, project

DEVICES = ("auto", "cuda", "cpu")
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
STAGES = ("upload", "project", "network", "restore", "knn", "download")
_LARGE_TILE = 1 << 24  # pixels: the whole image at once, for devices with thousands of threads


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan.

    labels: (N,) uint8 (uint16 for more than 256 classes), 0 for points that could not be used.
    confidences: (N,) float32, the softmax probability of the label at the point's own pixel, 0 where not used.
    image: the LiDAR image, on the device. label_image: (H, W) uint8 (int32 for more than 256 classes) on the device,
        0 in empty pixels.
    timings_ms: milliseconds by stage (`STAGES`).
    """

    labels: npt.NDArray[Any]
    confidences: npt.NDArray[np.float32]
    image: RangeImage
    label_image: Tensor
    timings_ms: dict[str, float]


class Segmenter:
    """A model on a device, ready to label scans one after another.

    model: a loaded artifact, or what `find_model` finds: a path, a name, or '' for the default. device: 'auto' takes
    CUDA where there is one. precision: what the network computes in. projection, knn: instead of the model's own.
    mount: levels the points of a tilted sensor. threads: CPU threads that share a scan's work; None: as many as torch
    uses. cuda_graph: record the network's work on a CUDA device once and replay it, which spares small networks the
    launch of every kernel.
    Raises UserError where the model or a setting cannot be used, so that nothing fails at the first scan.
    """

    def __init__(
        self,
        model: str | Path | Artifact,
        *,
        device: str = "auto",
        precision: str = "fp32",
        projection: ProjectionConfig | None = None,
        knn: KnnConfig | None = None,
        mount: Mount | None = None,
        threads: int | None = None,
        sha256: str | None = None,
        cuda_graph: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, found '{precision}'")
        if threads is not None and not 1 <= threads <= 1024:
            raise UserError(f"threads must lie in 1..1024, found {threads}")
        self.threads = threads or torch.get_num_threads()
        self.precision = precision
        self.dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
        if isinstance(model, Artifact):
            self.artifact = model
        else:
            self.artifact = load_artifact(find_model(model), self.device, PRECISIONS[precision], sha256)
        self.info = self.artifact.info
        self.projection = projection or self.info.projection
        self.knn = knn or self.info.knn
        self.mount = mount or Mount()
        self._network: Callable[[Tensor], Tensor] = self.artifact.module
        if self.device.type != "cpu" and hasattr(self.artifact.module, "tile_pixels"):
            self.artifact.module.tile_pixels = _LARGE_TILE
        self._striped = self.device.type == "cpu" and hasattr(self.artifact.module, "stripes")
        if self.device.type == "cpu":
            _end_calmly()
        if cuda_graph:
            if self.device.type != "cuda":
                raise UserError(f"a CUDA graph needs a CUDA device, found {self.device}")
            self._network = _GraphedNetwork(self.artifact.module)

    def segment(
        self, points: npt.NDArray[np.float32] | Tensor, rings: npt.NDArray[Any] | Tensor | None = None
    ) -> Segmentation:
        """Label the points of one scan.

        points: (N, 4) float32 x, y, z in metres in the sensor frame, remission in the model's scale; N may be 0.
        rings: (N,) ring numbers, needed where the projection takes its rows from them.
        """
        clock = _StageClock(self.device)
        with torch.inference_mode(), self.sharing():
            on_device = self._upload(points), None if rings is None else self._upload(rings)
            clock.stop("upload")

            labels, confidences, image, label_image = self._label(*on_device, clock)

            labels_out, confidences_out = _download(labels, confidences)
            clock.stop("download")
        labels_out = labels_out.astype(self.info.labels.dtype, copy=False)
        return Segmentation(labels_out, confidences_out, image, label_image, clock.milliseconds())

    def sharing(self) -> AbstractContextManager[None]:
        """Within it, this segmenter's threads share the work of `project`, `refine` and the network."""
        return threads_share(self.threads if self.device.type == "cpu" else 1)

    def _label(
        self, points: Tensor, rings: Tensor | None, clock: _StageClock
    ) -> tuple[Tensor, Tensor, RangeImage, Tensor]:
        """Labels and confidences of the points, the image and its labels; the host never waits for the device here."""
        points, normalization, height_m = self.mount.level(points), self.info.normalization, self.info.sensor_height_m
        if self.projection.fill_rows or self.mount.lifts(height_m):
            image = project(points, self.projection, rings)
            seen = self.mount.lift(fill_gaps(image, self.projection.fill_rows), height_m)
        else:
            image = seen = project(points, self.projection, rings, normalization)
        made = seen.normalized
        network_input = (normalize(seen, normalization) if made is None else made[None]).to(self.dtype)
        clock.stop("project")

        dividing = nullcontext() if self._striped else torch_shares()
        if self._striped:
            self.artifact.module.stripes = self.threads  # another segmenter of this artifact may have other ones
        with as_written() if self.device.type == "cpu" else nullcontext(), dividing:
            logits = self._network(network_input)[0].float()
        clock.stop("network")

        label_image, odds, total = self._decide(logits)
        clock.stop("restore")

        labels = refine(label_image, image, self.knn, len(self.info.labels))
        clock.stop("knn")

        confidences = _confidences(labels, odds, total, image)
        return labels, confidences, image, label_image * (image.index >= 0)

    def warm_up(self, points: int = 120_000, repeat: int | None = None) -> None:
        """Run made-up scans, so that the first real one is as quick as the others and what cannot run fails here.

        repeat: how many; None: one on a CPU, three where TorchScript optimises what the first runs have shown.
        Raises UserError where the model cannot run on the device in the chosen precision.
        """
        generator = torch.Generator().manual_seed(0)
        azimuth = torch.rand(points, generator=generator) * 6.2831853
        low, high = np.radians([self.projection.fov_down_deg, self.projection.fov_up_deg])
        elevation = low + torch.rand(points, generator=generator) * float(high - low)
        distance = 2 + 60 * torch.rand(points, generator=generator)
        horizontal = distance * elevation.cos()
        scan = torch.stack(
            [horizontal * azimuth.cos(), horizontal * azimuth.sin(), distance * elevation.sin(), distance / 100], 1
        )
        rings = torch.arange(points) % (self.projection.ring_count or self.projection.height)
        try:
            for _ in range(repeat or (1 if self.device.type == "cpu" else 3)):
                result = self.segment(scan, rings)
        except RuntimeError as error:  # torch: out of memory, an operation without a kernel for the type, ...
            message = str(error).strip().splitlines()[-1]
            raise UserError(
                f"model {self.artifact.path} does not run on {self.device} with precision {self.precision}: {message}"
            ) from error
        height, width = self.projection.height, self.projection.width
        if tuple(result.label_image.shape) != (height, width):
            raise UserError(f"model {self.artifact.path} gives no {height} x {width} image")

    def _decide(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(C, H, W) logits, which are used up -> (H, W) labels, (H * W, C) odds and (H * W, 1) their total.

        The odds over their total are the softmax probabilities: few points need more than one of them.
        """
        classes, height, width = logits.shape
        by_pixel = logits.permute(1, 2, 0).reshape(-1, classes)  # as this package's networks lay them out
        label_type = torch.uint8 if self.info.labels.dtype is np.uint8 else torch.int32
        label = torch.empty((height * width, 1), dtype=label_type, device=logits.device)
        total = logits.new_empty((height * width, 1))

        def decide(begin: int, end: int) -> None:
            part = by_pixel[begin:end]
            best, chosen = part.max(1, keepdim=True)
            label[begin:end] = chosen
            torch.mm(part.sub_(best).exp_(), part.new_ones(classes, 1), out=total[begin:end])

        share(decide, len(by_pixel))
        return label.view(height, width), by_pixel, total

    def _upload(self, values: npt.NDArray[Any] | Tensor) -> Tensor:
        if isinstance(values, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of read-only memory: nothing here writes to its input
                values = torch.from_numpy(values)
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory()  # from pageable memory the host would wait for the copy
        return values.to(self.device, non_blocking=True)


class _GraphedNetwork:
    """A network on a CUDA device whose work for images of one shape is recorded, and replayed for the next one.

    What it returns is overwritten by the next call.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self._network = network
        self._image, self._logits, self._graph = torch.empty(0), torch.empty(0), torch.cuda.CUDAGraph()

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 5, H, W) -> logits (N, C, H, W)."""
        if self._image.shape != image.shape:
            self._record(image)
        self._image.copy_(image)
        self._graph.replay()
        return self._logits

    def _record(self, image: Tensor) -> None:
        self._image, self._graph = image.clone(), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(image.device)
        side.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # TorchScript optimises what the first runs have shown, which cannot be recorded
                self._network(self._image)
        torch.cuda.current_stream(image.device).wait_stream(side)
        with torch.cuda.graph(self._graph):
            self._logits = self._network(self._image)


@lru_cache
def _end_calmly() -> None:
    """Have Python wait a moment before it ends.

    A thread that helped with a network or a projection lets go of Python objects just after its result has arrived;
    should Python end in that instant, the process would abort (https://github.com/pytorch/pytorch/issues/38228). The
    thread cannot be waited for; 2 ms were enough 40 times of 40 where without them 4 of 30 aborted.
    """
    atexit.register(time.sleep, 0.05)


def resolve_device(device: str) -> torch.device:
    """'auto', 'cuda', 'cuda:N' or 'cpu' -> a device that is there. Raises UserError where it is not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = torch.device("meta")
    if resolved.type not in ("cpu", "cuda"):
        raise UserError(f"device must be one of {', '.join(DEVICES)} or cuda:N, found '{device}'")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise UserError(f"device '{device}' is not there (CUDA devices: {count}); use 'auto' or 'cpu'")
    return resolved


def _confidences(labels: Tensor, odds: Tensor, total: Tensor, image: RangeImage) -> Tensor:
    """(N,) softmax probability of the points' final labels at their own pixels, 0 for unusable points."""
    chosen = odds.flatten().index_select(0, image.pixel * odds.shape[1] + labels)
    return chosen.div_(total.flatten().index_select(0, image.pixel)).clamp_(0, 1).masked_fill_(~image.usable, 0)


def _download(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """The tensors as arrays. From a GPU they come side by side into pinned memory, and the host waits once."""
    if not tensors[0].is_cuda:
        return [tensor.numpy() for tensor in tensors]
    on_host = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for target, source in zip(on_host, tensors, strict=True):
        target.copy_(source, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [tensor.numpy() for tensor in on_host]


class _StageClock:
    """Milliseconds between the stages, without making the host wait for the device before the end."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, stage: str) -> None:
        """The stage ends here."""
        self._marks.append((stage, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """The time of each stage."""
        if self._cuda:
            torch.cuda.synchronize()
        result = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            result[stage] = before.elapsed_time(after) if self._cuda else 1e3 * (after - before)
        return result
