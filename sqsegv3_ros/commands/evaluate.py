"""`sqsegv3 evaluate`: predictions and ground truth of a SemanticKITTI data set -> a table and a JSON file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--dataset", required=True, metavar="ROOT", help="holds sequences/NN/{velodyne,labels}")
    parser.add_argument(
        "--predictions", required=True, metavar="DIR", help="holds sequences/NN/predictions/<scan>.label (raw ids)"
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
        help="also judge the points within so many pixels (default 1) of another class",
    )
    parser.add_argument(
        "--border-connectivity", type=int, choices=(4, 8), default=4, help="neighbours of a pixel (default 4)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="judge only the first N scans")


def run(args: argparse.Namespace) -> int:
    """Judge, print, write. Returns the exit code."""
    import json

    from sqsegv3_ros.evaluation.dataset import evaluate_dataset
    from sqsegv3_ros.evaluation.judge import BorderConfig
    from sqsegv3_ros.evaluation.table import format_summary
    from sqsegv3_ros.kitti import write_whole
    from sqsegv3_ros.labels import SEMANTIC_KITTI, LabelSet

    labels = SEMANTIC_KITTI if args.labels is None else LabelSet.from_yaml(args.labels)
    border = None if args.border is None else BorderConfig(args.border, args.border_connectivity)
    summary = evaluate_dataset(
        args.dataset, args.predictions, labels, args.sequences, border, args.limit, progress_line("scans")
    )
    print(format_summary(summary))
    if args.json is not None:
        write_whole(args.json, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return 0


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
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {value}")
    return value
