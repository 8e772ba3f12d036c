# SPDX-License-Identifier: Apache-2.0
"""Export of a trained SqueezeSegV3 as a model file (TorchScript) or as ONNX.

The exported form is the network in eval mode with every BatchNorm folded into the convolution before it and the
full-resolution head only. Spatially-adaptive convolution becomes nine slices of the padded features, times the
attention, times a 1x1 convolution: ordinary operators that torch (CPU, CUDA), OpenVINO, ONNX Runtime and TensorRT
run as they are. It is traced, and takes any height and any width that the network allows.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.errors import OperationError, UserError, missing_package
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.inference import torchscript
from sqsegv3_ros.inference.model_file import INFO_FILE, ModelInfo, save_model
from sqsegv3_ros.network.layers import ConvNorm, pad_azimuth
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.network.sac import TAPS, Attention, SpatiallyAdaptiveBlock

ONNX_OPSET = 17
_TOLERANCE = 1e-8
"""Largest difference between training model and exported form in float64, relative to the largest logit; rounding
gives 1e-13."""
_MARGIN = 1e-4
"""Rounding may swap the two best classes of a pixel if their probabilities are closer than this."""


class ExportedNetwork(nn.Module):
    """The exported form of a `SqueezeSegV3`, in the dtype of the network, on the CPU; the network is not changed."""

    def __init__(self, model: SqueezeSegV3):
        super().__init__()
        self.network = copy.deepcopy(model).cpu().eval()
        self.network.heads = self.network.heads[:1]
        for module in self.network.modules():
            if isinstance(module, (ConvNorm, Attention)):
                fold_norm(module)
        for stage in self.network.encoder:
            for i, block in enumerate(cast(nn.ModuleList, stage.blocks)):
                if isinstance(block, SpatiallyAdaptiveBlock):
                    cast(nn.ModuleList, stage.blocks)[i] = SlicedBlock(block)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (N, C, H, W) from the normalised, masked image (N, 5, H, W)."""
        logits: Tensor = self.network(image)[0]
        return logits


class SlicedBlock(nn.Module):
    """A spatially-adaptive block whose windows are concatenated slices, so that its channels are tap-major.

    It computes one row of three taps at a time, which takes a third of the memory of all nine, and no longer.
    """

    def __init__(self, block: SpatiallyAdaptiveBlock):
        super().__init__()
        self.circular, self.conv = block.circular, block.conv
        attention, mix = block.attention.conv, block.mix.conv
        assert attention.bias is not None
        # from (channel, tap) to (tap, channel), the order in which slices join
        tap_major = torch.arange(len(attention.bias)).view(-1, TAPS).t().flatten()
        self.attention, self.mix = nn.ModuleList(), nn.ModuleList()
        for row, of_row in enumerate(tap_major.chunk(3)):
            self.attention.append(_with_weights(attention, attention.weight[of_row], attention.bias[of_row]))
            self.mix.append(_with_weights(mix, mix.weight[:, of_row], mix.bias if row == 0 else None))

    def forward(self, feature: Tensor, coordinates: Tensor) -> Tensor:
        """Compute features (N, C, H, W) from features (N, C, H, W) and coordinates (N, 3, H, W)."""
        height, width = feature.shape[2:]
        padded = F.pad(pad_azimuth(feature, 1), [0, 0, 1, 1]) if self.circular else F.pad(feature, [1, 1, 1, 1])
        rows: list[Tensor] = []
        for y, (attention, mix) in enumerate(zip(self.attention, self.mix, strict=True)):
            taps = torch.cat([padded[:, :, y : y + height, x : x + width] for x in range(3)], 1)
            rows.append(mix(taps * torch.sigmoid(attention(coordinates))))
        return feature + self.conv(F.relu(rows[0] + rows[1] + rows[2]))


def _with_weights(conv: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    conv = copy.deepcopy(conv)
    conv.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    conv.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    return conv


def fold_norm(layer: ConvNorm | Attention) -> None:
    """Fold a layer's BatchNorm, as it is in eval mode, into the weights of its convolution."""
    conv, norm = layer.conv, layer.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.detach().double() * scale.detach().view(shape)).to(dtype))
    conv.bias = nn.Parameter(((bias - norm.running_mean.double()) * scale + norm.bias.double()).detach().to(dtype))
    layer.norm = cast(Any, nn.Identity())


