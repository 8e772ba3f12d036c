# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 convert`: convert a SemanticKITTI sequence to a ROS 2 bag, or a bag or compressed scans to a sequence."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_cloud_options, add_json, add_label_set, intensity_settings, print_results
from sqsegv3_ros.data.compressed_scans import CompressedImport, compressed_to_sequence
from sqsegv3_ros.data.conversion import BagImport, bag_to_sequence, sequence_to_bag
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.ros2_messages import TOPIC
from sqsegv3_ros.data.rosbag_writer import default_storage
from sqsegv3_ros.data.sequences import Contents
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.pointcloud2 import CloudSettings

_EXPECTED = "a bag, a SemanticKITTI data set or a folder of .npz scans"
_OF_CLOUDS = ("intensity_field", "intensity_scale", "intensity_exponent")
_OF_BAG = ("ground_truth_field", "labels")
_OF_COMPRESSED = ("match", "least_confidence", "objects")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "source", type=Path, metavar="DATASET|BAG|DIR", help="SemanticKITTI data set, bag, or folder of .npz scans"
    )
    parser.add_argument("--sequence", metavar="NN", help="sequence to read, or to write (default: 00)")
    topic = "topic of the clouds (default: /velodyne_points, or the bag's only one)"
    parser.add_argument("--topic", metavar="T", help=topic)
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")
    add_json(parser)
    to_bag = parser.add_argument_group("from a sequence to a bag")
    to_bag.add_argument("--bag", type=Path, metavar="OUT", help="bag to write: a folder, or a .mcap or .db3 file")
    to_bag.add_argument("--storage", choices=("mcap", "sqlite3"), help="default: by the suffix of OUT, else mcap")
    to_sequence = parser.add_argument_group("from a bag or compressed scans to a sequence")
    to_sequence.add_argument("--output", type=Path, metavar="DIR", help="data set folder to write sequences/NN to")
    add_cloud_options(to_sequence)
    of_bag = parser.add_argument_group("from a bag to a sequence")
    field = "field with the class of each point (default: ground_truth)"
    of_bag.add_argument("--ground-truth-field", metavar="F", help=field)
    add_label_set(of_bag)
    of_bag.set_defaults(labels=None)
    compressed = parser.add_argument_group("from compressed scans (.npz) to a sequence")
    compressed.add_argument("--match", metavar="GLOB", help="files of DIR to read (default: *.npz)")
    confidence = "ignore a teacher's labels below this confidence, 0..15 (default: 0)"
    compressed.add_argument("--least-confidence", type=int, metavar="C", help=confidence)
    objects = "raw ids of objects whose connected points become instances, for training to paste"
    compressed.add_argument("--objects", type=int, nargs="*", metavar="ID", help=objects)


def run(args: argparse.Namespace) -> int:
    """Convert, then print what was written."""
    if (args.bag is None) == (args.output is None):
        raise UserError(
            "give either --bag OUT to convert a sequence to a bag, or --output DIR to convert a bag to a sequence"
        )
    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; expected {_EXPECTED}")
    if args.source.is_file() and args.source.suffix == ".npz":
        raise UserError(
            f"{args.source} is a file; expected {_EXPECTED}: pass {args.source.parent}, with --match "
            f"'{args.source.name}' for this scan only"
        )
    if args.bag is not None:
        _refuse("--bag converts a SemanticKITTI data set", args, *_OF_CLOUDS, *_OF_BAG, *_OF_COMPRESSED)
        text, results = _to_bag(args)
    elif args.source.is_dir() and any(args.source.glob("*.npz")):
        _refuse("no input is a bag", args, "topic", "intensity_field", *_OF_BAG)
        _refuse("no bag is written", args, "storage")
        text, results = _compressed_to_sequence(args)
    else:
        _refuse("no input is a folder of .npz scans", args, *_OF_COMPRESSED)
        _refuse("no bag is written", args, "storage")
        text, results = _to_sequence(args)
    print_results(args, text, results)
    return 0


def _refuse(reason: str, args: argparse.Namespace, *names: str) -> None:
    """Raise UserError if options are given that do not apply to the conversion."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise UserError(f"{reason}; omit {' and '.join(given)}")


def _to_bag(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    storage, topic = args.storage or default_storage(args.bag), args.topic or TOPIC
    contents = sequence_to_bag(args.source, args.sequence, args.bag, storage, topic=topic, force=args.force)
    text = f"{args.bag}: {contents.scans} clouds on {topic}, {contents}"
    return text, {"output": str(args.bag), "topic": topic, "storage": storage, **asdict(contents)}


def _to_sequence(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    settings = BagImport(
        topic=args.topic,
        cloud=CloudSettings(ring_field="", **intensity_settings(args)),
        ground_truth_field=args.ground_truth_field or "ground_truth",
        labels=args.labels or SEMANTIC_KITTI,
    )
    name = (args.sequence or "00").zfill(2)
    return _describe(args, name, bag_to_sequence(args.source, args.output, name, settings, force=args.force))


def _compressed_to_sequence(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    files = sorted(args.source.glob(args.match or "*.npz"))
    if not files:
        raise UserError(f"{args.source} has no file that matches --match '{args.match}'")
    given = {"remission_scale": args.intensity_scale, "remission_exponent": args.intensity_exponent}
    settings = CompressedImport(
        **{key: value for key, value in given.items() if value is not None},
        least_confidence=args.least_confidence or 0,
        objects=tuple(args.objects or ()),
    )
    name = (args.sequence or "00").zfill(2)
    return _describe(args, name, compressed_to_sequence(files, args.output, name, settings, force=args.force))


def _describe(args: argparse.Namespace, name: str, contents: Contents) -> tuple[str, dict[str, Any]]:
    """Text and results for a written sequence."""
    folder = args.output / "sequences" / name
    return f"{folder}: {contents.scans} scans {contents}", {"output": str(folder), **asdict(contents)}
