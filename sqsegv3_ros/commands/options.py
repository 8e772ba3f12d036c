"""Options that several verbs share: which model runs, on what, and how its labels are refined."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from sqsegv3_ros.inference.segmenter import Segmenter

T = TypeVar("T")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, what runs it, and the KNN settings."""
    parser.add_argument("--model", type=Path, help="model file, or the name of one that ships (default: default)")
    add_runtime_options(parser)
    knn = parser.add_argument_group("KNN refinement", "the model's own settings unless given")
    knn.add_argument("--knn", choices=("off", "safe", "official"), help="how neighbours vote on a point's label")
    knn.add_argument("--knn-k", type=int, metavar="K", help="neighbours that vote")
    knn.add_argument("--knn-search", type=int, metavar="S", help="side of the search window in pixels, odd")


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """--backend, --device, --precision and --threads."""
    parser.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="what runs the network; auto: torch on a GPU, else OpenVINO if it is installed (default: auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="what the network computes in; auto: fp16 on a GPU, bf16 with OpenVINO on a CPU that has it, else fp32 "
        "(default: auto)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def runtime_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_runtime_options`, as arguments of a segmenter."""
    return {name: getattr(args, name) for name in ("backend", "device", "precision", "threads")}


def add_cloud_options(parser: argparse._ActionsContainer) -> None:
    """How the intensity of a bag's clouds is read: field, scale and exponent. None where not given."""
    parser.add_argument("--intensity-field", metavar="F", help="field that holds the intensity; '' for none")
    parser.add_argument(
        "--intensity-scale", type=float, metavar="X", help="factor from it to the remission, 0..1 (0.00392 for 0..255)"
    )
    parser.add_argument(
        "--intensity-exponent", type=float, metavar="E", help="remission = X * intensity ** E (0.5: its square root)"
    )


def intensity_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of the intensity, as settings of clouds."""
    names = ("intensity_field", "intensity_scale", "intensity_exponent")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def make_segmenter(args: argparse.Namespace) -> Segmenter:
    """The segmenter that the options of `add_model_options` describe. Raises UserError for what cannot be used."""
    from sqsegv3_ros.inference.model_file import find_model, read_info
    from sqsegv3_ros.inference.segmenter import Segmenter

    path = find_model(args.model)
    changes = {"mode": args.knn, "k": args.knn_k, "search": args.knn_search}
    knn = replace(read_info(path).knn, **{name: value for name, value in changes.items() if value is not None})
    segmenter = Segmenter(path, **runtime_settings(args), knn=knn)
    if segmenter.runtime.hint:
        print(segmenter.runtime.hint, file=sys.stderr)
    return segmenter
