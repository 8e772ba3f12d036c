"""`sqsegv3 demo`: the node, a player and an evaluator at work on a simulated drive; numbers, report and picture come out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sqsegv3_ros.errors import OperationError, UserError, missing_package

if TYPE_CHECKING:
    from sqsegv3_ros.commands.demo_steps import DemoFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--model", type=Path, help="model file, or the name of one that ships (default: default)")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--scans", type=int, default=200, metavar="N", help="length of the drive (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, metavar="S", help="of the simulated city (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Simulate, drive, evaluate, draw. Returns 0 where every scan was evaluated, 1 otherwise."""
    from sqsegv3_ros.inference.model_file import find_model, read_info

    if not 2 <= args.scans <= 10_000:
        raise UserError(f"--scans must lie in 2..10000, found {args.scans}")
    for package, extra in (("rclpy", "ros"), ("embreex", "simulate"), ("rosbags", "bags"), ("PIL", "tools")):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_package(package, "the demo", extra) from error
    model = find_model(args.model)
    info = read_info(model)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error.strerror or error}") from error
    return _demo(model, info.name, args)


def _demo(model: Path, name: str, args: argparse.Namespace) -> int:
    from sqsegv3_ros.commands import demo_steps as demo

    files = demo.DemoFiles(args.output)
    _say(f"simulating a drive of {args.scans} sweeps of a 64-beam LiDAR")
    demo.simulate_drive(files, args.scans, args.seed)
    needed_ms = demo.latency_ms(model, files.bag)
    keeps_pace = needed_ms < demo.SHARE_OF_PERIOD * 1e3 / demo.PACE_HZ
    pace = f"{demo.PACE_HZ:g} Hz" if keeps_pace else "the pace that it keeps"
    _say(f"{name} needs {needed_ms:.0f} ms a scan here: replaying the drive at {pace} to the live node")
    complete = _drive(model, files, args.scans, keeps_pace)
    if keeps_pace and not complete:
        _say(f"scans were lost at {demo.PACE_HZ:g} Hz: once more, each sent when the one before has come back")
        complete = _drive(model, files, args.scans, keeps_pace=False)
    demo.write_pictures(model, files)
    _say(f"look at {files.report} and {files.picture}")
    if not complete:
        raise OperationError("not every scan was evaluated; see the numbers above")
    return 0


def _drive(model: Path, files: DemoFiles, scans: int, keeps_pace: bool) -> bool:
    from sqsegv3_ros.commands.demo_steps import drive_live

    complete = drive_live(model, files, scans, keeps_pace)
    print(files.log("evaluator").read_text(errors="replace"), end="", flush=True)
    return complete


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)
