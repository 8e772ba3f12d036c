"""A trained network and what belongs to it -> a model file: TorchScript and its description.

The file holds the deploy form. What has none, the blocks that the paper compares and RangeNet's shape, is exported in
the form in which it was trained, without the heads that only teach: as true, but slower.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqsegv3_ros.artifact import ModelInfo, save_artifact
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.knn import KnnConfig
from sqsegv3_ros.labels import LabelSet
from sqsegv3_ros.network.deploy import deploy
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.projection import Normalization, ProjectionConfig

_TOLERANCE = 1e-4  # of a softmax between both forms; rounding stays below 1e-6


def export_artifact(
    model: SqueezeSegV3,
    path: str | Path,
    *,
    name: str,
    labels: LabelSet,
    projection: ProjectionConfig,
    normalization: Normalization,
    knn: KnnConfig,
    provenance: Mapping[str, Any],
    sensor_height_m: float | None = None,
    half: bool = False,
) -> ModelInfo:
    """Write the model file of a network as it is in eval mode; the network itself is not changed.

    half: store float16 weights, half the size. The other arguments are the entries of `ModelInfo`.
    Raises UserError where the label set does not fit the network, OperationError where the exported form does not
    compute what the network computes.
    """
    if len(labels) != model.config.num_classes:
        raise UserError(
            f"the network has {model.config.num_classes} classes, label set '{labels.name}' has {len(labels)}"
        )
    info = ModelInfo(
        name=name,
        architecture=model.config.to_dict(),
        labels=labels,
        projection=projection,
        normalization=normalization,
        knn=knn,
        sensor_height_m=sensor_height_m,
        provenance=provenance,
    )
    scripted = script(model)
    return save_artifact(path, scripted.half() if half else scripted, info)


def script(model: SqueezeSegV3) -> torch.jit.ScriptModule:
    """The scripted form that is exported, float32, checked against the network itself on a small image of noise."""
    form = deploy(model) if model.config.has_deploy_form else TrainingForm(model).eval()
    # not frozen: that would make constants of the weights and the tile size, which the loader converts and chooses
    scripted = _without_source_paths(torch.jit.script(form))
    width = max(64, model.minimum_width)
    image = torch.randn(1, model.in_channels, 8, width, generator=torch.Generator().manual_seed(0))
    training, device = model.training, next(model.parameters()).device
    with torch.no_grad():
        expected = model.eval()(image.to(device))[0].softmax(1).cpu()
        found = scripted(image).softmax(1)
    model.train(training)
    difference = float((found - expected).abs().max())
    if not difference < _TOLERANCE:
        raise OperationError(
            f"the exported form differs from the network by {difference:.2g} in a softmax (allowed: {_TOLERANCE}); "
            "are its weights finite?"
        )
    return scripted


class TrainingForm(nn.Module):
    """A network as it is trained, float32, on the CPU, with its full-width head only; the network is not changed."""

    def __init__(self, model: SqueezeSegV3):
        super().__init__()
        self.in_channels = model.in_channels
        self.width_divisor = model.config.width_divisor
        self.minimum_width = model.minimum_width
        self.network = copy.deepcopy(model).cpu().float()
        self.network.heads = self.network.heads[:1]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised, masked image (N, 5, H, W) -> logits (N, C, H, W).

        Raises ValueError (torch.jit.Error once scripted) where the image has the wrong rank, channels or width.
        """
        if image.dim() != 4 or image.size(1) != self.in_channels:
            raise ValueError(f"network: expected an image (N, {self.in_channels}, H, W), found {image.size()}")
        if image.size(3) % self.width_divisor != 0 or image.size(3) < self.minimum_width:
            raise ValueError(
                f"network: the image width must be a multiple of {self.width_divisor}, at least {self.minimum_width}, "
                f"found {image.size(3)}"
            )
        return self.network(image)[0]


def _without_source_paths(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The same module, forgetting where on the exporting machine its source files lie, as saved files would tell."""
    saved, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(scripted, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(stripped, "w") as target:
        for entry in source.namelist():
            if not entry.endswith(".debug_pkl"):
                target.writestr(entry, source.read(entry))
    stripped.seek(0)
    return torch.jit.load(stripped)
