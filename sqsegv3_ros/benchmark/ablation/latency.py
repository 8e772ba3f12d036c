# SPDX-License-Identifier: Apache-2.0
"""Latency of the networks that the paper compares: of one block, as in its table 3, and of the exported network.

A block is timed in its training form at 32 channels, followed by a 3x3 convolution 32 -> 64 of stride 1, on an image of
64 x 512 pixels (paper, section 6.4), with random weights. The exported network is what runs on a robot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from sqsegv3_ros.benchmark.networks import random_info, random_network
from sqsegv3_ros.benchmark.stages import distribution
from sqsegv3_ros.inference.backends import Runtime, make_backend
from sqsegv3_ros.inference.model_file import ModelFile
from sqsegv3_ros.network.blocks import make_block
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.export import trace
from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm

CHANNELS, OUT_CHANNELS = 32, 64
HEIGHT, WIDTH = 64, 512
Step = Callable[[], object]


def measure_blocks(
    networks: Mapping[str, NetworkConfig],
    device: torch.device,
    repeat: int,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> dict[str, dict[str, float]]:
    """Time one block of each network; see `_measure` for the result."""
    return _measure({name: _block(c, device, height, width) for name, c in networks.items()}, device, repeat)


def measure_exported(
    networks: Mapping[str, NetworkConfig], runtime: Runtime, repeat: int, *, height: int = HEIGHT, width: int = WIDTH
) -> dict[str, dict[str, float]]:
    """Time each network in its exported form, one after another to save memory; see `_measure` for the result."""
    result: dict[str, dict[str, float]] = {}
    for name, config in networks.items():
        result |= _measure({name: _exported(config, runtime, height, width)}, runtime.device, repeat)
    return result


def _measure(steps: Mapping[str, Step], device: torch.device, repeat: int) -> dict[str, dict[str, float]]:
    """Time the steps in turn, so that other load meets all of them. One run more than `repeat` warms up.

    Returns:
        By name 'median_ms' and 'min_ms' of wall time, and on a CPU 'cpu_ms', the median CPU time of all threads, which
        hardly changes when other programs take their share of the machine.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    with torch.inference_mode():
        for turn in range(repeat + 1):
            for name, step in steps.items():
                elapsed = _time(step, device)
                if turn:
                    times[name].append(elapsed)
    result = {}
    for name, values in times.items():
        wall, cpu = (distribution([1e3 * value for value in column]) for column in zip(*values, strict=True))
        result[name] = {"median_ms": wall["median"], "min_ms": wall["min"]}
        if device.type == "cpu":
            result[name]["cpu_ms"] = cpu["median"]
    return result


def _time(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cpu_start


def _block(config: NetworkConfig, device: torch.device, height: int, width: int) -> Step:
    torch.manual_seed(0)
    block: nn.Module = make_block(CHANNELS, config).to(device).eval()
    convolution = AzimuthConv2d(CHANNELS, OUT_CHANNELS, 3, bias=False, circular=config.circular)
    after = ConvNorm(convolution, momentum=0.01, slope=0.1).to(device).eval()
    feature = torch.randn(1, CHANNELS, height, width, device=device)
    coordinates = torch.randn(1, 3, height, width, device=device)
    return lambda: after(block(feature, coordinates))


def _exported(config: NetworkConfig, runtime: Runtime, height: int, width: int) -> Step:
    network = trace(random_network(config))
    model = ModelFile(random_info(config, height, width), network, Path(config.block), "")
    backend = make_backend(model, runtime, height, width)
    image = torch.randn(1, config.in_channels, height, width, device=runtime.device)
    return lambda: backend(image)
