# SPDX-License-Identifier: Apache-2.0
"""The segmenter: labels every point of a scan, with a confidence. No ROS in it.

The paper's figure 1 in order: project the points, infer the classes of the pixels, restore the points' labels.
"""

from __future__ import annotations

import math
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sqsegv3_ros.data.label_map import LabelMap
from sqsegv3_ros.errors import UserError, last_line
from sqsegv3_ros.inference.backends import make_backend, resolve_runtime, torch_threads
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.knn import KnnConfig, refine
from sqsegv3_ros.inference.model_file import ModelFile, find_model, load_model
from sqsegv3_ros.inference.range_image import ProjectionConfig, RangeImage, fill_gaps, mirror, normalize, project

# a message's data may be read-only memory, and nothing here writes to its input
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        labels: (N,) uint8 (uint16 for more than 256 classes), 0 for points that could not be used.
        confidences: (N,) float32, the softmax probability of the label at the point's own pixel, 0 if not used.
        image: The range image, on the device.
        label_image: (H, W) uint8 (int32 for more than 256 classes) on the device, 0 in empty pixels.
        timings_ms: Milliseconds by stage, upload to download of `STAGES`.
        entropies: (N,) float32, the entropy of the probabilities at the point's own pixel, from 0 (one class is
            certain) to 1 (all are equally likely), 1 if not used; None unless asked for.
        entropy_image: (H, W) float32 on the device, NaN in empty pixels; None unless asked for.
    """

    labels: npt.NDArray[Any]
    confidences: npt.NDArray[np.float32]
    image: RangeImage
    label_image: Tensor
    timings_ms: dict[str, float]
    entropies: npt.NDArray[np.float32] | None = None
    entropy_image: Tensor | None = None


class Segmenter:
    """A model on a device, ready to label scans one after another."""

    def __init__(
        self,
        model: str | Path | ModelFile,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        cuda_graph: bool = False,
        average_mirrored: bool = False,
        projection: ProjectionConfig | None = None,
        knn: KnnConfig | None = None,
        extrinsics: Extrinsics | None = None,
        label_map: LabelMap | None = None,
        sha256: str | None = None,
    ) -> None:
        """Load a model and make it ready to run.

        Args:
            model: A loaded model file, or what `find_model` finds: a path, a name, or '' for the default.
            backend: See `resolve_runtime`, also for device, precision, threads and cuda_graph.
            device: 'auto', 'cuda', 'cuda:N' or 'cpu'.
            precision: 'auto', 'fp32', 'fp16' or 'bf16'.
            threads: CPU threads that share a scan; None: one per core.
            cuda_graph: Record the network's kernels on a CUDA device once and replay them.
            average_mirrored: Run the network on the mirrored image, too, and average the probabilities.
            projection: Instead of the model's own; its height and width hold from now on.
            knn: Instead of the model's own.
            extrinsics: Levels the points of a tilted sensor.
            label_map: Folds the model's classes; `info.labels` are then those of the map.
            sha256: Digest that the model file must have.

        Raises:
            UserError: The model or a setting cannot be used, so that nothing fails at the first scan.
        """
        self.runtime = resolve_runtime(backend, device, precision, threads, cuda_graph=cuda_graph)
        self.device = self.runtime.device
        if not isinstance(model, ModelFile):
            model = load_model(find_model(model), sha256)
        self.info, self.model_path, self.model_sha256 = model.info, model.path, model.sha256
        self.projection = projection or self.info.projection
        self.knn = knn or self.info.knn
        self.average_mirrored = average_mirrored
        self.extrinsics = extrinsics or Extrinsics()
        self._classes = len(self.info.labels)  # of the network
        self._folding: _Folding | None = None
        if label_map is not None:
            folded = label_map.apply(self.info.labels)
            self.info = replace(self.info, labels=folded.labels)
            self._folding = _Folding(folded.table, len(folded.labels), self.device)
        with self._on_device():
            self._network = make_backend(model, self.runtime, self.projection.height, self.projection.width)

    def segment(
        self,
        points: npt.NDArray[np.float32] | Tensor,
        rings: npt.NDArray[Any] | Tensor | None = None,
        *,
        entropy: bool = False,
    ) -> Segmentation:
        """Label the points of one scan.

        Args:
            points: (N, 4) float32 x, y, z in metres in the sensor frame, remission in the model's scale; N may be 0.
            rings: (N,) ring numbers, needed if the projection takes its rows from them.
            entropy: Also compute the entropies of points and pixels.

        Returns:
            Labels and confidences of all points in their order, and the images.

        Raises:
            UserError: Points or rings have another shape or type.
        """
        with torch.inference_mode(), self._on_device():
            clock = _StageClock(self.device)
            on_device = self._upload(points), None if rings is None else self._upload(rings)
            clock.stop("upload")

            of_points, image, label_image, entropy_image = self._label(*on_device, clock, entropy)

            labels, confidences, *rest = _download(*of_points)
            clock.stop("download")
            timings = clock.milliseconds()
        labels = labels.astype(self.info.labels.dtype, copy=False)
        return Segmentation(labels, confidences, image, label_image, timings, rest[0] if rest else None, entropy_image)

    def _label(
        self, points: Tensor, rings: Tensor | None, clock: _StageClock, entropy: bool
    ) -> tuple[list[Tensor], RangeImage, Tensor, Tensor | None]:
        """Labels, confidences and entropies of the points, the image, its labels and its entropies.

        The host never waits for the device here.
        """
        image, network_inputs = self._project(self.extrinsics.level(points), rings)
        clock.stop("project")

        logits = self._infer(*network_inputs)
        clock.stop("network")

        label_image, odds, total = self._classify(logits)
        clock.stop("classify")

        labels = refine(label_image, image, self.knn, self._classes, self.runtime.threads)
        if self._folding is not None:  # after the vote, so that labels are those of the model, folded
            labels, label_image = self._folding.fold(labels), self._folding.fold(label_image)
            odds = self._folding.add_up(odds)
        of_points = [labels, _confidences(labels, odds, total, image)]
        entropy_image = None
        if entropy:
            classes = self._classes if self._folding is None else self._folding.classes_with_members
            entropy_image = _entropies(odds, total, classes)
            of_points.append(entropy_image.flatten().index_select(0, image.pixel).masked_fill_(~image.usable, 1.0))
            entropy_image = entropy_image.masked_fill(image.index < 0, float("nan"))
        clock.stop("knn")
        # in the vote, masked pixels count as in the reference implementation; the published image is empty there
        return of_points, image, label_image * (image.index >= 0), entropy_image

    def _project(self, points: Tensor, rings: Tensor | None) -> tuple[RangeImage, list[Tensor]]:
        """The range image of levelled points, and the network's one or two inputs (1, 5, H, W) made from it."""
        image = project(points, self.projection, rings)
        filled = fill_gaps(image, self.projection.fill_rows)
        network_images = [self.extrinsics.compensate_height(filled, self.info.sensor_height_m)]
        if self.average_mirrored:
            network_images.append(mirror(network_images[0]))
        return image, [normalize(network_image, self.info.normalization) for network_image in network_images]

    def _infer(self, network_input: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """(C, H, W) logits of the network, or the logarithm of both views' summed probabilities."""
        logits = self._network(network_input)[0]
        if mirrored is None:
            return logits
        odds = logits.softmax(0)  # before the second call, which reuses the memory of the logits
        odds += self._network(mirrored)[0].flip(2).softmax(0)
        return odds.log_()

    def _classify(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H, W) labels, (C, H, W) numerators and (H, W) denominator of the softmax; overwrites the (C, H, W) logits.

        Few points need more than one of the probabilities, so they are not divided here.
        """
        best = logits.amax(0)
        # of classes with equal logits the last one; on a CPU max(0) takes four times as long, argmax(0) eleven times.
        # OpenVINO's TopK would save 0.8 ms more, but only its backend has it
        label_type = torch.uint8 if self._classes <= 256 else torch.int32
        numbers = torch.arange(self._classes, dtype=label_type, device=logits.device).view(-1, 1, 1)
        labels = (numbers * (logits == best)).amax(0)
        odds = logits.sub_(best).exp_()
        return labels, odds, odds.sum(0)

    def _on_device(self) -> AbstractContextManager[Any]:
        """The context of the segmenter's work on its device.

        On CUDA, streams, events and graphs belong to the segmenter's own device, whichever is the current one. On a
        CPU, torch uses one thread outside the network: for small operations that is as fast, and they need not wait for
        a second thread on a core that another process has.
        """
        return torch.cuda.device(self.device) if self.device.type == "cuda" else torch_threads(1)

    def warm_up(self, points: int = 120_000) -> None:
        """Run synthetic scans, so that the first real one is not slower and what cannot run fails here.

        Args:
            points: Points of a scan.

        Raises:
            UserError: The model cannot run on the device in this precision, or gives no usable logits.
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
        height, width = self.projection.height, self.projection.width
        try:
            with torch.inference_mode(), self._on_device():
                noise = torch.randn(1, 5, height, width, generator=generator).to(self.device)
                logits = self._network(noise)
                shape, finite = tuple(logits.shape), bool(logits.isfinite().all())
            if shape != (1, self._classes, height, width):
                raise UserError(
                    f"model {self.model_path} returned logits {shape} for a {height} x {width} image and "
                    f"{self._classes} classes"
                )
            if not finite:
                raise UserError(
                    f"model {self.model_path} returned non-finite logits ({self.runtime}); use precision fp32, "
                    "or export a model whose training did not diverge"
                )
            for _ in range(1 if self.device.type == "cpu" else 3):
                self.segment(scan, rings)
        except RuntimeError as error:  # torch: out of memory, an operation without a kernel for the type, ...
            raise UserError(f"model {self.model_path} does not run ({self.runtime}): {last_line(error)}") from error

    def _upload(self, values: npt.NDArray[Any] | Tensor) -> Tensor:
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(values if values.flags.writeable else values.copy())  # torch warns otherwise
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory()  # from pageable memory the host would wait for the copy
        return values.to(self.device, non_blocking=True)


def _confidences(labels: Tensor, odds: Tensor, total: Tensor, image: RangeImage) -> Tensor:
    """(N,) softmax probability of the points' final labels at their own pixels, 0 for unusable points."""
    chosen = odds.flatten().index_select(0, labels.long() * total.numel() + image.pixel)
    return chosen.div_(total.flatten().index_select(0, image.pixel)).clamp_(0, 1).masked_fill_(~image.usable, 0)


def _entropies(odds: Tensor, total: Tensor, classes: int) -> Tensor:
    """(H, W) entropy of the pixels' probabilities, odds / total, divided by its largest value, log(classes)."""
    # sum of -p log p with p = odds / total
    entropy = total.log() - torch.special.xlogy(odds, odds).sum(0).div_(total)
    return entropy.div_(math.log(max(classes, 2))).clamp_(0, 1)


class _Folding:
    """A label map's table and the sums of its classes' probabilities, on a device."""

    def __init__(self, table: npt.NDArray[Any], classes: int, device: torch.device) -> None:
        dtype = torch.uint8 if classes <= 256 else torch.int32
        new = torch.from_numpy(table.astype(np.int64)).to(device)
        self._table = new.to(dtype)
        self._members = (torch.arange(classes, device=device)[:, None] == new).float()
        self.classes_with_members = len(np.unique(table))

    def fold(self, labels: Tensor) -> Tensor:
        """Labels of the map for labels of the model, of any shape."""
        return self._table.index_select(0, labels.flatten().int()).view(labels.shape)

    def add_up(self, odds: Tensor) -> Tensor:
        """(C, H, W) of the model's classes -> (G, H, W) of the map's: the sums of the members."""
        return (self._members @ odds.flatten(1)).view(-1, *odds.shape[1:])


def _download(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """The tensors as arrays. From a GPU they are copied together into pinned memory, and the host waits once."""
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
        """End the stage."""
        self._marks.append((stage, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """The time of each stage."""
        if self._cuda:
            torch.cuda.synchronize()
        result = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            result[stage] = before.elapsed_time(after) if self._cuda else 1e3 * (after - before)
        return result
