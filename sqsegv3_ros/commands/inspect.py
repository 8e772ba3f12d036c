# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 inspect`: print the metadata of a model file, or check the files of a data set."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_json, add_runtime_options, print_results, runtime_settings
from sqsegv3_ros.data.dataset_check import check_dataset, missing_scans
from sqsegv3_ros.data.semantic_kitti import is_dataset
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import refuse_existing, write_atomically
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import ModelInfo, find_model, read_info, shipped_models
from sqsegv3_ros.inference.range_image import ProjectionConfig

_NETWORK = ("blocks", "channels", "block", "attention_kernel", "azimuth_padding", "halvings")
_SHOWN_PROBLEMS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    model = "model file, name of a shipped model (default: default), or folder of SemanticKITTI"
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL|DATASET", help=model)
    add_json(parser)
    complete = "the folder must be the whole SemanticKITTI: every scan of sequences 00 to 10, with labels"
    parser.add_argument("--complete", action="store_true", help=complete)
    runtime = (
        "load and compile the network, and print its backend, device and precision on this machine; implied by "
        "--backend, --device, --precision and --threads"
    )
    parser.add_argument("--runtime", action="store_true", help=runtime)
    add_runtime_options(parser)
    parser.add_argument("--legend", type=Path, metavar="PNG", help="also draw the classes with their colours and ids")
    parser.add_argument("--force", action="store_true", help="overwrite an existing legend")


