"""`sqsegv3 evaluate`: predictions and ground truth, of SemanticKITTI data sets or bags -> a table and a JSON file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.data.label_set import LabelSet
    from sqsegv3_ros.evaluation.evaluator import BorderConfig

_BAG_OPTIONS = ("topic", "ground_truth_topic", "label_field", "ground_truth_field")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--dataset",
        metavar="ROOT|BAG",
        help="holds sequences/NN/{velodyne,labels}; or the bag with the ground truth, where the labelled one has none",
    )
    parser.add_argument(
        "--predictions",
        required=True,
        metavar="DIR|BAG",
        help="holds sequences/NN/predictions/<scan>.label (raw ids); or a labelled bag, or a folder of such",
    )
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="which sequences (default: all of the data set)")
    parser.add_argument(
        "--labels", metavar="YAML", help="label configuration in SemanticKITTI's form (default: SemanticKITTI's own)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything to this file")
    parser.add_argument(
        "--border",
        nargs="?",
        type=int,
        const=1,
        metavar="PIXELS",
        help="also evaluate the points within so many pixels (default 1) of another class",
    )
    parser.add_argument(
        "--border-connectivity", type=int, choices=(4, 8), help="neighbours of a pixel for --border (default 4)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="evaluate only the first N scans")
    bags = parser.add_argument_group("bags")
    bags.add_argument("--topic", metavar="T", help="of the labelled clouds (default: the bag's only ones)")
    bags.add_argument("--ground-truth-topic", metavar="T", help="of the clouds in --dataset (default: the only ones)")
    bags.add_argument("--label-field", metavar="F", help="field of the labels (default: label)")
    bags.add_argument("--ground-truth-field", metavar="F", help="field of the true classes (default: ground_truth)")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, write. Returns the exit code."""
    import json
    from pathlib import Path

    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
    from sqsegv3_ros.evaluation.bag_evaluation import holds_bags
    from sqsegv3_ros.evaluation.evaluator import BorderConfig
    from sqsegv3_ros.evaluation.tables import format_summary
    from sqsegv3_ros.files import write_atomically

    labels = SEMANTIC_KITTI if args.labels is None else LabelSet.from_yaml(args.labels)
    if args.border is None and args.border_connectivity is not None:
        raise UserError("--border-connectivity says how --border looks for borders, which is not given")
    border = None if args.border is None else BorderConfig(args.border, args.border_connectivity or 4)
    evaluate = _evaluate_bags if holds_bags(Path(args.predictions)) else _evaluate_folders
    summary = evaluate(args, labels, border)
    print(format_summary(summary))
    if args.json is not None:
        write_atomically(args.json, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return 0


def _evaluate_folders(args: argparse.Namespace, labels: LabelSet, border: BorderConfig | None) -> dict[str, Any]:
    from sqsegv3_ros.evaluation.predictions import evaluate_dataset

    if args.dataset is None:
        raise UserError(f"give --dataset ROOT with the ground truth: {args.predictions} is neither a bag nor holds any")
    given = [name for name in _BAG_OPTIONS if getattr(args, name) is not None]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} is for bags, but {args.predictions} is none")
    return evaluate_dataset(
        args.dataset, args.predictions, labels, args.sequences, border, args.limit, progress_line("scans")
    )


def _evaluate_bags(args: argparse.Namespace, labels: LabelSet, border: BorderConfig | None) -> dict[str, Any]:
    from pathlib import Path

    from sqsegv3_ros.evaluation.bag_evaluation import BagFields, evaluate_bags

    if args.sequences is not None:
        raise UserError(f"--sequences is for SemanticKITTI's layout, but {args.predictions} holds bags")
    truth = None if args.dataset is None else Path(args.dataset)
    if args.ground_truth_topic is not None and truth is None:
        raise UserError("--ground-truth-topic chooses a topic of --dataset BAG, which is not given")
    fields = BagFields(**{name: getattr(args, name) for name in _BAG_OPTIONS if getattr(args, name) is not None})
    return evaluate_bags(Path(args.predictions), truth, labels, fields, border, args.limit, progress_line("clouds"))


def progress_line(what: str) -> Callable[[int, int], None]:
    """A counter (done, total) on one line of a terminal; silent where stderr is none."""
    shown_at = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown_at
        if not sys.stderr.isatty():
            return
        if done == total:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - shown_at > 0.2:
            shown_at = time.monotonic()
            print(f"\r{done} of {total} {what}", end="", file=sys.stderr, flush=True)

    return show


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, found '{text}'")
    return value
