"""`sqsegv3 report`: an evaluation, from its file or made now, -> one HTML file that needs no network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.evaluation.report_page import Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "evaluation",
        nargs="?",
        metavar="EVALUATION.json",
        help="written by 'sqsegv3 evaluate --json'; without it, --dataset and --predictions are evaluated first",
    )
    parser.add_argument("--dataset", metavar="ROOT", help="the scans to show (default: where they were evaluated)")
    parser.add_argument("--predictions", metavar="DIR", help="their predictions (default: as evaluated)")
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="which to evaluate (default: all)")
    parser.add_argument("--labels", metavar="YAML", help="label configuration to evaluate with")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="show the N worst scans (default 5)")
    parser.add_argument("--output", required=True, metavar="HTML", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Evaluate where asked to, build the page, write it. Returns the exit code."""
    from sqsegv3_ros.commands.render import check_output
    from sqsegv3_ros.evaluation.report_page import build_report, worst_samples
    from sqsegv3_ros.files import write_atomically

    check_output(args.output, ".html", args.force)
    if args.worst < 0:
        raise UserError(f"--worst must be 0 or more, found {args.worst}")
    summary = _summary(args)
    root, predictions = args.dataset or summary.get("dataset"), args.predictions or summary.get("predictions")
    samples: Iterable[Sample] = ()
    note = ""
    if args.worst and (args.dataset or args.predictions or _are_here(root, predictions)):
        if not (root and predictions):
            raise UserError("give --dataset and --predictions together: the evaluation does not name the other one")
        samples = worst_samples(summary, root, predictions, args.worst)
    elif args.worst:
        note = "Without pictures: the scans and predictions that were evaluated are not on this machine."
        print(f"sqsegv3 report: {note} Give --dataset and --predictions to show scans.", file=sys.stderr)
    write_atomically(args.output, build_report(summary, samples, note).encode())
    return 0


def _are_here(*folders: str | None) -> bool:
    return all(folder is not None and Path(folder).is_dir() for folder in folders)


def _summary(args: argparse.Namespace) -> dict[str, Any]:
    from sqsegv3_ros.commands.evaluate import progress_line
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
    from sqsegv3_ros.evaluation.evaluator import BorderConfig
    from sqsegv3_ros.evaluation.predictions import evaluate_dataset
    from sqsegv3_ros.evaluation.report_page import read_summary

    if args.evaluation is not None:
        if args.sequences or args.labels:
            raise UserError("--sequences and --labels choose what to evaluate; EVALUATION.json is evaluated already")
        return read_summary(args.evaluation)
    if not (args.dataset and args.predictions):
        raise UserError("give EVALUATION.json, or --dataset and --predictions to evaluate now")
    labels = SEMANTIC_KITTI if args.labels is None else LabelSet.from_yaml(args.labels)
    progress = progress_line("scans")
    return evaluate_dataset(args.dataset, args.predictions, labels, args.sequences, BorderConfig(), progress=progress)
