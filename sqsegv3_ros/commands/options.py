# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.point_files import READERS
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import refuse_existing, write_atomically

if TYPE_CHECKING:
    from sqsegv3_ros.inference.model_file import ModelInfo


def add_output(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Add --output and --force."""
    parser.add_argument("--output", type=Path, required=True, metavar=metavar, help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def check_output(path: Path, suffix: str, force: bool, option: str = "--output") -> None:
    """Raise UserError if an output has the wrong suffix, or already exists and may not be overwritten."""
    if path.suffix.lower() != suffix:
        raise UserError(f"{option} {path} must end in {suffix}")
    refuse_existing(path, force)


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add --json."""
    text = "also write the results as JSON to this .json file; -: print JSON instead of text"
    parser.add_argument("--json", type=Path, action=_JsonOutput, metavar="FILE|-", help=text)


class _JsonOutput(argparse.Action):
    """Store the path of --json; refuse early a path that would replace an input or cannot be written."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, path: Any, _: Any = None
    ) -> None:
        if path != Path("-"):
            _check_json(path)
        setattr(namespace, self.dest, path)


def _check_json(path: Path) -> None:
    if path.suffix.lower() != ".json":
        raise UserError(f"--json must be - or a file that ends in .json, found '{path}'")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write --json {path}: {folder} is not a writable folder")
    # the only .json that is an input: an Ouster sensor's metadata, which the SDK finds beside a .pcap by a similar name
    if path.exists() and any(file.suffix.lower() == ".pcap" for file in path.parent.iterdir()):
        raise UserError(f"--json {path} exists and may be the metadata of a .pcap beside it; choose another folder")
    if path.is_dir():
        raise UserError(f"cannot write --json {path}: it is a folder")


def print_results(args: argparse.Namespace, text: str, results: Any) -> None:
    """Print the text and write the results as --json asks for: plain JSON types, NaN as null."""
    data = None if args.json is None else json.dumps(_without_nan(results), indent=2, allow_nan=False)
    to_stdout = args.json == Path("-")
    print(data if to_stdout else text, flush=True)
    if data is not None and not to_stdout:
        write_atomically(args.json, f"{data}\n".encode())


def _without_nan(value: Any) -> Any:
    """Replace numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def model_results(path: Path, info: ModelInfo) -> dict[str, Any]:
    """Return the --json results for an exported model file."""
    return {
        "output": str(path),
        "name": info.name,
        "classes": len(info.labels),
        "image_height": info.projection.height,
        "image_width": info.projection.width,
        "knn_mode": info.knn.mode,
        "weights_dtype": info.weights_dtype,
        "bytes": path.stat().st_size,
    }


def add_format(parser: argparse._ActionsContainer) -> None:
    """Add --format of point-cloud files."""
    text = "format of point-cloud files (default: by the suffix)"
    parser.add_argument("--format", choices=tuple(READERS), help=text)


def add_label_set(parser: argparse._ActionsContainer, option: str = "--labels") -> None:
    """Add the label set of a data set."""
    text = "label configuration in SemanticKITTI's form (default: SemanticKITTI)"
    parser.add_argument(option, type=LabelSet.from_yaml, default=SEMANTIC_KITTI, metavar="YAML", help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, the runtime options, --average-mirrored and the KNN options."""
    parser.add_argument("--model", type=Path, help="model file, or the name of a shipped model (default: default)")
    add_runtime_options(parser)
    add_average_mirrored(parser)
    knn = parser.add_argument_group("KNN refinement", "default: the model's own settings")
    knn.add_argument("--knn", choices=("off", "safe", "official"), help="how neighbours vote on a point's label")
    knn.add_argument("--knn-k", type=int, metavar="K", help="number of neighbours that vote")
    knn.add_argument("--knn-search", type=int, metavar="S", help="width of the search window in pixels, odd")


def add_average_mirrored(parser: argparse._ActionsContainer) -> None:
    """Add --average-mirrored; None if not given."""
    text = "run the network on the mirrored image, too, and average the probabilities: better labels in twice its time"
    parser.add_argument("--average-mirrored", action="store_true", default=None, help=text)


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --device, --precision and --threads."""
    backend = "runtime of the network; auto: torch on a GPU, else OpenVINO if it is installed (default: auto)"
    parser.add_argument("--backend", choices=("auto", "torch", "openvino"), default="auto", help=backend)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu (default: auto)")
    precision = "auto: fp16 on a GPU, bf16 with OpenVINO on a CPU with bf16, else fp32 (default: auto)"
    parser.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help=precision)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def runtime_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `add_runtime_options` as arguments of a `Segmenter`."""
    return {name: getattr(args, name) for name in ("backend", "device", "precision", "threads")}


def add_params(parser: argparse._ActionsContainer) -> None:
    """Add --params and --label-map."""
    text = (
        "parameter file of the node (YAML), to label as it does; repeatable, later files take precedence. Its "
        "intensity settings apply to bags only: files hold 0..1 unless --intensity-scale and --intensity-exponent are "
        "given"
    )
    parser.add_argument("--params", type=Path, action="append", default=[], metavar="FILE", help=text)
    add_label_map(parser, "fold, rename, recolour or drop the model's classes")


def add_label_map(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add --label-map."""
    text = (
        f"{purpose}: semantic_kitti, semantic_kitti_moving, autoware, traversability, or a YAML file (docs/outputs.md)"
    )
    parser.add_argument("--label-map", metavar="MAP", help=text)


def node_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the node's parameters that --params, the model options or the cloud options set; options win."""
    from sqsegv3_ros.inference.model_file import find_model
    from sqsegv3_ros.inference.parameter_file import read_parameters

    values: dict[str, Any] = {}
    for file in args.params:
        values.update(read_parameters(file))
    if args.threads is not None and args.threads < 1:
        raise UserError(f"threads must be in 1..1024, found {args.threads}")
    overrides = {
        "model": None if args.model is None and values.get("model") else str(find_model(args.model)),
        **{name: None if value == "auto" else value for name, value in runtime_settings(args).items()},
        "average_mirrored": args.average_mirrored,
        "knn.mode": args.knn,
        "knn.k": args.knn_k,
        "knn.search": args.knn_search,
        "label_map": args.label_map,
        **intensity_settings(args),
    }
    values.update({name: value for name, value in overrides.items() if value is not None})
    if "intensity_fields" in values:  # a parameter is a list that is not empty
        values["intensity_fields"] = list(values["intensity_fields"]) or [""]
    return values


def add_cloud_options(parser: argparse._ActionsContainer) -> None:
    """Add --intensity-field, --intensity-scale and --intensity-exponent; None if not given."""
    parser.add_argument(
        "--intensity-field",
        metavar="F",
        help="field with the intensity; '' for none (default: intensity, reflectivity or i)",
    )
    scale = "factor from intensity to remission, 0..1 (0.00392 for 0..255)"
    parser.add_argument("--intensity-scale", type=float, metavar="X", help=scale)
    exponent = "remission = X * intensity ** E (0.5: square root)"
    parser.add_argument("--intensity-exponent", type=float, metavar="E", help=exponent)


def intensity_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given intensity options as arguments of `CloudSettings`."""
    names = ("intensity_scale", "intensity_exponent")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.intensity_field is not None:
        settings["intensity_fields"] = (args.intensity_field,) if args.intensity_field else ()
    return settings
