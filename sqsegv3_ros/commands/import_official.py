# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 import-official`: convert a checkpoint folder of the official release into a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.commands.options import add_json, add_output, model_results, print_results
from sqsegv3_ros.files import refuse_existing

KITTI_SENSOR_HEIGHT_M = 1.73  # height above ground of the Velodyne on KITTI's car


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="checkpoint folder: arch_cfg.yaml, data_cfg.yaml, backbone, ..."
    )
    add_output(parser, "MODEL")
    weights = "files with the best validation IoU, or with the best training IoU (*_train) (default: %(default)s)"
    parser.add_argument("--weights", choices=("best", "train"), default="best", help=weights)
    parser.add_argument("--half", action="store_true", help="store float16 weights: half the size")
    parity = "reproduce the reference implementation, bugs in mask and KNN included, to compare labels"
    parser.add_argument("--parity", action="store_true", help=parity)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Import the folder and write the model file. Returns the exit code."""
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.network.export import export_model
    from sqsegv3_ros.network.official import load_official

    refuse_existing(args.output, args.force)
    checkpoint = load_official(args.folder, args.weights, parity=args.parity)
    name = args.folder.resolve().name
    kitti = checkpoint.labels.name == "kitti"
    info = ModelInfo(
        name=name,
        architecture={},
        labels=checkpoint.labels,
        projection=checkpoint.projection,
        normalization=checkpoint.normalization,
        knn=checkpoint.knn,
        sensor_height_m=KITTI_SENSOR_HEIGHT_M if kitti else None,
        provenance={
            "source": f"checkpoint '{name}' in the official SqueezeSegV3 format, '{args.weights}' weights",
            "data": "SemanticKITTI" if kitti else checkpoint.labels.name,
            "licence": "not stated in the checkpoint"
            + ("; SemanticKITTI is licensed CC BY-NC-SA 4.0 (non-commercial)" if kitti else ""),
            "parity": args.parity,
        },
    )
    info = export_model(checkpoint.model, args.output, info=info, half=args.half)
    blocks = "-".join(map(str, checkpoint.config.blocks))
    text = (
        f"{args.output}: {name}, blocks {blocks}, {len(checkpoint.labels)} classes, "
        f"{info.projection.height} x {info.projection.width} pixels, KNN {info.knn.mode}, {info.weights_dtype}"
    )
    print_results(args, text, {**model_results(args.output, info), "blocks": checkpoint.config.blocks})
    return 0
