# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label`: label scans, SemanticKITTI roots and bags."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqsegv3_ros.commands.options import (
    add_cloud_options,
    add_model_options,
    add_params,
    intensity_settings,
    node_parameters,
)
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import progress

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.labelling.plan import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    inputs = ".bin scans (x, y, z, remission as float32), SemanticKITTI roots, ROS 1 or ROS 2 bags, or folders of bags"
    parser.add_argument("input", nargs="+", type=Path, metavar="INPUT", help=inputs)
    output = (
        "output folder: DIR/<stem>.label for a scan, DIR/sequences/NN/predictions/<stem>.label for a root (raw "
        "ids, uint32), DIR/<name> for a bag, with labelled clouds and all other messages unchanged"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=output)
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences of the roots (default: all)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="overwrite existing outputs")
    existing.add_argument("--skip-existing", action="store_true", help="skip inputs whose output exists")
    parser.add_argument("--shard", metavar="I/N", help="label only shard I of N of the inputs, I from 1 to N")
    bags = parser.add_argument_group("bags")
    bags.add_argument("--topic", metavar="T", help="topic to label (default: the only topic with clouds)")
    bags.add_argument("--output-topic", metavar="T", help="topic of the labelled clouds (default: unchanged)")
    bags.add_argument("--storage", choices=("mcap", "sqlite3"), help="storage of written bags (default: unchanged)")
    note = (
        ". Its intensity settings apply to bags only: .bin scans hold 0..1 unless --intensity-scale and "
        "--intensity-exponent are given"
    )
    add_params(parser, note)
    add_cloud_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check all inputs and outputs, then label every input."""
    from sqsegv3_ros.labelling.plan import BagOptions, plan_jobs, resolve_bags, shard

    options = BagOptions(args.topic, args.output_topic, args.storage)
    jobs = plan_jobs(args.input, args.output, args.sequences, options)
    if args.intensity_field is not None and not any(job.is_bag for job in jobs):
        raise UserError("--intensity-field applies to bags, but no input is a bag")
    if args.shard is not None:
        jobs = shard(jobs, *_parse_shard(args.shard))
    existing = [job for job in jobs if job.target.exists()]
    if existing and not (args.force or args.skip_existing):
        raise UserError(
            f"{existing[0].target} exists already ({_count(len(existing), 'existing output')}); choose another output, "
            "pass --force to overwrite, or --skip-existing to label only the rest"
        )
    if args.skip_existing:
        jobs = [job for job in jobs if not job.target.exists()]
    skipped = f" ({_count(len(existing), 'output')} existed already)" if existing and args.skip_existing else ""
    if not jobs:
        print(f"nothing to label{skipped}: {args.output}")
        return 0
    jobs = resolve_bags(jobs, options)
    total = sum(job.scans for job in jobs)
    segmenter = _make_segmenter(args)
    runtime = segmenter.segmenter.runtime
    if runtime.hint:
        print(runtime.hint, file=sys.stderr)
    warnings: dict[Path, str] = {}
    for source, warning in progress(_label(segmenter, jobs, args), total, "scan"):
        if warning:
            warnings.setdefault(source, warning)
    if warnings:
        source, warning = next(iter(warnings.items()))
        more = f" (and warnings for {_count(len(warnings) - 1, 'more input')})" if len(warnings) > 1 else ""
        print(f"sqsegv3 label: {source}: {warning}{more}", file=sys.stderr)
    print(f"labelled {_count(total, 'scan')}{skipped} with {segmenter.segmenter.info.name} ({runtime}): {args.output}")
    return 0


def _label(segmenter: CloudSegmenter, jobs: list[Job], args: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Run the jobs. Yields the bag or folder of each scan, and its input warnings."""
    from sqsegv3_ros.labelling.job import label_bag, label_scan
    from sqsegv3_ros.pointcloud2 import CloudSettings

    scan_settings = CloudSettings(**intensity_settings(args))
    for job in jobs:
        if job.is_bag:
            for warning in label_bag(segmenter, job, args.output_topic, force=args.force):
                yield job.source, warning
        else:
            yield job.source.parent, label_scan(segmenter.segmenter, job, scan_settings)


def _make_segmenter(args: argparse.Namespace) -> CloudSegmenter:
    """Build the pipeline of the node from parameter files and options."""
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

    return CloudSegmenter.from_parameters(node_parameters(args), warm_up=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parse_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UserError(f"--shard must be I/N, such as 1/4, found '{text}'")
    return int(match[1]), int(match[2])
