"""`sqsegv3 inspect`: print the metadata of a model file."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_runtime_options, runtime_settings
from sqsegv3_ros.files import refuse_existing, write_atomically
from sqsegv3_ros.inference.model_file import ModelInfo, find_model, read_info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    model = "model file, or name of a shipped model (default: default)"
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help=model)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    runtime = "load and compile the network, and print its backend, device and precision on this machine"
    parser.add_argument("--runtime", action="store_true", help=runtime)
    add_runtime_options(parser)
    parser.add_argument("--legend", type=Path, metavar="PNG", help="also draw the classes with their colours and ids")
    parser.add_argument("--force", action="store_true", help="overwrite an existing legend")


def run(args: argparse.Namespace) -> int:
    """Print the metadata. The network itself is loaded only for --runtime. Returns the exit code."""
    path = find_model(args.model)
    info = read_info(path)
    if args.legend is not None:
        from sqsegv3_ros.evaluation.pictures import encode_png
        from sqsegv3_ros.evaluation.scan_picture import draw_legend

        refuse_existing(args.legend, args.force)
        write_atomically(args.legend, encode_png(draw_legend(info.labels)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    runtime = _runtime(path, args) if args.runtime else {}
    if args.json:
        print(json.dumps({**info.to_dict(), "file": str(path), "file_sha256": sha256, **runtime}, indent=1))
    else:
        print(_describe(info, path, sha256, runtime))
    return 0


def _runtime(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Backend, device, precision and threads on this machine, after one run."""
    from sqsegv3_ros.inference.segmenter import Segmenter

    segmenter = Segmenter(path, **runtime_settings(args))
    segmenter.warm_up()
    runtime = segmenter.runtime
    device = str(runtime.device)
    return {"backend": runtime.backend, "device": device, "precision": runtime.precision, "threads": runtime.threads}


def _describe(info: ModelInfo, path: Path, sha256: str, runtime: dict[str, Any]) -> str:
    rows = {
        "model": info.name,
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB, format version {info.format_version})",
        "file sha256": sha256,
        "weights": f"{info.weights_dtype}, sha256 {info.weights_sha256}",
        "architecture": _settings(dict(info.architecture)),
        "projection": _settings(info.projection.to_dict()),
        "means": _settings(dict(zip(("range", "x", "y", "z", "remission"), info.normalization.means, strict=True))),
        "stds": _settings(dict(zip(("range", "x", "y", "z", "remission"), info.normalization.stds, strict=True))),
        "knn": _settings(info.knn.to_dict()),
        "sensor height": f"{info.sensor_height_m} m" if info.sensor_height_m else "unknown",
        **{f"provenance: {key}": _value(value) for key, value in info.provenance.items()},
        **({"runs here on": _settings(runtime)} if runtime else {}),
        "label set": f"{info.labels.name}, {len(info.labels)} classes",
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    lines.append(f"\n{'id':>4} {'raw id':>7}  {'RGB':<14}  class")
    for label, c in enumerate(info.labels.classes):
        color = " ".join(f"{channel:>3}" for channel in c.color)
        lines.append(f"{label:>4} {c.raw_id:>7}  {color:<14}  {c.name}{' (ignored)' if c.ignored else ''}")
    return "\n".join(lines)


def _settings(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return (
            "-".join(map(str, value)) if all(isinstance(v, (int, float)) for v in value) else ", ".join(map(str, value))
        )
    return json.dumps(value) if isinstance(value, dict) else str(value)
