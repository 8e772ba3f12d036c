"""Model files of networks that have no deploy form: what is exported is what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sqsegv3_ros.cli import main
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.knn import KnnConfig
from sqsegv3_ros.labels import SEMANTIC_KITTI
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.deploy import deploy
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.projection import Normalization, ProjectionConfig, normalize, project
from sqsegv3_ros.segmenter import Segmenter
from sqsegv3_ros.training.checkpoint import KEY

PROJECTION = ProjectionConfig(height=8, width=64)


def write_checkpoint(path: Path, config: NetworkConfig) -> SqueezeSegV3:
    """A file as `sqsegv3 train` writes it, with random weights; returns its network."""
    torch.manual_seed(0)
    network = SqueezeSegV3(config).eval()
    description = {
        "name": "untrained",
        "network": config.to_dict(),
        "labels": SEMANTIC_KITTI.to_dict(),
        "projection": PROJECTION.to_dict(),
        "normalization": Normalization().to_dict(),
        "knn": KnnConfig("off").to_dict(),
        "training": {},
    }
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({KEY: description, "state_dict": state}, path)
    return network


@pytest.mark.parametrize(
    "config", [NetworkConfig(block="sac-s"), NetworkConfig.rangenet_21()], ids=["sac-s", "rangenet-21"]
)
def test_the_model_file_of_a_compared_network_labels_as_it_does(
    config: NetworkConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = write_checkpoint(tmp_path / "x.ckpt", config.scaled(1 / 8))
    assert main(["export", str(tmp_path / "x.ckpt"), "--output", str(tmp_path / "x.pt")]) == 0
    assert "in the form in which it was trained" in capsys.readouterr().out

    points = (np.random.default_rng(0).normal(size=(3000, 4)) * [15, 15, 1, 0.2]).astype(np.float32)
    segmenter = Segmenter(tmp_path / "x.pt", device="cpu")
    found = segmenter.segment(points)
    image = project(torch.from_numpy(points), PROJECTION)
    with torch.no_grad():
        probability = network(normalize(image, Normalization()))[0][0].softmax(0)
    labels = probability.argmax(0)
    expected = labels[image.py, image.px].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_allclose(found.confidences, probability.amax(0)[image.py, image.px].numpy(), atol=1e-5)
    stored = [name for name in segmenter.artifact.module.state_dict() if "heads" in name]
    assert stored == ["network.heads.0.conv.weight", "network.heads.0.conv.bias"]


def test_onnx_export_says_that_it_knows_the_released_block_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'sqsegv3_ros[onnx]'")
    write_checkpoint(tmp_path / "x.ckpt", NetworkConfig(block="pac").scaled(1 / 8))
    assert main(["export", str(tmp_path / "x.ckpt"), "--output", str(tmp_path / "x.onnx"), "--format", "onnx"]) == 2
    assert "the block 'sac-isk' in SqueezeSegV3's shape only, found 'pac'" in capsys.readouterr().err


def test_there_is_a_deploy_form_of_the_released_block_and_shape_only() -> None:
    for config in (NetworkConfig(block="conv"), NetworkConfig.rangenet_21(block="sac-isk")):
        with pytest.raises(UserError, match="has no deploy form, only sac-isk with 3 has"):
            deploy(SqueezeSegV3(config.scaled(1 / 8)))
