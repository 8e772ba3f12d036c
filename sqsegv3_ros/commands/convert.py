# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 convert`: convert a SemanticKITTI sequence to a ROS 2 bag, or a bag to a sequence."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.commands.options import add_cloud_options, add_label_set, intensity_settings
from sqsegv3_ros.data.conversion import BagImport, bag_to_sequence, sequence_to_bag
from sqsegv3_ros.data.ros2_messages import TOPIC
from sqsegv3_ros.data.rosbag_writer import default_storage
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import CloudSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("source", type=Path, metavar="ROOT|BAG", help="SemanticKITTI root, or a bag")
    parser.add_argument("--sequence", metavar="NN", help="sequence to read, or to write (default: 00)")
    topic = "topic of the clouds (default: /velodyne_points, or the bag's only one)"
    parser.add_argument("--topic", metavar="T", help=topic)
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")
    to_bag = parser.add_argument_group("from a sequence to a bag")
    to_bag.add_argument("--bag", type=Path, metavar="OUT", help="bag to write: a folder, or a .mcap or .db3 file")
    to_bag.add_argument("--storage", choices=("mcap", "sqlite3"), help="default: by the suffix of OUT, else mcap")
    to_sequence = parser.add_argument_group("from a bag to a sequence")
    to_sequence.add_argument("--output", type=Path, metavar="ROOT", help="root to write sequences/NN to")
    field = "field with the class of each point (default: %(default)s)"
    to_sequence.add_argument("--ground-truth-field", default="ground_truth", metavar="F", help=field)
    add_label_set(to_sequence)
    add_cloud_options(to_sequence)


def run(args: argparse.Namespace) -> int:
    """Convert, then print what was written."""
    if (args.bag is None) == (args.output is None):
        raise UserError(
            "give either --bag OUT to convert a sequence to a bag, or --output ROOT to convert a bag to a sequence"
        )
    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; expected a bag or a SemanticKITTI root")
    print(_to_bag(args) if args.bag is not None else _to_sequence(args))
    return 0


def _to_bag(args: argparse.Namespace) -> str:

    storage = args.storage or default_storage(args.bag)
    contents = sequence_to_bag(
        args.source, args.sequence, args.bag, storage, topic=args.topic or TOPIC, force=args.force
    )
    return f"{args.bag}: {contents}"


def _to_sequence(args: argparse.Namespace) -> str:

    settings = BagImport(
        topic=args.topic,
        cloud=CloudSettings(ring_field="", **intensity_settings(args)),
        ground_truth_field=args.ground_truth_field,
        labels=args.labels,
    )
    name = (args.sequence or "00").zfill(2)
    contents = bag_to_sequence(args.source, args.output, name, settings, force=args.force)
    return f"{args.output / 'sequences' / name}: {contents}"
