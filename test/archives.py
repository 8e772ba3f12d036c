# SPDX-License-Identifier: Apache-2.0
"""Archives of bags to label, good and bad ones, and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.rosbag_reader import BagReader

BAD_CLOUD = ["x", "y", "ground_truth"]  # fields of a cloud without z
PERSON = SEMANTIC_KITTI.index("person")


def call(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def truncate(bag: Path) -> Path:
    """Cut the end off a bag's only storage file."""
    file = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    file.write_bytes(file.read_bytes()[:-500])
    return bag


def fragile_model(model: Path, path: Path) -> Path:
    """A copy of a model whose network raises an error for an intensity far out of range."""
    import torch

    from sqsegv3_ros.inference.model_file import load_model, read_training_state, save_model

    class Fragile(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if bool(image.abs().max() > 1e4):
                image = image.view(-1, 7)  # of a size that is no multiple of 7
            return self.network(image)

    loaded = load_model(model)
    save_model(path, torch.jit.script(Fragile(loaded.network)), loaded.info, read_training_state(model))
    return path


def broken_scans(found: list[Any]) -> list[Any]:
    """Scans that the fragile model raises an error for."""
    for scan in found:
        scan["intensity"] = 1e6
    return found


def records(manifest: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings, and the last record of every output."""
    settings = json.loads(manifest.read_text().splitlines()[0])["settings"]
    return settings, {record["name"]: record for record in all_records(manifest)}


def all_records(manifest: Path) -> list[dict[str, Any]]:
    """The records in order, without the settings and the lists of outputs."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()[1:]]
    return [line for line in lines if "outputs" not in line]


def clouds_of(bag: Path, topic: str = "/lidar") -> list[Any]:
    with BagReader(bag) as reader:
        return [reader.cloud(message) for message in reader.messages(topic)]


def messages_of(bag: Path) -> list[tuple[str, int, bytes]]:
    """Topic, time of receipt and bytes of every message."""
    with BagReader(bag) as reader:
        return [(m.connection.topic, m.time_ns, bytes(m.raw)) for m in reader.messages()]
