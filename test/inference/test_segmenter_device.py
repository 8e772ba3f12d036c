# SPDX-License-Identifier: Apache-2.0
"""What keeps a GPU busy: looked at without one, on torch's meta device; and, where there is one, on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sqsegv3_ros.inference.backends import TorchBackend
from sqsegv3_ros.inference.knn import MODES, KnnConfig
from sqsegv3_ros.inference.model_file import load_model
from sqsegv3_ros.inference.segmenter import Segmenter, _StageClock
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.export import ExportedNetwork
from sqsegv3_ros.network.model import SqueezeSegV3


class CopiesBetweenDevices(TorchDispatchMode):
    """Counts the operations that see tensors of more than one device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += len({t.device for t in (*args, result) if isinstance(t, torch.Tensor)}) > 1
        return result


@pytest.mark.parametrize(("mode", "average_mirrored"), [*((mode, False) for mode in MODES), ("safe", True)])
def test_between_upload_and_download_no_value_is_looked_at_and_none_comes_from_the_host(
    mode: str, average_mirrored: bool, small_model: Path
) -> None:
    # tensors of the meta device have no values: whatever would make the host wait for a GPU to learn one fails there
    segmenter = Segmenter(
        small_model,
        backend="torch",
        device="cpu",
        precision="fp32",
        knn=KnnConfig(mode),
        average_mirrored=average_mirrored,
    )
    on_meta = replace(segmenter.runtime, device=torch.device("meta"))
    segmenter.device = on_meta.device
    network = ExportedNetwork(SqueezeSegV3(NetworkConfig.ssgv3_21().scaled(0.125))).to("meta")
    model = replace(load_model(small_model), network=cast(torch.jit.ScriptModule, network))
    segmenter._network = TorchBackend(model, on_meta)
    points = torch.empty(5000, 4, device="meta")

    def label() -> Any:
        with torch.inference_mode():
            return segmenter._label(points, None, _StageClock(segmenter.device), True)

    label()  # constants are made at the first scan
    with CopiesBetweenDevices() as copies:
        of_points, image, label_image, entropy_image = label()
    assert copies.count == 0
    assert entropy_image is not None and label_image.shape == entropy_image.shape == (64, 256)
    assert [values.shape for values in of_points] == [(5000,)] * 3  # labels, confidences, entropies
    assert {t.device.type for t in (*of_points, image.channels, label_image, entropy_image)} == {"meta"}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cuda_graph_gives_the_same_labels_scan_after_scan(small_model: Path, precision: str) -> None:
    plain = Segmenter(small_model, device="cuda", precision=precision)
    graphed = Segmenter(small_model, device="cuda", precision=precision, cuda_graph=True)
    generator = np.random.default_rng(0)
    for count in (3000, 100, 3000):
        points = (generator.normal(size=(count, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
        assert (graphed.segment(points).labels == plain.segment(points).labels).mean() > 0.999


@pytest.mark.cuda
def test_labelling_on_cuda_never_waits_for_the_device(small_model: Path) -> None:
    segmenter = Segmenter(small_model, device="cuda")
    segmenter.warm_up()
    points = torch.rand(3000, 4, device="cuda") * 20
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            segmenter._label(points, None, _StageClock(segmenter.device), False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_gpu_does_all_of_the_work_of_its_segmenter(small_model: Path) -> None:
    points = (np.random.default_rng(0).normal(size=(3000, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    expected = Segmenter(small_model, device="cuda:0", precision="fp32").segment(points).labels
    second = Segmenter(small_model, device="cuda:1", precision="fp32", cuda_graph=True)
    before = torch.cuda.memory_allocated(0)
    assert (second.segment(points).labels == expected).mean() > 0.999
    assert torch.cuda.memory_allocated(0) == before and torch.cuda.current_device() == 0
