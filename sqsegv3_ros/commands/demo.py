# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 demo`: run node, player and evaluator on a simulated drive; write numbers, a report and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.errors import OperationError, UserError, missing_package, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", type=Path, help="model file, or name of a shipped model (default: default)")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    length = "length of the drive (default: %(default)s)"
    parser.add_argument("--scans", type=int, default=200, metavar="N", help=length)
    parser.add_argument("--seed", type=int, default=7, metavar="S", help="seed of the city (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code, 0 if every scan was evaluated."""
    from sqsegv3_ros.commands import demo_steps as steps
    from sqsegv3_ros.inference.model_file import find_model, read_info

    require(2 <= args.scans <= 10_000, "--scans", "in 2..10000", args.scans)
    for package, extra in (("rclpy", "ros"), ("embreex", "simulate"), ("rosbags", "bags"), ("PIL", "tools")):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_package(package, "the demo", extra) from error
    model = find_model(args.model)
    name = read_info(model).name
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error.strerror or error}") from error

    files = steps.DemoFiles(args.output)
    _print_step(f"simulating a drive of {args.scans} sweeps of a 64-beam LiDAR")
    steps.simulate_drive(files, args.scans, args.seed)
    latency_ms = steps.measure_latency_ms(model, files.bag)
    real_time = latency_ms < steps.MAX_LOAD * 1e3 / steps.RATE_HZ
    pace = f"{steps.RATE_HZ:g} Hz" if real_time else "the rate that it sustains"
    _print_step(f"{name} takes {latency_ms:.0f} ms per scan: replaying the drive to the live node at {pace}")
    complete = steps.evaluate_live(model, files, args.scans, real_time)
    if real_time and not complete:
        _print_step(f"scans were lost at {steps.RATE_HZ:g} Hz: replaying again, one scan at a time")
        complete = steps.evaluate_live(model, files, args.scans, real_time=False)
    steps.write_pictures(model, files)
    _print_step(f"see {files.report} and {files.picture}")
    if not complete:
        raise OperationError("not every scan was evaluated; see the numbers above")
    return 0


def _print_step(text: str) -> None:
    print(f"==> {text}", flush=True)
