"""A trained network and its description go in, an ONNX file comes out: image (N, 5, H, W) -> logits (N, C, H, W).

For TensorRT and other runtimes. As in the deploy form, BatchNorm is folded and only the full-width head is left; the
sliding window is nine slices, where an unfold would become gathers, which runtimes are slow at.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.artifact import INFO_FILE, ModelInfo
from sqsegv3_ros.errors import OperationError, UserError, missing_package
from sqsegv3_ros.kitti import write_whole
from sqsegv3_ros.network.deploy import fold
from sqsegv3_ros.network.layers import ConvNorm, pad_azimuth
from sqsegv3_ros.network.model import DecoderStage, EncoderStage, Head, SqueezeSegV3, narrow_coordinates
from sqsegv3_ros.network.sac import TAPS, SpatiallyAdaptiveBlock

OPSET = 17
MARGIN = 1e-4
"""Where two classes' probabilities are closer than this, rounding may choose either."""


class OnnxForm(nn.Module):
    """A network as it is in eval mode, in operators that ONNX has, with its full-width head only."""

    def __init__(self, model: SqueezeSegV3):
        super().__init__()
        self.circular = model.circular
        self.stem = _Folded(model.stem)
        self.encoder = nn.ModuleList(_stage(stage) for stage in cast(Iterable[EncoderStage], model.encoder))
        self.decoder = nn.ModuleList(
            nn.ModuleList(_Folded(layer) for layer in (stage.conv, stage.squeeze, stage.expand))
            for stage in cast(Iterable[DecoderStage], model.decoder)
        )
        self.head = cast(Head, model.heads[0]).conv

    def forward(self, image: Tensor) -> Tensor:
        """Normalised, masked image (N, 5, H, W) -> logits (N, C, H, W)."""
        coordinates = image[:, 1:4]
        feature = self.stem(image)
        skips = []
        for i, stage in enumerate(cast(Iterable[nn.ModuleList], self.encoder)):
            if i < 3:
                skips.append(feature)
            for layer in stage:
                feature = layer(feature, coordinates) if isinstance(layer, _Block) else layer(feature)
            if i < 3:
                coordinates = narrow_coordinates(coordinates, self.circular)
        for i, (conv, squeeze, expand) in enumerate(cast(Iterable[Iterable[nn.Module]], self.decoder)):
            feature = conv(feature)
            feature = feature + expand(squeeze(feature))
            if i >= 2:
                feature = feature + skips.pop()
        logits: Tensor = self.head(feature)
        return logits


def _stage(stage: EncoderStage) -> nn.ModuleList:
    blocks = [_Block(block) for block in cast(Iterable[SpatiallyAdaptiveBlock], stage.blocks)]
    return nn.ModuleList([*blocks, *(_Folded(narrow) for narrow in cast(Iterable[ConvNorm], stage.narrow))])


class _Folded(nn.Module):
    """Convolution, BatchNorm and activation in one convolution and the activation."""

    def __init__(self, layer: ConvNorm):
        super().__init__()
        self.conv = copy.deepcopy(layer.conv)
        weight, bias = fold(layer.conv, layer.norm)
        self.conv.weight, self.conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.slope = layer.slope

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        image = self.conv(image)
        return F.relu(image) if self.slope == 0 else F.leaky_relu(image, self.slope)


class _Block(nn.Module):
    """A spatially-adaptive block; its channels of taps are in the order (tap, channel), as the slices come."""

    def __init__(self, block: SpatiallyAdaptiveBlock):
        super().__init__()
        self.circular = block.circular
        self.attention = copy.deepcopy(block.attention.conv)
        weight, bias = fold(block.attention.conv, block.attention.norm)
        order = torch.arange(len(bias)).view(-1, TAPS).t().flatten()
        self.attention.weight, self.attention.bias = nn.Parameter(weight[order]), nn.Parameter(bias[order])
        self.mix = _Folded(block.mix)
        self.mix.conv.weight = nn.Parameter(self.mix.conv.weight[:, order])
        self.conv = _Folded(block.conv)

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """feature (N, C, H, W), coordinates (N, 3, H, W) -> (N, C, H, W)."""
        height, width = feature.shape[2:]
        padded = F.pad(pad_azimuth(feature, 1), [0, 0, 1, 1]) if self.circular else F.pad(feature, [1, 1, 1, 1])
        windows = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        adapted = torch.cat(windows, 1) * torch.sigmoid(self.attention(coordinates))
        return feature + self.conv(self.mix(adapted))


def export_onnx(model: SqueezeSegV3, path: str | Path, info: ModelInfo) -> float:
    """Write an ONNX file for the image size of the model's projection, any number of images at once.

    Its metadata has the entry `sqsegv3.json`, what a model file says about itself. The file is run by ONNX Runtime
    before it is written; returns the largest difference of a probability. Raises OperationError where labels differ by
    more than rounding explains, UserError where onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise missing_package(error.name or "onnx", "ONNX export", "onnx") from error
    if not model.config.has_deploy_form:
        raise UserError(
            f"ONNX export knows the block 'sac-isk' in SqueezeSegV3's shape only, found '{model.config.block}' with "
            f"{model.config.halvings} halvings; export a model file (--format torchscript)"
        )
    form = OnnxForm(model).eval()
    size = (info.projection.height, info.projection.width)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, model.in_channels, *size, generator=generator)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is told which exporter is the newer one, for every call
        torch.onnx.export(
            form, (image,), cast(Any, buffer), dynamo=False, opset_version=OPSET, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    graph = onnx.load_from_string(buffer.getvalue())
    entry = graph.metadata_props.add()
    entry.key, entry.value = INFO_FILE, json.dumps(info.to_dict())
    data = graph.SerializeToString()

    with torch.no_grad():
        expected = model.eval()(image)[0].softmax(1).numpy()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0]).softmax(1).numpy()
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > MARGIN
    wrong = int((expected.argmax(1) != found.argmax(1))[clear].sum())
    if wrong:
        raise OperationError(
            f"ONNX Runtime labels {wrong} of {clear.size} pixels of a test image otherwise than torch; nothing written"
        )
    write_whole(path, data)
    return float(np.abs(expected - found).max())


def read_onnx_info(path: str | Path) -> ModelInfo:
    """The description in an ONNX file written by `export_onnx`. Raises UserError where there is none."""
    import onnx

    for entry in onnx.load(str(path)).metadata_props:
        if entry.key == INFO_FILE:
            return ModelInfo.from_dict(json.loads(entry.value))
    raise UserError(f"{path} holds no {INFO_FILE}: it was not exported by this package")
