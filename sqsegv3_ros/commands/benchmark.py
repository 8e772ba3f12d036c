# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 benchmark`: measure per-scan latency, memory and throughput."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_average_mirrored, add_json, print_results
from sqsegv3_ros.errors import UserError

LOAD_NETWORK, LOAD_WIDTH = "1/16", 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from sqsegv3_ros.benchmark.measure import COMPARABLE
    from sqsegv3_ros.benchmark.networks import NAMES

    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="model file, or the name of a shipped model (default: default)")
    model.add_argument("--network", help=f"random weights instead: {', '.join(NAMES)}, or another width multiplier")
    parser.add_argument("--scan", type=Path, metavar="BIN", help="KITTI .bin (default: a synthetic scene)")
    parser.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="runtime of the network (default: auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="precision of the network (default: auto)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--cuda-graph", action="store_true", help="replay the network as a CUDA graph")
    add_average_mirrored(parser)
    parser.add_argument("--repeat", type=int, metavar="N", help="scans to measure (default: 10)")
    parser.add_argument("--height", type=int, metavar="H", help="rows of the image (default: the model's own)")
    parser.add_argument("--width", type=int, metavar="W", help="columns of the image (default: the model's own)")
    parser.add_argument(
        "--knn-k", type=int, metavar="K", help="number of neighbours that vote (default: the model's own)"
    )
    parser.add_argument(
        "--knn-search", type=int, metavar="S", help="KNN window size in pixels (default: the model's own)"
    )
    add_json(parser)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot the results as PNG (needs matplotlib)")
    group = parser.add_argument_group("what to measure", "default: one scan, by stage")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--compare",
        type=lambda names: tuple(dict.fromkeys(names.split(","))),
        default=(),
        metavar="NAMES",
        help=f"also measure with the same weights: any of {','.join(COMPARABLE)}",
    )
    what.add_argument(
        "--load", action="store_true", help="clouds labelled, dropped and lost by the running node under load (ROS 2)"
    )
    what.add_argument(
        "--soak", action="store_true", help="one case of the load test, with memory, threads and open files monitored"
    )
    load = parser.add_argument_group(
        "load test", f"default model: random weights, {LOAD_NETWORK} at {LOAD_WIDTH} columns"
    )
    load.add_argument("--seconds", type=float, default=20.0, metavar="S", help="seconds per case (default: 20)")
    load.add_argument(
        "--rates", type=float, nargs="+", default=[10.0, 20.0], metavar="HZ", help="clouds per second (default: 10 20)"
    )
    load.add_argument(
        "--points", type=int, nargs="+", default=[130_000, 260_000], help="points per cloud (default: 130000 260000)"
    )
    sizes = (16, 22, 32, 48)
    load.add_argument(
        "--bytes", type=int, nargs="+", choices=sizes, default=sizes, help="bytes per point (default: all)"
    )
    publishers = ("reliable", "best_effort")
    load.add_argument(
        "--publisher",
        nargs="+",
        choices=publishers,
        default=publishers,
        help="reliability of the publisher (default: both)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write. Returns 1 if the result differs from the reference implementation's."""
    if args.plot is not None:
        from sqsegv3_ros.benchmark.tables import import_pyplot

        import_pyplot()  # fail before the measurement
    if args.load or args.soak:
        return _load(args)
    from sqsegv3_ros.benchmark.measure import Options, measure
    from sqsegv3_ros.benchmark.tables import draw, text

    result = measure(Options(**_model(args), **_settings(args)))
    print_results(args, text(result), result)
    if args.plot is not None:
        draw(result, args.plot)
    return 0 if result.get("equal", {}).get("all", True) else 1


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("height", "width", "knn_k", "knn_search", "backend", "device", "precision", "threads", "cuda_graph")
    given = {name: getattr(args, name) for name in (*names, "average_mirrored", "repeat", "compare")}
    settings = {name: value for name, value in given.items() if value is not None}
    if args.scan is not None:
        from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
        from sqsegv3_ros.data.semantic_kitti import ScanFile, read_labels, read_scan

        settings["scan"] = read_scan(args.scan)
        if not len(settings["scan"]):
            raise UserError(f"scan {args.scan} has no points; there is nothing to measure")
        truth = ScanFile(args.scan.parent.parent.name, args.scan.stem, args.scan).labels_path
        if truth.is_file():
            settings["labels"] = SEMANTIC_KITTI.to_labels(read_labels(truth, len(settings["scan"])))
    return settings


def _model(args: argparse.Namespace) -> dict[str, Any]:
    """A checked model file, or the name of a network."""
    from sqsegv3_ros.benchmark.networks import NAMES, network_config
    from sqsegv3_ros.inference.model_file import default_model, find_model, read_info

    if args.network is not None:
        network_config(args.network)
        return {"network": args.network}
    if args.model is None and default_model() is None:
        return {"network": NAMES[0]}
    model = find_model(args.model)
    read_info(model)
    return {"model": model}


def _load(args: argparse.Namespace) -> int:
    """Load the node. Returns 1 if a cloud was lost or damaged."""
    from sqsegv3_ros.benchmark import load_test
    from sqsegv3_ros.benchmark.networks import network_config
    from sqsegv3_ros.inference.model_file import find_model, read_info

    unused = {"--plot": args.plot, "--height": args.height, "--knn-k": args.knn_k, "--knn-search": args.knn_search}
    _refuse(unused, "the load test runs the node as it is")
    for option, values in (("--rates", args.rates), ("--points", args.points), ("--seconds", [args.seconds])):
        if any(not value > 0 for value in values):
            raise UserError(f"{option} must be more than 0, found {' '.join(f'{value:g}' for value in values)}")
    model, network = args.model, args.network or LOAD_NETWORK
    if model is None:
        network_config(network)
    else:
        model = find_model(model)
        read_info(model)
    cases = load_test.cases(args.rates, args.points, args.bytes, [p == "reliable" for p in args.publisher])
    runtime = {name: getattr(args, name) for name in ("backend", "device", "precision", "cuda_graph")}
    runtime["average_mirrored"] = bool(args.average_mirrored)
    bench = load_test.Bench(model, network, args.width or LOAD_WIDTH, {**runtime, "threads": args.threads or 0})
    if args.soak:
        with bench.running() as running:
            results = [running.soak(cases[0], args.seconds)]
        lines = load_test.soak_text(results[0])
    else:
        results = load_test.run(bench, cases, args.seconds, lambda line: print(line, file=sys.stderr, flush=True))
        lines = load_test.text(results)
    print_results(args, lines, results)
    return 1 if any(result["lost"] > 0 or result["damaged"] for result in results) else 0


def _refuse(given: dict[str, Any], reason: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} cannot be used here: {reason}")
