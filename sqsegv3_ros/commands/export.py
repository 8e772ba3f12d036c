# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 export`: export a training checkpoint, or a model file again, as a model file or as ONNX."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqsegv3_ros.commands.options import add_json, add_output, check_output, model_results, print_results
from sqsegv3_ros.errors import UserError, require

if TYPE_CHECKING:
    from sqsegv3_ros.data.label_set import LabelSet
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.network.config import NetworkConfig

FORMATS = ("torchscript", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    checkpoint = "checkpoint of `sqsegv3 train` (best.ckpt), or model file to export again"
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=checkpoint)
    add_output(parser, "MODEL")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--half", action="store_true", help="store float16 weights: half the size")
    parser.add_argument("--name", help="name of the model (default: its name in training)")
    parser.add_argument("--licence", help="licence of the weights; the licence of the training data applies too")
    parser.add_argument("--note", help="further notes for users of the model")
    parser.add_argument("--knn", choices=("off", "safe", "official"), help="label refinement (default: as trained)")
    parser.add_argument("--knn-k", type=int, metavar="K", help="number of neighbours that vote (default: as trained)")
    parser.add_argument("--knn-search", type=int, metavar="S", help="KNN window size in pixels (default: as trained)")
    bias = "add X to the logit of a class: labels it more often, or less if negative; several are given as A=X B=Y"
    parser.add_argument("--class-bias", nargs="*", action="extend", default=[], metavar="CLASS=X", help=bias)
    calibrate = "choose such biases from the labelled scans of SemanticKITTI data sets or of their folders sequences/NN"
    parser.add_argument("--calibrate", nargs="+", action="extend", type=Path, default=[], metavar="DIR", help=calibrate)
    parser.add_argument("--width", type=int, metavar="W", help="columns of the image (default: as trained)")
    height = "height above ground of the sensor that recorded the training data (default: as configured in training)"
    parser.add_argument("--sensor-height-m", type=float, metavar="H", help=height)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Export. Returns the exit code."""
    from sqsegv3_ros.training.checkpoint import load_network, read_trained

    check_output(args.output, ".onnx" if args.format == "onnx" else ".pt", args.force)
    if args.half and args.format == "onnx":
        raise UserError("--half is for model files; TensorRT sets the precision when it builds its engine")
    valid = args.sensor_height_m is None or 0 < args.sensor_height_m < 100
    require(valid, "--sensor-height-m", "between 0 and 100 metres", args.sensor_height_m)
    info, weights = read_trained(args.checkpoint)
    model = load_network({"network": info.architecture}, weights)
    info = _with_options(info, model.config, args)
    biases = _class_biases(args.class_bias, info.labels)
    if args.calibrate:
        from sqsegv3_ros.training.calibration import choose_biases

        for name, value in choose_biases(model, info, args.calibrate).items():
            biases[name] = biases.get(name, 0.0) + value
    for name, value in biases.items():
        model.get_parameter("heads.0.conv.bias").data[info.labels.index(name)] += value
    if biases:  # a model file that is exported again may have some in its weights
        earlier = info.provenance.get("class_bias", {})
        total = {**earlier, **{name: earlier.get(name, 0.0) + value for name, value in biases.items()}}
        total = {name: value for name, value in total.items() if value}
        info = replace(info, provenance={**info.provenance, "class_bias": total})
    if args.format == "onnx":
        from sqsegv3_ros.network.export import export_onnx

        difference = export_onnx(model, args.output, info)
        text = f"{args.output}: {info.name}, equal in ONNX Runtime (probabilities within {difference:.1e})"
        results = {**model_results(args.output, info), "weights_dtype": "float32", "probability_difference": difference}
        print_results(args, text, results)
        return 0
    from sqsegv3_ros.network.export import export_model

    info = export_model(model, args.output, info=info, half=args.half)
    results = model_results(args.output, info)
    text = (
        f"{args.output}: {info.name}, {len(info.labels)} classes, {info.projection.height} x {info.projection.width} "
        f"pixels, KNN {info.knn.mode}, {info.weights_dtype}, {results['bytes'] / 1e6:.2f} MB"
    )
    print_results(args, text, results)
    return 0


def _class_biases(given: Sequence[str], labels: LabelSet) -> dict[str, float]:
    """Biases by class from 'class=number'."""
    biases: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"--class-bias: expected CLASS=NUMBER, finite, such as person=0.5, found '{text}'")
        if labels.index(name) not in labels.evaluated:
            names = ", ".join(labels.names[c] for c in labels.evaluated)
            raise UserError(f"--class-bias: class '{name}' is ignored in evaluation; expected one of {names}")
        if name in biases:
            raise UserError(f"--class-bias: found {name}={biases[name]:g} and {text}; give a class once")
        biases[name] = value
    return biases


def _with_options(info: ModelInfo, config: NetworkConfig, args: argparse.Namespace) -> ModelInfo:
    """Metadata of the model file, from those of the source and the options."""
    trained_width = info.provenance.get("trained_width", info.projection.width)
    width = info.projection.width if args.width is None else args.width
    valid = width % config.width_divisor == 0 and width >= config.minimum_width
    require(valid, "--width", f"a multiple of {config.width_divisor}, at least {config.minimum_width}", width)
    provenance = {
        "source": "trained with `sqsegv3 train`",
        "licence": "not stated; the licence of the training data applies too",
        **info.provenance,
        "exported": time.strftime("%Y-%m-%d", time.gmtime()),
        **({"licence": args.licence} if args.licence else {}),
        **({"note": args.note} if args.note else {}),
        **({} if width == trained_width else {"trained_width": trained_width}),
    }
    knn = {"mode": args.knn, "k": args.knn_k, "search": args.knn_search}
    return replace(
        info,
        name=args.name or info.name,
        projection=replace(info.projection, width=width),
        knn=replace(info.knn, **{name: value for name, value in knn.items() if value is not None}),
        sensor_height_m=args.sensor_height_m or info.sensor_height_m,
        provenance=provenance,
    )
