"""Options that several verbs share: model, backend, KNN refinement and intensity."""

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
    """Add --model, the runtime options and the KNN options."""
    parser.add_argument("--model", type=Path, help="model file, or the name of a shipped model (default: default)")
    add_runtime_options(parser)
    knn = parser.add_argument_group("KNN refinement", "default: the model's own settings")
    knn.add_argument("--knn", choices=("off", "safe", "official"), help="how neighbours vote on a point's label")
    knn.add_argument("--knn-k", type=int, metavar="K", help="number of neighbours that vote")
    knn.add_argument("--knn-search", type=int, metavar="S", help="width of the search window in pixels, odd")


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --device, --precision and --threads."""
    parser.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="runtime of the network; auto: torch on a GPU, else OpenVINO if it is installed (default: auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="precision of the network; auto: fp16 on a GPU, bf16 with OpenVINO on a CPU with bf16, else fp32 "
        "(default: auto)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def runtime_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `add_runtime_options` as arguments of a `Segmenter`."""
    return {name: getattr(args, name) for name in ("backend", "device", "precision", "threads")}


def add_cloud_options(parser: argparse._ActionsContainer) -> None:
    """Add --intensity-field, --intensity-scale and --intensity-exponent; None if not given."""
    parser.add_argument("--intensity-field", metavar="F", help="field with the intensity; '' for none")
    parser.add_argument(
        "--intensity-scale",
        type=float,
        metavar="X",
        help="factor from intensity to remission, 0..1 (0.00392 for 0..255)",
    )
    parser.add_argument(
        "--intensity-exponent", type=float, metavar="E", help="remission = X * intensity ** E (0.5: square root)"
    )


def intensity_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given intensity options as arguments of `CloudSettings`."""
    names = ("intensity_field", "intensity_scale", "intensity_exponent")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def make_segmenter(args: argparse.Namespace) -> Segmenter:
    """Build the segmenter that the options of `add_model_options` select.

    Raises:
        UserError: The model or an option cannot be used.
    """
    from sqsegv3_ros.inference.model_file import find_model, read_info
    from sqsegv3_ros.inference.segmenter import Segmenter

    path = find_model(args.model)
    changes = {"mode": args.knn, "k": args.knn_k, "search": args.knn_search}
    knn = replace(read_info(path).knn, **{name: value for name, value in changes.items() if value is not None})
    segmenter = Segmenter(path, **runtime_settings(args), knn=knn)
    if segmenter.runtime.hint:
        print(segmenter.runtime.hint, file=sys.stderr)
    return segmenter
