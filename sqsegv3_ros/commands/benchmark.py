"""`sqsegv3 benchmark`: a model, or random weights, and a scan go in; what a scan costs goes out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    from sqsegv3_ros.benchmark.networks import NAMES

    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="model file, or the name of one that ships (default: default)")
    model.add_argument("--network", help=f"random weights instead: {', '.join(NAMES)}, or another width multiplier")
    parser.add_argument("--scan", type=Path, metavar="BIN", help="KITTI .bin (default: a made-up street)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu (default: auto)")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--repeat", type=int, metavar="N", help="scans to measure (default: 10)")
    parser.add_argument("--height", type=int, metavar="H", help="rows of the image (default: the model's own)")
    parser.add_argument("--width", type=int, metavar="W", help="columns of the image (default: the model's own)")
    parser.add_argument("--knn-k", type=int, metavar="K", help="neighbours that vote (default: the model's own)")
    parser.add_argument("--knn-search", type=int, metavar="S", help="side of KNN's window (default: the model's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the figures (needs matplotlib)")
    group = parser.add_argument_group("what is measured", "one scan, stage by stage, unless given")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--compare", choices=("reference",), help="also measure the official release's way")
    what.add_argument("--scaling", action="store_true", help="cost against points, image size, threads, channels")
    what.add_argument("--live", action="store_true", help="latency of the running node (ROS 2)")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what is asked for. 1 where the release's way gives another result."""
    if args.plot is not None:
        from sqsegv3_ros.benchmark.report import import_pyplot

        import_pyplot()  # better missed now than after the measurement
    if args.scaling:
        return _scaling(args)
    if args.live:
        return _live(args)
    from sqsegv3_ros.benchmark.measure import Options, measure
    from sqsegv3_ros.benchmark.report import draw, text

    result = measure(Options(**_model(args), **_settings(args)))
    print(text(result))
    _write_json(args.json, result)
    if args.plot is not None:
        draw(result, args.plot)
    return 0 if result.get("equal", {}).get("all", True) else 1


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        name: getattr(args, name)
        for name in ("height", "width", "knn_k", "knn_search", "device", "precision", "threads", "repeat")
        if getattr(args, name) is not None
    }
    if args.scan is not None:
        from sqsegv3_ros.kitti import ScanFile, read_labels, read_scan
        from sqsegv3_ros.labels import SEMANTIC_KITTI

        settings["scan"] = read_scan(args.scan)
        if not len(settings["scan"]):
            raise UserError(f"scan {args.scan} holds no point; there is nothing to measure")
        truth = ScanFile(args.scan.parent.parent.name, args.scan.stem, args.scan).labels_path
        if truth.is_file():
            settings["labels"] = SEMANTIC_KITTI.to_labels(read_labels(truth, len(settings["scan"])))
    return {**settings, "compare": args.compare == "reference"}


def _model(args: argparse.Namespace) -> dict[str, Any]:
    """What runs: a checked model file, or the name of a network."""
    from sqsegv3_ros.artifact import default_model, find_model, read_info
    from sqsegv3_ros.benchmark.networks import NAMES, network_config

    if args.network is not None:
        network_config(args.network)
        return {"network": args.network}
    if args.model is None and default_model() is None:
        return {"network": NAMES[0]}
    model = find_model(args.model)
    read_info(model)
    return {"model": model}


def _scaling(args: argparse.Namespace) -> int:
    from sqsegv3_ros.benchmark.scaling import draw, measure, text

    unused = {"--model": args.model, "--scan": args.scan, "--height": args.height, "--width": args.width}
    _refuse(unused, "--scaling makes its own scans, images and networks")
    result = measure(args.network or "3/16", args.threads, args.repeat or 3)
    print(text(result))
    _write_json(args.json, result)
    if args.plot is not None:
        draw(result, args.plot)
    return 0


def _live(args: argparse.Namespace) -> int:
    from sqsegv3_ros.artifact import find_model, read_info
    from sqsegv3_ros.benchmark.live import measure, text

    unused = {"--plot": args.plot, "--height": args.height, "--knn-k": args.knn_k, "--knn-search": args.knn_search}
    _refuse(unused, "--live measures the node as it is")
    model = None
    if args.model is not None:
        model = find_model(args.model)
        read_info(model)
    result = measure(
        model=model, network=args.network, width=args.width, threads=args.threads, clouds=args.repeat or 60
    )
    print(text(result))
    _write_json(args.json, result)
    return 0


def _refuse(given: dict[str, Any], reason: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} cannot be used here: {reason}")


def _write_json(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        from sqsegv3_ros.kitti import write_whole

        write_whole(path, json.dumps(result, indent=1).encode())
