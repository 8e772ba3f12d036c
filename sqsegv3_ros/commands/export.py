"""`sqsegv3 export`: export a training checkpoint, or a model file again, as a model file or as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_output
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import refuse_existing

FORMATS = ("torchscript", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    checkpoint = "checkpoint of `sqsegv3 train` (best.ckpt), or model file to export again"
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=checkpoint)
    add_output(parser, "MODEL")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--half", action="store_true", help="store float16 weights: half the size")
    parser.add_argument("--name", help="name of the model (default: its name in training)")
    parser.add_argument("--licence", help="licence of the weights; the licence of the training data applies too")
    parser.add_argument("--note", help="anything else that users of the model must know")
    parser.add_argument("--knn", choices=("off", "safe", "official"), help="label refinement (default: as trained)")
    parser.add_argument("--width", type=int, metavar="W", help="columns of the image (default: as trained)")
    height = "height above ground of the sensor that recorded the training data (default: as configured in training)"
    parser.add_argument("--sensor-height-m", type=float, metavar="H", help=height)


def run(args: argparse.Namespace) -> int:
    """Export. Returns the exit code."""
    from sqsegv3_ros.training.checkpoint import load_network, read_trained

    refuse_existing(args.output, args.force)
    if args.half and args.format == "onnx":
        raise UserError("--half is for model files; TensorRT sets the precision when it builds its engine")
    if args.sensor_height_m is not None and not 0 < args.sensor_height_m < 100:
        raise UserError(f"--sensor-height-m must be between 0 and 100 metres, found {args.sensor_height_m:g}")
    description, weights = read_trained(args.checkpoint)
    model = load_network(description, weights)
    info = _model_info(args, description)
    if args.format == "onnx":
        from sqsegv3_ros.network.export import export_onnx

        difference = export_onnx(model, args.output, info)
        print(f"{args.output}: {info.name}, equal in ONNX Runtime (probabilities within {difference:.1e})")
        return 0
    from sqsegv3_ros.network.export import export_model

    info = export_model(model, args.output, info=info, half=args.half)
    size = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {info.name}, {len(info.labels)} classes, {info.projection.height} x {info.projection.width} "
        f"pixels, KNN {info.knn.mode}, {info.weights_dtype}, {size:.2f} MB"
    )
    return 0


def _model_info(args: argparse.Namespace, description: dict[str, Any]) -> Any:
    """Metadata of the model file, from the checkpoint and the options."""
    import dataclasses
    import time

    from sqsegv3_ros.data.label_set import LabelSet
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.network.config import NetworkConfig

    knn = KnnConfig.from_dict(description["knn"])
    trained = ProjectionConfig.from_dict(description["projection"])
    width = trained.width if args.width is None else args.width
    config = NetworkConfig.from_dict(description["network"])
    if width % config.width_divisor or width < config.minimum_width:
        raise UserError(
            f"--width must be a multiple of {config.width_divisor}, at least {config.minimum_width}, found {width}"
        )
    provenance = {
        "source": "trained with `sqsegv3 train`",
        "licence": "not stated; the licence of the training data applies too",
        **description["training"],
        "exported": time.strftime("%Y-%m-%d", time.gmtime()),
        **({"licence": args.licence} if args.licence else {}),
        **({"note": args.note} if args.note else {}),
        **({} if width == trained.width else {"trained_width": trained.width}),
    }
    return ModelInfo(
        name=args.name or description["name"],
        architecture={},
        labels=LabelSet.from_dict(description["labels"]),
        projection=dataclasses.replace(trained, width=width),
        normalization=Normalization.from_dict(description["normalization"]),
        knn=knn if args.knn is None else dataclasses.replace(knn, mode=args.knn),
        sensor_height_m=args.sensor_height_m or description.get("sensor_height_m"),
        provenance=provenance,
    )
