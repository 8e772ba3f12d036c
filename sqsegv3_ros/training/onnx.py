"""A trained network and its description go in, an ONNX file comes out: image (N, 5, H, W) -> logits (N, C, H, W).

For TensorRT and other runtimes. The weights are those of the deploy form (BatchNorm folded, full-width head only); the
sliding window is nine slices, which every runtime fuses, where an unfold would become gathers.
"""

from __future__ import annotations

import io
import json
import math
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
from sqsegv3_ros.network.deploy import (
    DeployedBlock,
    DeployedDecoderStage,
    DeployedEncoderStage,
    DeployedSqueezeSegV3,
    FoldedConv,
    deploy,
)
from sqsegv3_ros.network.layers import pad_azimuth
from sqsegv3_ros.network.model import SqueezeSegV3, narrow_coordinates

OPSET = 17
MARGIN = 1e-4
"""Where two classes' probabilities are closer than this, rounding may choose either."""


class OnnxForm(nn.Module):
    """The deploy form in operators that ONNX has, channels first."""

    def __init__(self, deployed: DeployedSqueezeSegV3):
        super().__init__()
        self.deployed = deployed

    def forward(self, image: Tensor) -> Tensor:
        """Normalised, masked image (N, 5, H, W) -> logits (N, C, H, W)."""
        net = self.deployed
        coordinates = image[:, 1:4]
        feature = _convolve(net.stem, image)
        skips = []
        for i, stage in enumerate(cast(Iterable[DeployedEncoderStage], net.encoder)):
            if i < 3:
                skips.append(feature)
            for block in cast(Iterable[DeployedBlock], stage.blocks):
                feature = _block(block, feature, coordinates, net.attention_kernel)
            for narrow in cast(Iterable[FoldedConv], stage.narrow):
                feature = _convolve(narrow, feature)
            if i < 3:
                coordinates = narrow_coordinates(coordinates, net.circular)
        for i, decoder in enumerate(cast(Iterable[DeployedDecoderStage], net.decoder)):
            feature = _interleaved(_convolve(decoder.conv, feature), decoder.out_channels)
            feature = feature + _convolve(decoder.expand, _convolve(decoder.squeeze, feature))
            if i >= 2:
                feature = feature + skips.pop()
        return _convolve(net.head, feature)


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
    form = OnnxForm(deploy(model)).eval()
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


def _convolve(layer: FoldedConv, image: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C', H', W')."""
    pad = layer.reach[1]
    if layer.circular and pad:
        image, pad = pad_azimuth(image, pad), 0
    out = F.conv2d(image, layer.weight, layer.bias, layer.stride, (layer.reach[0], pad))
    if layer.slope == 0.0:
        return F.relu(out)
    return out if layer.slope == 1.0 else F.leaky_relu(out, layer.slope)


def _interleaved(image: Tensor, channels: int) -> Tensor:
    """(N, 2 C, H, W) with the even columns' channels first -> (N, C, H, 2 W); unchanged where it has C channels."""
    if image.shape[1] == channels:
        return image
    height, width = image.shape[2:]
    halves = image.reshape(-1, 2, channels, height, width).permute(0, 2, 3, 4, 1)
    return halves.reshape(-1, channels, height, 2 * width)


def _block(block: DeployedBlock, feature: Tensor, coordinates: Tensor, kernel: int) -> Tensor:
    """feature (N, C, H, W), coordinates (N, 3, H, W) -> (N, C, H, W)."""
    channels, (height, width) = feature.shape[1], feature.shape[2:]
    matrix = block.attention / -math.log2(math.e)  # it is made for powers of 2
    weight = matrix[:-1].t().reshape(-1, kernel, kernel, 3).permute(0, 3, 1, 2)
    reach = kernel // 2
    padded = pad_azimuth(coordinates, reach) if block.circular and reach else coordinates
    attention = torch.sigmoid(F.conv2d(padded, weight, matrix[-1], 1, (reach, 0 if block.circular else reach)))
    around = F.pad(pad_azimuth(feature, 1), [0, 0, 1, 1]) if block.circular else F.pad(feature, [1, 1, 1, 1])
    windows = [around[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    mixed = F.conv2d(torch.cat(windows, 1) * attention, block.mix.reshape(channels, -1, 1, 1), block.mix_bias)
    return feature + _convolve(block.conv, F.relu(mixed))
