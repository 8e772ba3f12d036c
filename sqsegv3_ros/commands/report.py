# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 report`: write an evaluation as a self-contained HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqsegv3_ros.commands.options import add_label_set, add_output, check_output
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError, require
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.dataset_evaluation import evaluate_dataset
from sqsegv3_ros.evaluation.html_report import Sample, build_report, worst_samples
from sqsegv3_ros.evaluation.summary import read_summary
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.viewing.pictures import require_pillow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    evaluation = "file from 'sqsegv3 evaluate --json' (default: evaluate --dataset and --predictions first)"
    parser.add_argument("evaluation", nargs="?", metavar="EVALUATION.json", help=evaluation)
    parser.add_argument("--dataset", metavar="DIR", help="data set of the scans to show (default: as evaluated)")
    parser.add_argument("--predictions", metavar="DIR", help="their predictions (default: as evaluated)")
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences to evaluate (default: all)")
    add_label_set(parser)
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="show the N worst scans (default: 5)")
    add_output(parser, "HTML")


def run(args: argparse.Namespace) -> int:
    """Evaluate if there is no evaluation yet, and write the page. Returns the exit code."""
    check_output(args.output, ".html", args.force)
    require(args.worst >= 0, "--worst", "0 or more", args.worst)
    if args.worst:
        require_pillow()  # fail before the evaluation, not after it
    summary = _summary(args)
    root, predictions = args.dataset or summary.get("dataset"), args.predictions or summary.get("predictions")
    samples: Iterable[Sample] = ()
    note = ""
    if args.worst and (args.dataset or args.predictions or _are_folders(root, predictions)):
        if not (root and predictions):
            raise UserError("pass both --dataset and --predictions: the evaluation does not name them")
        samples = worst_samples(summary, root, predictions, args.worst)
    elif args.worst:
        note = "No pictures: the evaluated scans and predictions are not on this machine."
        print(f"sqsegv3 report: {note} Pass --dataset and --predictions to show scans.", file=sys.stderr)
    write_atomically(args.output, build_report(summary, samples, note).encode())
    return 0


def _are_folders(*folders: str | None) -> bool:
    return all(folder is not None and Path(folder).is_dir() for folder in folders)


def _summary(args: argparse.Namespace) -> dict[str, Any]:

    if args.evaluation is not None:
        if args.sequences or args.labels is not SEMANTIC_KITTI:
            raise UserError("--sequences and --labels have no effect on EVALUATION.json, which is already evaluated")
        return read_summary(args.evaluation)
    if not (args.dataset and args.predictions):
        raise UserError("pass EVALUATION.json, or --dataset and --predictions to evaluate")
    return evaluate_dataset(args.dataset, args.predictions, args.labels, args.sequences, BorderConfig())
