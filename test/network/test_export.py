# SPDX-License-Identifier: Apache-2.0
"""The exported form agrees with the training model, as TorchScript and as ONNX, for every block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import PROJECTION, write_checkpoint
from torch import Tensor, nn

from sqsegv3_ros.cli import main
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.model_file import default_model, is_model_file, load_model, read_info, read_training_state
from sqsegv3_ros.inference.range_image import Normalization, normalize, project
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.network.config import BLOCKS, NetworkConfig
from sqsegv3_ros.network.export import trace
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.checkpoint import load_weights

MARGIN = 1e-4
SMALL = NetworkConfig.ssgv3_21(attention_kernel=1).scaled(1 / 8)


def random_network(config: NetworkConfig, seed: int = 0) -> SqueezeSegV3:
    """Make a network in which every layer matters, with random BatchNorms and a head with large weights."""
    torch.manual_seed(seed)
    model = SqueezeSegV3(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    nn.init.normal_(model.heads[0].conv.weight, 0, 0.3)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.randn(2, 5, 8, 64))
    return model.eval()


def assert_agree(model: SqueezeSegV3, exported: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(image)[0].softmax(1), exported(image).softmax(1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    top = expected.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > MARGIN
    assert clear.float().mean() > 0.9
    assert (found.argmax(1) == expected.argmax(1))[clear].all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(NetworkConfig.ssgv3_21(), id="21"),
        pytest.param(NetworkConfig.ssgv3_53(), id="53", marks=pytest.mark.long),
    ],
)
def test_exported_full_size_networks_agree_with_the_training_model(config: NetworkConfig) -> None:
    model = random_network(config)
    exported = trace(model)
    assert_agree(model, exported, torch.randn(1, 5, 16, 64))
    assert_agree(model, exported, torch.randn(2, 5, 8, 96))


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_exported_form_runs_at_any_height_width_and_batch_size(kernel: int, padding: str) -> None:
    config = NetworkConfig.ssgv3_21(attention_kernel=kernel, azimuth_padding=padding, num_classes=7).scaled(3 / 16)
    model = random_network(config)
    exported = trace(model)
    for shape in ((1, 5, 16, 64), (2, 5, 9, 128), (1, 5, 3, 72)):
        assert_agree(model, exported, torch.randn(shape))


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_can_be_exported(block: str, padding: str) -> None:
    model = random_network(NetworkConfig(block=block, azimuth_padding=padding, attention_kernel=3).scaled(1 / 8))
    assert_agree(model, trace(model), torch.randn(1, 5, 8, 128))


def test_rangenet_shape_can_be_exported() -> None:
    model = random_network(NetworkConfig.rangenet_21().scaled(1 / 8))
    assert_agree(model, trace(model), torch.randn(1, 5, 8, 128))


def test_network_with_large_logits_can_be_exported() -> None:
    """As of a 53 with random weights: rounding is large in absolute terms and small relative to the logits."""
    model = random_network(SMALL)
    with torch.no_grad():
        model.heads[0].conv.weight.mul_(1e4)
    exported, image = trace(model), torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        expected, found = model.double()(image.double())[0], exported(image)
    assert expected.abs().max() > 5000
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = random_network(SMALL)
    model.stem.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"not finite: stem\.conv\.weight"):
        trace(model)


def test_export_does_not_change_the_network() -> None:
    model = random_network(SMALL).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_the_full_resolution_head_is_exported_and_no_batchnorm() -> None:
    model = random_network(SMALL)
    state = trace(model).state_dict()
    assert [name for name in state if "heads" in name] == ["network.heads.0.conv.weight", "network.heads.0.conv.bias"]
    assert not [name for name in state if "norm" in name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_full_precision(dtype: torch.dtype) -> None:
    model = random_network(NetworkConfig.ssgv3_21(attention_kernel=3).scaled(1 / 8))
    exported, image = trace(model).to(dtype), torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        expected, found = model(image)[0].softmax(1), exported(image.to(dtype))
    assert found.dtype == dtype
    assert (found.float().softmax(1) - expected).abs().mean() < (2e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize(
    "config", [NetworkConfig(block="sac-s"), NetworkConfig.rangenet_21()], ids=["sac-s", "rangenet-21"]
)
def test_model_file_labels_as_the_training_model_does(config: NetworkConfig, tmp_path: Path) -> None:
    network = write_checkpoint(tmp_path / "x.ckpt", config.scaled(1 / 8))
    assert main(["export", str(tmp_path / "x.ckpt"), "--output", str(tmp_path / "x.pt")]) == 0

    points = (np.random.default_rng(0).normal(size=(3000, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    found = Segmenter(tmp_path / "x.pt", device="cpu", precision="fp32").segment(points)
    image = project(torch.from_numpy(points), PROJECTION)
    with torch.no_grad():
        probability = network(normalize(image, Normalization()))[0][0].softmax(0)
    labels = probability.argmax(0)
    expected = labels[image.py, image.px].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_allclose(found.confidences, probability.amax(0)[image.py, image.px].numpy(), atol=1e-5)


@pytest.mark.slow
def test_onnx_export_of_a_checkpoint_and_of_a_shipped_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'sqsegv3_ros[onnx]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'sqsegv3_ros[onnx]'")
    write_checkpoint(tmp_path / "x.ckpt", NetworkConfig(block="pac").scaled(1 / 8))
    for source in (str(tmp_path / "x.ckpt"), "default"):
        target = tmp_path / f"{Path(source).stem}.onnx"
        assert main(["export", source, "--output", str(target), "--format", "onnx"]) == 0
        assert [entry.key for entry in onnx.load(str(target)).metadata_props] == ["sqsegv3.json"]


def test_exporting_a_model_file_again_keeps_its_provenance(tmp_path: Path) -> None:
    again = tmp_path / "again.pt"
    assert main(["export", "default", "--output", str(again), "--width", "128", "--note", "narrow"]) == 0
    old, new = read_info(default_model()), read_info(again)
    assert new.projection.width == 128 and new.provenance["note"] == "narrow"
    assert new.licence == old.licence and new.provenance["data"] == old.provenance["data"]


def test_training_starts_from_the_state_in_a_model_file() -> None:
    path = default_model()
    assert path is not None and is_model_file(path) and not is_model_file(path.with_suffix(".md"))
    config = NetworkConfig.from_dict(read_info(path).architecture)
    network = SqueezeSegV3(config)
    assert str(path) in load_weights(network, path)
    state = read_training_state(path)
    assert any(name.startswith("heads.4.") for name in state)  # with the auxiliary heads
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    image = torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        found = network.eval()(image)[0].softmax(1)
        torch.testing.assert_close(found, load_model(path).network(image).softmax(1), rtol=0, atol=2e-3)  # as float16
    with pytest.raises(UserError, match="do not fit the network"):
        load_weights(SqueezeSegV3(config.scaled(0.5)), path)


def test_training_starts_from_a_model_given_by_its_name() -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'sqsegv3_ros[train]'")
    from sqsegv3_ros.training.module import SegmentationModule

    path = default_model()
    assert path is not None
    config = NetworkConfig.from_dict(read_info(path).architecture)
    network = SqueezeSegV3(config)
    load_weights(network, path)
    by_name = SegmentationModule(network=config, start_from="default")
    assert torch.equal(by_name.network.stem.conv.weight, network.stem.conv.weight)
    with pytest.raises(UserError, match="defualt not found: no such file"):
        SegmentationModule(network=config, start_from="defualt")
