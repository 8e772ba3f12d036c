# SPDX-License-Identifier: Apache-2.0
"""The node suggests what makes labelling faster if clouds arrive faster than it labels them."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import needs_openvino
from live import Client, message, street
from programs import PythonProcess, running_node, wait_until
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.inference import model_file
from sqsegv3_ros.inference.backends import resolve_runtime
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
from sqsegv3_ros.ros import model_advice
from sqsegv3_ros.ros.diagnostics import Limits, NodeDiagnostics

ADVICE = re.compile(
    r"labelling takes (\d+) ms per cloud, but a cloud arrives every (\d+) ms: clouds are dropped\. "
    r"The model 'small' is faster, with a lower mIoU: launch with model:=small or run with -p model:=small"
)
PERIOD_S = 0.02


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client("/slow/sqsegv3")
    yield client
    client.close()


def publish_fast(client: Client, node: PythonProcess, seconds: float, until: str = "") -> None:
    """Publish clouds at 50 Hz for a time, or until the log has a text."""
    labelled = client.collect(PointCloud2, "/slow/sqsegv3/output/points")
    cloud, end = message(street(60_000)), time.monotonic() + seconds
    while time.monotonic() < end and not (until and until in node.log):
        client.publish(cloud)
        time.sleep(PERIOD_S)
    assert labelled


def test_a_model_that_is_too_slow_for_the_clouds_is_reported_once_with_both_times(client: Client) -> None:
    with running_node("-r", "__ns:=/slow", model="default", device="cpu", precision="fp32", threads=1) as node:
        publish_fast(client, node, 40, until="labelling takes")
        publish_fast(client, node, 2.5)  # two more rounds of diagnostics
        found = ADVICE.findall(node.log)
        assert len(found) == 1, node.log
        labelling_ms, period_ms = map(int, found[0])
        stages = {pair.key: float(pair.value) for pair in client.diagnostics["processing"].values if "_p50" in pair.key}
        del stages["latency_p50_ms"]
        assert labelling_ms == pytest.approx(sum(stages.values()), rel=0.5)  # others use the CPU, too
        assert 1e3 * PERIOD_S <= period_ms < labelling_ms
        assert node.stop() == 0


class Log:
    """Keeps the warnings of a logger."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, once: bool) -> None:
        self.warnings.append(text)


def too_slow() -> NodeDiagnostics:
    """Diagnostics of a node whose clouds arrive every 100 ms and take 150."""
    now = time.monotonic()
    diagnostics = NodeDiagnostics(Limits(), now - 9)
    for number in range(81):
        diagnostics.received(now - 9 + number / 10)
        diagnostics.labelled(now - 9 + number / 10, 150.0, {"network": 150.0})
    return diagnostics


def advice(segmenter: CloudSegmenter) -> list[str]:
    log = Log()
    model_advice._slower_architectures.cache_clear()
    model_advice.advise_faster_settings(log, segmenter, too_slow())
    return log.warnings


def segmenter_of(model: str | Path, **parameters: Any) -> CloudSegmenter:
    parameters |= {"model": str(model), "device": "cpu", "backend": "torch"}
    return CloudSegmenter.from_parameters(parameters, warm_up=False)


@pytest.fixture(scope="module")
def default() -> CloudSegmenter:
    return segmenter_of("default")


def test_a_damaged_small_is_not_suggested(
    default: CloudSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(advice(default)) == 1
    shipped = model_file.shipped_models()
    damaged = tmp_path / "small.pt"
    damaged.write_bytes(shipped["small"].read_bytes()[:1000])
    monkeypatch.setattr(model_file, "shipped_models", lambda: {**shipped, "small": damaged})
    assert advice(default) == []


@needs_openvino
def test_openvino_is_named_first_if_it_is_missing(default: CloudSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADVICE.fullmatch(*advice(default))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(default.segmenter, "runtime", resolve_runtime("auto", "cpu"))
    (text,) = advice(default)
    assert re.search(r"clouds are dropped\. OpenVINO is not installed; .* install .*openvino\. The model 'small'", text)


def test_another_network_gets_no_advice(small_model: Path) -> None:
    assert advice(segmenter_of(small_model)) == []
    assert advice(segmenter_of("small")) == []


@pytest.mark.long
def test_small_itself_and_a_model_that_keeps_up_are_not_reported(client: Client, small_model: Path) -> None:
    with running_node("-r", "__ns:=/slow", model="small", device="cpu", precision="fp32", threads=1) as node:
        publish_fast(client, node, 8)
        dropped = next(p.value for p in client.diagnostics["input"].values if p.key == "dropped_newer_available")
        assert int(dropped) > 0  # it is too slow
        assert "labelling takes" not in node.log
    with running_node("-r", "__ns:=/slow", model=small_model, device="cpu", threads=1) as node:
        labelled = client.collect(PointCloud2, "/slow/sqsegv3/output/points")
        for number in range(8):
            client.publish(message(street(500)))
            wait_until(lambda n=number: len(labelled) > n, 30, lambda: node.log)
            time.sleep(1)
        assert "labelling takes" not in node.log


@pytest.mark.parametrize("model", ["default", "small"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_mirrored_image_is_given_up_before_the_model(
    model: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging = segmenter_of(model, average_mirrored=True)
    runtime = replace(averaging.segmenter.runtime, device=torch.device(device))
    monkeypatch.setattr(averaging.segmenter, "runtime", runtime)
    (text,) = advice(averaging)
    assert text.endswith("dropped. average_mirrored runs the network twice: run with -p average_mirrored:=false")
