"""A trained network and what belongs to it -> a model file: the deploy form as TorchScript with its description."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

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
    Raises UserError where the label set does not fit the network, OperationError where the deploy form does not
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
    """The scripted deploy form, float32, checked against the network itself on a small image of noise."""
    # not frozen: that would make constants of the weights and the tile size, which the loader converts and chooses
    scripted = _without_source_paths(torch.jit.script(deploy(model)))
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
            f"the deploy form differs from the network by {difference:.2g} in a softmax (allowed: {_TOLERANCE}); "
            "are its weights finite?"
        )
    return scripted


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
