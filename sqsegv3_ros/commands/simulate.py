# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 simulate`: simulate labelled LiDAR scans of synthetic scenes, as a SemanticKITTI data set or a bag."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from sqsegv3_ros.commands.options import add_json, print_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from sqsegv3_ros.simulation.plans import SCENES
    from sqsegv3_ros.simulation.sensors import SENSORS

    parser.add_argument("--scans", type=int, required=True, metavar="N", help="number of scans")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write sequences/NN/{velodyne,labels} below it")
    parser.add_argument("--bag", type=Path, metavar="PATH", help="write an mcap bag with /velodyne_points and /clock")
    parser.add_argument("--sensor", choices=sorted(SENSORS), default="hdl64e", help="default: %(default)s")
    parser.add_argument("--scene", choices=SCENES, default="mixed", help="kind of street (default: %(default)s)")
    seed = "the same seed gives the same bytes (default: 0)"
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=seed)
    drive = "simulate consecutive sweeps of one drive, with poses, instead of independent scenes"
    parser.add_argument("--drive", action="store_true", help=drive)
    motion = "motion of the vehicle within a sweep: compensated, as in KITTI, or raw (default: %(default)s)"
    parser.add_argument("--motion", choices=("compensated", "raw"), default="compensated", help=motion)
    parser.add_argument("--sequence", default="00", metavar="NN", help="sequence below DIR (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace existing scans and an existing bag")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="parallel processes (default: 1)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate and write. Returns the exit code."""
    from sqsegv3_ros.files import progress
    from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate

    settings = SimulationSettings(args.scans, args.sensor, args.seed, args.scene, args.drive, args.motion)
    scans = simulate(settings, args.output, args.bag, sequence=args.sequence, force=args.force, jobs=args.jobs)
    for _ in progress(scans, args.scans, "scan"):
        pass
    outputs = [str(path) for path in (args.output, args.bag) if path is not None]
    text = f"{args.scans} scan{'s' * (args.scans != 1)} of a simulated {args.sensor} in {' and '.join(outputs)}"
    print_results(args, text, {**asdict(settings), "outputs": outputs})
    return 0
