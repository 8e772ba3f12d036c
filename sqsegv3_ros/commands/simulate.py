"""`sqsegv3 simulate`: synthetic streets in, labelled scans (SemanticKITTI's layout) and bags out."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    from sqsegv3_ros.simulation.plans import SCENES
    from sqsegv3_ros.simulation.sensors import SENSORS

    parser.add_argument("--scans", type=int, required=True, metavar="N", help="how many scans")
    parser.add_argument(
        "--output", type=Path, metavar="ROOT", help="write sequences/NN/{velodyne,labels} below this folder"
    )
    parser.add_argument(
        "--bag", type=Path, metavar="PATH", help="write a ROS 2 bag (mcap) with /velodyne_points and /clock"
    )
    parser.add_argument("--sensor", choices=sorted(SENSORS), default="hdl64e", help="default: %(default)s")
    parser.add_argument("--scene", choices=SCENES, default="mixed", help="kind of streets (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed gives the same bytes (default: 0)"
    )
    parser.add_argument(
        "--drive",
        action="store_true",
        help="consecutive sweeps of one drive, with poses, instead of independent scenes",
    )
    parser.add_argument(
        "--motion",
        choices=("compensated", "raw"),
        default="compensated",
        help="the car's motion within a sweep: taken out, as in KITTI, or left in (default: %(default)s)",
    )
    parser.add_argument(
        "--sequence", default="00", metavar="NN", help="sequence to write below ROOT (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what other settings made")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Simulate and write, with a progress bar where tqdm is installed."""
    from sqsegv3_ros.simulation.dataset import Settings, simulate

    settings = Settings(args.scans, args.sensor, args.seed, args.scene, args.drive, args.motion)
    portions = simulate(settings, args.output, args.bag, sequence=args.sequence, force=args.force, jobs=args.jobs)
    try:
        from tqdm import tqdm
    except ImportError:
        for _ in portions:
            pass
    else:
        with tqdm(total=args.scans, unit="scan", disable=None) as bar:
            for count in portions:
                bar.update(count)
    places = [str(place) for place in (args.output, args.bag) if place is not None]
    print(f"{args.scans} scans of a simulated {args.sensor} in {' and '.join(places)}")
    return 0