def trace(model: SqueezeSegV3) -> torch.jit.ScriptModule:
    """Trace the exported form.

    Args:
        model: The network; it is not changed.

    Returns:
        TorchScript module in float32 on the CPU that maps images (N, 5, H, W) to logits (N, C, H, W), for any H and W
        that the network allows.

    Raises:
        UserError: A weight is not finite.
        OperationError: The exported form does not compute what the network computes.
    """
    state = model.state_dict()
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise UserError(f"the network has weights that are not finite: {', '.join(broken[:4])}; nothing to export")
    # compare in float64, where rounding cannot hide or mimic an error of the exported form
    exact = copy.deepcopy(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    width = max(64, model.config.minimum_width)
    images = [
        torch.randn(1, model.config.in_channels, *size, generator=generator).double()
        for size in ((4, width), (8, 2 * width))
    ]
    with torch.no_grad(), torchscript.as_recorded():
        traced = torchscript.trace(ExportedNetwork(exact), images[0])
        for image in images:
            expected = exact(image)[0]
            difference = float((traced(image) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            if not difference < _TOLERANCE:
                raise OperationError(
                    f"the exported form differs from the network by {difference:.2g} of the largest logit "
                    f"(allowed: {_TOLERANCE:g}); nothing written"
                )
    return _without_source_paths(traced.float())


def export_model(model: SqueezeSegV3, path: str | Path, *, info: ModelInfo, half: bool = False) -> ModelInfo:
    """Write the model file of a network; the network is not changed.

    Args:
        model: The network with its auxiliary heads; its state goes into the file for further training.
        path: Model file to write.
        info: Description of the model; this function sets its architecture, weights and widths.
        half: Store the exported weights as float16, half the size.

    Returns:
        The description as written.

    Raises:
        UserError: The label set does not fit the network, or a weight is not finite.
        OperationError: The exported form does not compute what the network computes.
    """
    if len(info.labels) != model.config.num_classes:
        raise UserError(
            f"the network has {model.config.num_classes} classes, label set '{info.labels.name}' has {len(info.labels)}"
        )
    traced = trace(model)
    info = dataclasses.replace(
        info,
        architecture=model.config.to_dict(),
        width_multiple=model.config.width_divisor,
        minimum_width=model.config.minimum_width,
    )
    return save_model(path, traced.half() if half else traced, info, model.state_dict())


def export_onnx(model: SqueezeSegV3, path: str | Path, info: ModelInfo) -> float:
    """Write an ONNX file for the image size of the model's projection and any batch size.

    ONNX Runtime runs the file before it is written. Its metadata entry `sqsegv3.json` is the model's description.

    Args:
        model: The network; it is not changed.
        path: ONNX file to write.
        info: Description of the model.

    Returns:
        The largest difference of a probability between ONNX Runtime and torch on a test image.

    Raises:
        UserError: onnx or onnxruntime is not installed.
        OperationError: ONNX Runtime gives labels that rounding does not explain.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise missing_package(error.name or "onnx", "ONNX export", "onnx") from error
    form = ExportedNetwork(model).float()
    size = (info.projection.height, info.projection.width)
    image = torch.randn(1, model.config.in_channels, *size, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch recommends its newer exporter on every call
        torch.onnx.export(
            form, (image,), cast(Any, buffer), dynamo=False, opset_version=ONNX_OPSET, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
        expected = model.eval()(image)[0].softmax(1)
    graph = onnx.load_from_string(buffer.getvalue())
    entry = graph.metadata_props.add()
    entry.key, entry.value = INFO_FILE, json.dumps(info.to_dict())
    data = graph.SerializeToString()

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0]).softmax(1)
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > _MARGIN
    wrong = int((expected.argmax(1) != found.argmax(1))[clear].sum())
    if wrong:
        raise OperationError(
            f"ONNX Runtime labels {wrong} of {clear.numel()} pixels of a test image differently from torch; "
            "nothing written"
        )
    write_atomically(path, data)
    return float((expected - found).abs().max())


def _without_source_paths(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The module without the paths of its source files on the exporting machine."""
    saved, stripped = io.BytesIO(), io.BytesIO()
    torchscript.save(traced, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(stripped, "w") as target:
        for entry in source.namelist():
            if not entry.endswith(".debug_pkl"):
                target.writestr(entry, source.read(entry))
    stripped.seek(0)
    return torchscript.load(stripped)
