"""`sqsegv3 stress`: what a running node labels, drops and loses under load."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sqsegv3_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", type=Path, help="model file, or the name of one that ships (default: the random network)"
    )
    model.add_argument("--network", default="1/16", help="width of a random network (default: 1/16)")
    parser.add_argument("--width", type=int, default=128, help="columns of the random network's image (default: 128)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the node (default: torch's choice)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each case (default: 20)")
    parser.add_argument("--rates", type=float, nargs="+", default=[10.0, 20.0], metavar="HZ", help="default: 10 20")
    parser.add_argument("--points", type=int, nargs="+", default=[130_000, 260_000], help="default: 130000 260000")
    parser.add_argument(
        "--bytes",
        type=int,
        nargs="+",
        choices=(16, 22, 32, 48),
        default=[16, 22, 32, 48],
        help="of a point; default: all",
    )
    parser.add_argument(
        "--publisher", nargs="+", choices=("reliable", "best_effort"), default=["reliable", "best_effort"],
        help="default: both",
    )  # fmt: skip
    parser.add_argument("--soak", action="store_true", help="one case, with memory, threads and open files watched")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 1 where a cloud was lost or damaged, or memory, threads or files grow in a soak."""
    from sqsegv3_ros.benchmark import stress
    from sqsegv3_ros.benchmark.networks import network_config
    from sqsegv3_ros.inference.model_file import find_model, read_info

    for option, values in (("--rates", args.rates), ("--points", args.points), ("--seconds", [args.seconds])):
        if any(not value > 0 for value in values):
            raise UserError(f"{option} must be more than 0, found {' '.join(f'{value:g}' for value in values)}")
    if args.model is not None:
        args.model = find_model(args.model)
        read_info(args.model)
    else:
        network_config(args.network)
    wanted = stress.cases(args.rates, args.points, args.bytes, [p == "reliable" for p in args.publisher])
    bench = stress.Bench(args.model, args.network, args.width, {"threads": args.threads or 0})
    if args.soak:
        with bench.running() as running:
            results = [running.soak(wanted[0], args.seconds)]
        print(stress.soak_text(results[0]))
    else:
        results = stress.run(bench, wanted, args.seconds, lambda line: print(line, file=sys.stderr, flush=True))
        print(stress.text(results))
    if args.json is not None:
        from sqsegv3_ros.files import write_atomically

        write_atomically(args.json, json.dumps(results, indent=1).encode())
    return 1 if any(result["lost"] > 0 or result["damaged"] for result in results) else 0
