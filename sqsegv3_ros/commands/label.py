"""`sqsegv3 label`: scans, SemanticKITTI roots and bags go in, .label files and labelled bags come out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.commands.options import (
    add_cloud_options,
    add_model_options,
    intensity_settings,
    make_segmenter,
    runtime_settings,
)
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import progress

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.inference.segmenter import Segmenter
    from sqsegv3_ros.labelling.job import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "input",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help=".bin scans (x, y, z, remission as float32), SemanticKITTI roots (with sequences/NN/velodyne), bags of "
        "ROS 1 or ROS 2, or folders of bags",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a scan gives DIR/<stem>.label, a root DIR/sequences/NN/predictions/<stem>.label (raw ids, uint32), a bag "
        "DIR/<its name> with labelled clouds and everything else as it was",
    )
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences of the roots (default: all)")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--force", action="store_true", help="overwrite what is there")
    there.add_argument("--skip-existing", action="store_true", help="leave out what is done: goes on where it stopped")
    parser.add_argument("--shard", metavar="I/N", help="only the I-th of N shares of the inputs, I from 1 to N")
    bags = parser.add_argument_group("bags")
    bags.add_argument("--topic", metavar="T", help="which clouds to label (default: the bag's only ones)")
    bags.add_argument("--output-topic", metavar="T", help="the labelled clouds' topic (default: as they came)")
    bags.add_argument("--storage", choices=("mcap", "sqlite3"), help="write ROS 2 bags so (default: as they come)")
    parser.add_argument(
        "--params",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="parameters of the node (YAML), to label as it would; may be given again, later files beat earlier ones. "
        "What they say of the intensity is for clouds: .bin scans hold 0..1 unless --intensity-scale and "
        "--intensity-exponent say otherwise",
    )
    add_cloud_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label every input. Nothing is written before all inputs and outputs have been checked."""
    from sqsegv3_ros.inference.settings import check_value
    from sqsegv3_ros.labelling.job import BagOptions, check, plan, share

    options = BagOptions(args.topic, args.output_topic, args.storage)
    jobs = plan(args.input, args.output, args.sequences, options)
    if args.intensity_field is not None and not any(job.is_bag for job in jobs):
        raise UserError("--intensity-field is for bags, but no bag was given")
    for name in ("intensity_scale", "intensity_exponent"):
        if getattr(args, name) is not None:
            check_value(name, getattr(args, name))
    if args.shard is not None:
        jobs = share(jobs, *_shard(args.shard))
    present = [job for job in jobs if job.target.exists()]
    if present and not (args.force or args.skip_existing):
        raise UserError(
            f"{present[0].target} is there already ({len(present)} in all); pass --force to overwrite, or "
            "--skip-existing to label only what is missing"
        )
    if args.skip_existing:
        jobs = [job for job in jobs if not job.target.exists()]
    done = f" ({len(present)} were there already)" if present and args.skip_existing else ""
    if not jobs:
        print(f"nothing to label{done}: {args.output}")
        return 0
    jobs = check(jobs, options)
    total = sum(job.scans for job in jobs)
    cloud_segmenter = _make_cloud_segmenter(args) if args.params or any(job.is_bag for job in jobs) else None
    segmenter = make_segmenter(args) if cloud_segmenter is None else cloud_segmenter.segmenter
    warned: dict[Path, str] = {}
    for source, warning in progress(_label(segmenter, cloud_segmenter, jobs, args), total, "scan"):
        if warning:
            warned.setdefault(source, warning)
    if warned:
        source, warning = next(iter(warned.items()))
        more = f" (and {len(warned) - 1} more such folders or bags)" if len(warned) > 1 else ""
        print(f"sqsegv3 label: {source}: {warning}{more}", file=sys.stderr)
    print(f"labelled {total} scans{done} with {segmenter.info.name} ({segmenter.runtime}): {args.output}")
    return 0


def _label(
    segmenter: Segmenter, cloud_segmenter: CloudSegmenter | None, jobs: list[Job], args: argparse.Namespace
) -> Iterator[tuple[Path, str]]:
    """Do the jobs. Yields with every scan the bag or folder where it comes from and the input warning on it."""
    from sqsegv3_ros.labelling.job import label_bag, label_scan
    from sqsegv3_ros.pointcloud2 import CloudSettings

    for job in jobs:
        if cloud_segmenter is not None and job.is_bag:
            for warning in label_bag(cloud_segmenter, job, args.output_topic, force=args.force):
                yield job.source, warning
        else:
            yield job.source.parent, label_scan(segmenter, job, CloudSettings(**intensity_settings(args)))


def _make_cloud_segmenter(args: argparse.Namespace) -> CloudSegmenter:
    """The node's way from cloud to labelled cloud, by parameter file and options."""
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.inference.model_file import find_model
    from sqsegv3_ros.inference.settings import SPECS, Settings, check_value, read_parameters

    values: dict[str, Any] = {spec.name: spec.default for spec in SPECS}
    for file in args.params:
        values.update(read_parameters(file))
    if args.threads is not None and args.threads < 1:
        raise UserError(f"threads must lie in 1..1024, found {args.threads}")
    given = {
        "model": None if args.model is None and values["model"] else str(find_model(args.model)),
        **{name: None if value == "auto" else value for name, value in runtime_settings(args).items()},
        "knn.mode": args.knn,
        "knn.k": args.knn_k,
        "knn.search": args.knn_search,
        **intensity_settings(args),
    }
    values.update({name: check_value(name, value) for name, value in given.items() if value is not None})
    return CloudSegmenter(Settings(values), warm_up=False)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UserError(f"--shard must be I/N, such as 1/4, found '{text}'")
    return int(match[1]), int(match[2])
