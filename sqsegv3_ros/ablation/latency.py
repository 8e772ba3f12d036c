"""Networks come in; the time that one block of each takes, as the paper's table 3 has it, goes out.

What is timed is a block at 32 channels, then a 3x3 convolution 32 -> 64 of stride 1, on an image of 64 x 512 pixels
(paper, section 6.4), with random weights. The variants take turns, so that whatever else runs on the machine meets all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from sqsegv3_ros.network.blocks import make_block
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.deploy import TILE_PIXELS, DeployedBlock
from sqsegv3_ros.network.folded import folded_conv
from sqsegv3_ros.network.layers import AzimuthConv2d, ConvNorm
from sqsegv3_ros.network.memory import memory_for
from sqsegv3_ros.network.sac import SpatiallyAdaptiveBlock

CHANNELS, OUT_CHANNELS = 32, 64
HEIGHT, WIDTH = 64, 512
Step = Callable[[], Tensor]


def measure(
    networks: Mapping[str, NetworkConfig],
    *,
    repeat: int,
    device: torch.device,
    deployed: bool = False,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> dict[str, dict[str, float]]:
    """By name 'median_ms' and 'min_ms' by the clock, and on a CPU 'cpu_ms', the median of the CPU time of all threads.

    CPU time hardly changes when other programs take their share of the machine. One run more than `repeat` is not
    counted.

    deployed: the deploy form instead of the form that is trained; every network must have one.
    """
    steps = {name: (_deployed if deployed else _trained)(c, device, height, width) for name, c in networks.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    with torch.inference_mode():
        for turn in range(repeat + 1):
            for name, step in steps.items():
                elapsed = _time(step, device)
                if turn:
                    times[name].append(elapsed)
    result = {}
    for name, values in times.items():
        clock, cpu = ([1e3 * value for value in column] for column in zip(*values, strict=True))
        result[name] = {"median_ms": statistics.median(clock), "min_ms": min(clock)}
        if device.type == "cpu":
            result[name]["cpu_ms"] = statistics.median(cpu)
    return result


def _time(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds by the clock and of CPU time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cpu_start


def _layers(config: NetworkConfig) -> tuple[nn.Module, ConvNorm]:
    torch.manual_seed(0)
    convolution = AzimuthConv2d(CHANNELS, OUT_CHANNELS, 3, bias=False, circular=config.circular)
    return make_block(CHANNELS, config).eval(), ConvNorm(convolution, momentum=0.01, slope=0.1).eval()


def _trained(config: NetworkConfig, device: torch.device, height: int, width: int) -> Step:
    block, after = (layer.to(device) for layer in _layers(config))
    feature = torch.randn(1, CHANNELS, height, width, device=device)
    coordinates = torch.randn(1, 3, height, width, device=device)
    return lambda: cast(Tensor, after(block(feature, coordinates)))


def _deployed(config: NetworkConfig, device: torch.device, height: int, width: int) -> Step:
    block, after = _layers(config)
    fast = DeployedBlock(cast(SpatiallyAdaptiveBlock, block)).to(device)
    fast_after = folded_conv(after).to(device)
    feature = torch.randn(1, height, width, CHANNELS, device=device)
    coordinates = torch.randn(1, height, width, 3, device=device)
    tile = TILE_PIXELS if device.type == "cpu" else 0
    return lambda: cast(
        Tensor, fast_after(fast(feature, coordinates, None, tile, 1, memory_for(feature), True), 1, memory_for(feature))
    )
