"""`sqsegv3 convert`: a SemanticKITTI sequence -> a ROS 2 bag, or a bag -> a SemanticKITTI sequence."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    from sqsegv3_ros.commands.options import add_cloud_options

    parser.add_argument(
        "source", type=Path, metavar="ROOT|BAG", help="SemanticKITTI root (with sequences/NN/velodyne), or a bag"
    )
    parser.add_argument("--sequence", metavar="NN", help="which sequence of the root, or which to write (default: 00)")
    parser.add_argument("--topic", metavar="T", help="of the clouds (default: /velodyne_points, or the bag's only one)")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    to_bag = parser.add_argument_group("from a sequence to a bag")
    to_bag.add_argument("--bag", type=Path, metavar="OUT", help="bag to write: a folder, or a .mcap or .db3 file")
    to_bag.add_argument("--storage", choices=("mcap", "sqlite3"), help="default: mcap, or as OUT ends")
    to_sequence = parser.add_argument_group("from a bag to a sequence")
    to_sequence.add_argument("--output", type=Path, metavar="ROOT", help="root to write sequences/NN below")
    to_sequence.add_argument(
        "--ground-truth-field", default="ground_truth", metavar="F", help="field of the labels (default: %(default)s)"
    )
    to_sequence.add_argument("--labels", metavar="YAML", help="label configuration (default: SemanticKITTI's own)")
    add_cloud_options(to_sequence)


def run(args: argparse.Namespace) -> int:
    """Convert, then say what was written."""
    if (args.bag is None) == (args.output is None):
        raise UserError("give --bag OUT to turn a sequence into a bag, or --output ROOT to turn a bag into a sequence")
    if not args.source.exists():
        raise UserError(f"there is no bag and no folder {args.source}")
    print(_to_bag(args) if args.bag is not None else _to_sequence(args))
    return 0


def _to_bag(args: argparse.Namespace) -> str:
    from sqsegv3_ros.commands.evaluate import progress_line
    from sqsegv3_ros.data.conversion import sequence_to_bag
    from sqsegv3_ros.data.rosbag_reader import MCAP, SQLITE3
    from sqsegv3_ros.data.sequences import TOPIC

    storage = args.storage or (SQLITE3 if args.bag.suffix == ".db3" else MCAP)
    told = sequence_to_bag(
        args.source, args.sequence, args.bag, storage,
        topic=args.topic or TOPIC, force=args.force, progress=progress_line("scans"),
    )  # fmt: skip
    return f"{args.bag}: {told}"


def _to_sequence(args: argparse.Namespace) -> str:
    from sqsegv3_ros.commands.evaluate import progress_line
    from sqsegv3_ros.commands.options import intensity_settings
    from sqsegv3_ros.data.conversion import FromBag, bag_to_sequence
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
    from sqsegv3_ros.pointcloud2 import CloudSettings

    settings = FromBag(
        topic=args.topic,
        cloud=CloudSettings(ring_field="", **intensity_settings(args)),
        truth_field=args.ground_truth_field,
        labels=SEMANTIC_KITTI if args.labels is None else LabelSet.from_yaml(args.labels),
    )
    name = (args.sequence or "00").zfill(2)
    told = bag_to_sequence(args.source, args.output, name, settings, force=args.force, progress=progress_line("clouds"))
    return f"{args.output / 'sequences' / name}: {told}"
