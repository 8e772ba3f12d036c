# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 evaluate`: compare predictions with ground truth, in SemanticKITTI data sets or bags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_format, add_json, add_label_map, add_label_set, print_results
from sqsegv3_ros.data.label_map import FoldedLabels, load_label_map
from sqsegv3_ros.data.point_files import is_point_file
from sqsegv3_ros.errors import UserError, require
from sqsegv3_ros.evaluation.bag_evaluation import BagFields, contains_bags, evaluate_bags
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.dataset_evaluation import evaluate_dataset
from sqsegv3_ros.evaluation.file_evaluation import evaluate_files
from sqsegv3_ros.evaluation.summary import format_summary

_BAG_OPTIONS = ("topic", "ground_truth_topic", "label_field", "ground_truth_field")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    dataset = (
        "folder with sequences/NN/{velodyne,labels}; point-cloud file or folder of them, with a field ground_truth or "
        ".label files beside; or bag with ground truth if the labelled bag has none"
    )
    parser.add_argument("--dataset", metavar="DATASET|FILES|BAG", help=dataset)
    add_format(parser)
    predictions = (
        "folder with sequences/NN/predictions/<scan>.label, or <file>.label for other files (raw ids); labelled bag, "
        "or folder of labelled bags"
    )
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR|BAG", help=predictions)
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences to evaluate (default: all)")
    add_label_set(parser)
    add_label_map(parser, "evaluate folded classes")
    add_json(parser)
    border = "also evaluate the points within this many pixels (default: 1) of another class"
    parser.add_argument("--border", nargs="?", type=int, const=1, metavar="PIXELS", help=border)
    connectivity = "neighbours of a pixel for --border (default: 4)"
    parser.add_argument("--border-connectivity", type=int, choices=(4, 8), help=connectivity)
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N scans")
    bags = parser.add_argument_group("bags")
    bags.add_argument("--topic", metavar="T", help="topic of the labelled clouds (default: the only clouds)")
    bags.add_argument("--ground-truth-topic", metavar="T", help="topic in --dataset (default: the only clouds)")
    bags.add_argument("--label-field", metavar="F", help="field of the labels (default: label)")
    bags.add_argument("--ground-truth-field", metavar="F", help="field of the true classes (default: ground_truth)")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print and write. Returns the exit code."""
    require(args.limit is None or args.limit > 0, "--limit", "1 or more", args.limit)
    if args.border is None and args.border_connectivity is not None:
        raise UserError("--border-connectivity needs --border")
    border = None if args.border is None else BorderConfig(args.border, args.border_connectivity or 4)
    bag_options = {name: getattr(args, name) for name in _BAG_OPTIONS if getattr(args, name) is not None}
    evaluate = _evaluate_bags if contains_bags(args.predictions) else _evaluate_folders
    summary = evaluate(args, bag_options, border)
    print_results(args, format_summary(summary), summary)
    return 0


def _evaluate_folders(
    args: argparse.Namespace, bag_options: dict[str, str], border: BorderConfig | None
) -> dict[str, Any]:
    if args.dataset is None:
        raise UserError(f"pass --dataset DIR with the ground truth: {args.predictions} is not a bag and contains none")
    for name in bag_options:
        raise UserError(f"--{name.replace('_', '-')} is for bags, but {args.predictions} is not one")
    dataset = Path(args.dataset)
    if is_point_file(dataset) or args.format is not None or (dataset.is_dir() and not (dataset / "sequences").is_dir()):
        if args.sequences is not None:
            raise UserError(f"--sequences is for SemanticKITTI data sets, but {dataset} is not one")
        files = dataset, args.predictions, args.labels, args.format
        return evaluate_files(*files, border, args.limit, _label_map(args))
    label_map = _label_map(args)
    labels = args.labels if label_map is None else label_map.labels  # files of folded labels hold ids of members
    return evaluate_dataset(dataset, args.predictions, labels, args.sequences, border, args.limit)


def _evaluate_bags(
    args: argparse.Namespace, bag_options: dict[str, str], border: BorderConfig | None
) -> dict[str, Any]:
    if args.sequences is not None:
        raise UserError(f"--sequences is for SemanticKITTI data sets, but {args.predictions} contains bags")
    if args.ground_truth_topic is not None and args.dataset is None:
        raise UserError("--ground-truth-topic needs --dataset BAG")
    if args.format is not None:
        raise UserError(f"--format is for point-cloud files, but {args.predictions} contains bags")
    truth = None if args.dataset is None else Path(args.dataset)
    fields = BagFields(**bag_options)
    return evaluate_bags(args.predictions, truth, args.labels, fields, border, args.limit, _label_map(args))


def _label_map(args: argparse.Namespace) -> FoldedLabels | None:
    return None if args.label_map is None else load_label_map(args.label_map).apply(args.labels)
