# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints with random weights, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.checkpoint import KEY

PROJECTION = ProjectionConfig(height=8, width=64)


def write_checkpoint(path: Path, config: NetworkConfig) -> SqueezeSegV3:
    """Write a checkpoint as `sqsegv3 train` does. Returns its network."""
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