def run(args: argparse.Namespace) -> int:
    """Print the metadata, loading the network only for its runtime, or check a data set. Returns the exit code."""
    if args.model is not None and _is_folder_of_scans(args.model):
        return _check_dataset(args)
    if args.complete:
        raise UserError(f"--complete is for a SemanticKITTI data set, but {args.model or 'default'} is not a folder")
    path = find_model(args.model)
    info = read_info(path)
    if args.legend is not None:
        from sqsegv3_ros.viewing.pictures import encode_png
        from sqsegv3_ros.viewing.scan_picture import draw_legend

        refuse_existing(args.legend, args.force)
        write_atomically(args.legend, encode_png(draw_legend(info.labels)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    runtime = _runtime(path, args) if _runtime_wanted(args) else {}
    everything = {**info.to_dict(), "file": str(path), "file_sha256": sha256, **runtime}
    print_results(args, _describe(info, path, sha256, runtime), everything)
    return 0


def _is_folder_of_scans(path: Path) -> bool:
    """Whether a folder is meant: one named as a shipped model only if it has scans."""
    return path.is_dir() and (is_dataset(path) or str(path) not in shipped_models())


def _check_dataset(args: argparse.Namespace) -> int:
    """Print scans, labels and points of each sequence; UserError if training or evaluation would refuse a file."""
    if args.legend is not None or _runtime_wanted(args):
        raise UserError(f"{args.model} is a folder: --legend and the runtime options are for a model file")
    checks = check_dataset(args.model)
    problems = [message for check in checks for message in check.problems]
    problems += missing_scans(checks) if args.complete else []
    totals = {name: sum(getattr(check, name) for check in checks) for name in ("scans", "labelled", "points")}
    lines = [f"{'sequence':<8}  {'scans':>6}  {'labelled':>8}  {'M points':>8}"]
    for name, of in [*((check.sequence, vars(check)) for check in checks), ("all", totals)]:
        lines.append(f"{name:<8}  {of['scans']:>6}  {of['labelled']:>8}  {of['points'] / 1e6:>8.1f}")
    unlabelled = [check.sequence for check in checks if check.scans and not check.labelled]
    if unlabelled:
        lines.append(f"no labels in {' '.join(unlabelled)}: training and evaluation need them, labelling does not")
    lines += problems[:_SHOWN_PROBLEMS]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - _SHOWN_PROBLEMS} more (all with --json)")
    sequences = {c.sequence: {"scans": c.scans, "labelled": c.labelled, "points": c.points} for c in checks}
    results = {"dataset": str(args.model), "sequences": sequences, **totals, "problems": problems}
    print_results(args, "\n".join(lines), results)
    if not problems:
        return 0
    found = f"{args.model}: {len(problems)} problem{'s' * (len(problems) != 1)}"
    if args.complete:
        found += "; unpack the archives of these sequences again; `unzip -t` finds a damaged one"
    raise UserError(found)


def _runtime_wanted(args: argparse.Namespace) -> bool:
    given = any(value not in (None, "auto") for value in runtime_settings(args).values())
    return bool(args.runtime or given)


def _runtime(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Backend, device, precision and threads on this machine, after one run."""
    from sqsegv3_ros.inference.segmenter import Segmenter

    segmenter = Segmenter(path, **runtime_settings(args))
    segmenter.warm_up()
    runtime = segmenter.runtime
    device = str(runtime.device)
    return {"backend": runtime.backend, "device": device, "precision": runtime.precision, "threads": runtime.threads}


def _describe(info: ModelInfo, path: Path, sha256: str, runtime: dict[str, Any]) -> str:
    channels = ("range", "x", "y", "z", "remission")
    exponent = info.normalization.remission_exponent
    rows = [
        ("model", info.name),
        ("licence", info.licence),
        ("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB, format version {info.format_version})"),
        ("file sha256", sha256),
        ("weights", f"{info.weights_dtype}, sha256 {info.weights_sha256}"),
        *_describe_provenance(info.provenance),
        ("network", _settings({k: v for k, v in info.architecture.items() if k in _NETWORK})),
        ("image", _describe_image(info.projection)),
        ("channel means", _settings(dict(zip(channels, info.normalization.means, strict=True)))),
        ("channel stds", _settings(dict(zip(channels, info.normalization.stds, strict=True)))),
        *([("remission", f"raised to the power {exponent:g}")] if exponent != 1.0 else []),
        ("KNN", _describe_knn(info.knn)),
        ("sensor height", f"{info.sensor_height_m} m" if info.sensor_height_m else "unknown"),
        *([("runtime", _settings(runtime))] if runtime else []),
        ("classes", f"{len(info.labels)} ({info.labels.name})"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines.append(f"\n{'id':>4} {'raw id':>7}  {'RGB':<14}  class")
    for label, c in enumerate(info.labels.classes):
        color = " ".join(f"{channel:>3}" for channel in c.color)
        lines.append(f"{label:>4} {c.raw_id:>7}  {color:<14}  {c.name}{' (ignored)' if c.ignored else ''}")
    return "\n".join(lines)


def _describe_provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Source, data, accuracy, class biases and plain values; other nested ones, as the augmentation, only in --json."""
    rows = []
    for key, value in provenance.items():
        if key == "data" and isinstance(value, Mapping):
            for what in ("training", "validation"):
                if what in value:
                    rows.append((f"{what} data", _describe_data(value[what], value.get(f"{what}_scans"))))
        elif key == "metrics" and isinstance(value, Mapping):
            names = {"val/miou": "mIoU", "val/accuracy": "accuracy"}
            found = [f"{names[k]} {v:.1%}" for k, v in value.items() if k in names and isinstance(v, float)]
            if found:
                rows.append(("validation", ", ".join(found)))
        elif key == "class_bias" and isinstance(value, Mapping):
            rows.append(("class bias", ", ".join(f"{name} {bias:+g}" for name, bias in value.items())))
        elif key != "licence" and isinstance(value, (str, int, float)):
            rows.append((key.replace("_", " "), str(value)))
    return rows


def _describe_data(sets: Any, scans: Any) -> str:
    """Data sets, as `ScanData.provenance` names them, and the number of scans."""
    named = [one for one in (sets if isinstance(sets, list) else [sets]) if isinstance(one, Mapping)]
    parts = [f"{one.get('name')} ({' '.join(map(str, one.get('sequences') or ()))})" for one in named]
    return ", ".join(parts) + (f": {scans} scans" if scans is not None else "")


def _describe_image(projection: ProjectionConfig) -> str:
    parts = [
        f"{projection.height} x {projection.width} pixels",
        f"field of view {projection.fov_down_deg:g} to {projection.fov_up_deg:g} deg",
        f"rows by {projection.rows.replace('_', ' ')}",
        f"{projection.keep} point per pixel",
    ]
    if projection.ring_count is not None:
        parts.append(f"{projection.ring_count} rings")
    if projection.fill_rows:
        parts.append(f"empty pixels filled from up to {projection.fill_rows} rows away")
    if projection.official_mask:
        parts.append("mask as in the official release")
    return ", ".join(parts)


def _describe_knn(knn: KnnConfig) -> str:
    if knn.mode == "off":
        return "off"
    cutoff = f", cutoff {knn.cutoff_m:g} m" if knn.cutoff_m > 0 else ""
    return f"{knn.mode}, {knn.k} neighbours in {knn.search} x {knn.search} pixels, sigma {knn.sigma:g}{cutoff}"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
