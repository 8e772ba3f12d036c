# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label`: label scans, SemanticKITTI data sets and bags, on this machine or a Ray cluster."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.commands.options import (
    add_cloud_options,
    add_format,
    add_json,
    add_model_options,
    add_params,
    intensity_settings,
    node_parameters,
    print_results,
)
from sqsegv3_ros.errors import OperationError, UserError, require

if TYPE_CHECKING:
    from sqsegv3_ros.labelling.manifest import Manifest, Record
    from sqsegv3_ros.labelling.plan import BagOptions, Job
    from sqsegv3_ros.labelling.progress import Progress
    from sqsegv3_ros.labelling.run_settings import RunSettings
    from sqsegv3_ros.labelling.workspace import Workspace

_ON_ERROR = ("fail", "skip-cloud", "quarantine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    inputs = (
        "point-cloud files (docs/files.md), SemanticKITTI data sets, ROS 1 or ROS 2 bags, or folders of these; "
        "paths, or URLs such as s3://bucket/archive and sftp://host/archive of .bin scans, data sets and bags"
    )
    parser.add_argument("input", nargs="*", metavar="INPUT", help=inputs)
    output = (
        "output folder or URL: DIR/<name>.label for a file, DIR/<name>/NNNNNN.label for an Ouster recording, "
        "DIR/sequences/NN/predictions/<stem>.label for a data set (raw ids, uint32), DIR/<name> for a bag, with "
        "labelled clouds and all other messages unchanged; DIR/manifest.jsonl lists what was done, and a second call "
        "resumes from it"
    )
    parser.add_argument("--output", metavar="DIR", help=output)
    add_format(parser)
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences of the data sets (default: all)")
    parser.add_argument("--force", action="store_true", help="overwrite existing outputs and start a new manifest")
    parser.add_argument("--shard", metavar="I/N", help="label only shard I of N of the inputs, I from 1 to N")
    on_error = (
        "input that cannot be labelled: fail ends the run, skip-cloud leaves unusable clouds out, quarantine sets the "
        "input aside and continues, as skip-cloud does for an unreadable bag (default: fail)"
    )
    parser.add_argument("--on-error", choices=_ON_ERROR, default="fail", help=on_error)
    parser.add_argument("--retry-quarantined", action="store_true", help="try quarantined inputs again")
    bags = parser.add_argument_group("bags")
    bags.add_argument("--topic", metavar="T", help="topic to label (default: the only topic with clouds)")
    bags.add_argument("--output-topic", metavar="T", help="topic of the labelled clouds (default: unchanged)")
    bags.add_argument("--storage", choices=("mcap", "sqlite3"), help="storage of written bags (default: unchanged)")
    add_json(parser)
    add_params(parser)
    add_cloud_options(parser)
    add_model_options(parser)
    _add_cluster_options(parser)
    summary = parser.add_argument_group("summary")
    text = "summarize the manifests of a run; label nothing"
    summary.add_argument("--summary", nargs="+", metavar="MANIFEST", help=text)


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    ray = parser.add_argument_group("Ray", "needs the extra 'cluster'")
    address = "label on Ray: without ADDRESS on this machine, otherwise on that cluster (host:6379, or auto)"
    ray.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help=address)
    ray.add_argument("--num-actors", type=int, metavar="N", help="number of actors (default: as many as fit)")
    cpus = "CPU cores of an actor, which also sets its --threads (default: 1)"
    ray.add_argument("--cpus-per-actor", type=float, default=1.0, metavar="X", help=cpus)
    gpus = "GPUs of an actor; 0.25: four actors share one (default: 0)"
    ray.add_argument("--gpus-per-actor", type=float, default=0.0, metavar="X", help=gpus)
    remote = parser.add_argument_group("remote storage", "needs the extra 'remote'")
    cache = "folder for copies of remote files (default: $XDG_CACHE_HOME/sqsegv3_ros/labelling)"
    remote.add_argument("--cache", type=Path, metavar="DIR", help=cache)
    limit = "largest input to fetch; a process keeps one input and its output at a time (default: 20)"
    remote.add_argument("--cache-gb", type=float, default=20.0, metavar="GB", help=limit)


def run(args: argparse.Namespace) -> int:
    """Check all inputs and outputs, then label every input that is not done, or print a summary."""
    from sqsegv3_ros.labelling.manifest import Manifest
    from sqsegv3_ros.labelling.plan import BagOptions, check_bags, plan_jobs, shard
    from sqsegv3_ros.labelling.workspace import Workspace, default_cache

    if args.summary is not None:
        return _summarize(args)
    if not args.input or args.output is None:
        raise UserError("pass INPUT and --output DIR, or --summary MANIFEST")
    require(args.cache_gb > 0, "--cache-gb", "above 0", args.cache_gb)
    args.cache = args.cache or default_cache()
    options = BagOptions(args.topic, args.output_topic, args.storage)
    jobs = plan_jobs(args.input, args.output, args.sequences, options, args.format)
    if args.intensity_field is not None and all(job.format == "kitti" and not job.is_bag for job in jobs):
        raise UserError("--intensity-field applies to bags and files with named fields, but all inputs are .bin scans")
    if args.shard is not None:
        jobs = shard(jobs, *_parse_shard(args.shard))
    settings = _settings(args, options)
    workspace = Workspace(args.cache, _cache_bytes(args))
    manifest = Manifest(args.output, args.shard or "", settings.identity(), workspace, fresh=args.force)
    try:
        manifest.read()
        remaining = manifest.remaining(jobs, retry_quarantined=args.retry_quarantined)
        if not args.force:
            _refuse_existing(args.output, manifest.unlisted_outputs(remaining))
        if args.on_error == "fail":
            check_bags(remaining, options)
        return _label(remaining, len(jobs), settings, manifest, workspace, args)
    finally:
        workspace.close()


def _label(
    jobs: list[Job], planned: int, settings: RunSettings, manifest: Manifest, workspace: Workspace, args: Any
) -> int:
    """Run the jobs and record what becomes of them."""
    from sqsegv3_ros.labelling.job import failure
    from sqsegv3_ros.labelling.manifest import DONE, FAILED, QUARANTINED
    from sqsegv3_ros.labelling.progress import Progress

    before = planned - len(jobs)
    earlier = f" ({_count(before, 'input')} finished before)" if before else ""
    counts = dict.fromkeys((DONE, QUARANTINED, FAILED, "clouds", "skipped_clouds"), 0)
    warnings: dict[str, str] = {}
    results = {
        "output": args.output,
        "manifest": manifest.location,
        "model": settings.model_name,
        "runtime": settings.runtime(),
        "inputs": planned,
        "finished_before": before,
    }
    if not jobs:
        print_results(args, f"nothing to label{earlier}: {args.output}", {**results, **counts, "warnings": warnings})
        return 0
    progress = Progress(jobs)
    records = _records(jobs, settings, workspace, progress, args)
    unlabelled = 0
    with manifest, closing(records):
        manifest.list_outputs(jobs)
        for record in records:
            manifest.add(record)
            if record.status == FAILED and args.on_error == "fail":
                raise failure(record)
            progress.finish(record)
            counts[record.status] += 1
            counts["clouds"] += record.clouds
            counts["skipped_clouds"] += record.skipped_clouds
            unlabelled += record.status != DONE or record.skipped_clouds > 0
            if record.warning:
                warnings.setdefault(record.input, record.warning)
    progress.close()
    if warnings:
        source, warning = next(iter(warnings.items()))
        more = f" (and warnings for {_count(len(warnings) - 1, 'more input')})" if len(warnings) > 1 else ""
        print(f"sqsegv3 label: {source}: {warning}{more}", file=sys.stderr)
    if unlabelled:
        where = f"`sqsegv3 label --summary {manifest.location}` lists them"
        print(f"sqsegv3 label: {_count(unlabelled, 'input')} not labelled completely; {where}", file=sys.stderr)
    text = f"labelled {_count(counts['clouds'], 'scan')}{earlier} with {settings.model_name} ({settings.runtime()})"
    print_results(args, f"{text}: {args.output}", {**results, **counts, "warnings": warnings})
    if counts[FAILED]:
        failed = _count(counts[FAILED], "input")
        raise OperationError(f"{failed} failed, possibly for a transient reason; run the same command again to retry")
    return 0


def _records(
    jobs: list[Job], settings: RunSettings, workspace: Workspace, progress: Progress, args: argparse.Namespace
) -> Generator[Record]:
    """Run the jobs in this process or on Ray."""
    if args.ray is not None:
        from sqsegv3_ros.labelling.ray_driver import label_on_ray

        return label_on_ray(jobs, settings, _cluster(args), args.cache, _cache_bytes(args), progress.say)
    from sqsegv3_ros.labelling.job import label_in_loop

    segmenter = settings.make_segmenter(Path(settings.parameters["model"]))
    return label_in_loop(segmenter, jobs, settings, workspace, progress.advance)


def _settings(args: argparse.Namespace, options: BagOptions) -> RunSettings:
    """Resolve the settings of the run from parameter files and options."""
    from sqsegv3_ros.inference.settings import DEFAULTS, Settings
    from sqsegv3_ros.labelling.run_settings import resolve, resolve_for_gpus
    from sqsegv3_ros.pointcloud2 import CloudSettings

    parameters = dict(Settings({**DEFAULTS, **node_parameters(args)}).values)
    scans = CloudSettings(**intensity_settings(args))
    if args.ray is not None:
        cluster = _cluster(args)
        parameters["threads"] = parameters["threads"] or max(1, int(cluster.cpus_per_actor))
        if cluster.gpus_per_actor:
            return resolve_for_gpus(parameters, options, scans, args.on_error)
        if parameters["device"] not in ("auto", "cpu"):
            raise UserError("--ray on GPUs needs --gpus-per-actor, such as 1 or 0.25, and no --device")
        parameters["device"] = "cpu"
    settings, hint = resolve(parameters, options, scans, args.on_error)
    if hint:
        print(hint, file=sys.stderr)
    return settings


def _cluster(args: argparse.Namespace) -> Any:
    from sqsegv3_ros.labelling.ray_driver import Cluster

    return Cluster(args.ray, args.num_actors, args.cpus_per_actor, args.gpus_per_actor)


def _cache_bytes(args: argparse.Namespace) -> int:
    return int(args.cache_gb * 1e9)


def _refuse_existing(folder: str, names: list[str]) -> None:
    """Raise UserError if outputs exist that no manifest lists."""
    existing = [path for name in names if (path := Path(folder, name)).exists()]
    if existing:
        raise UserError(
            f"{existing[0]} already exists ({_count(len(existing), 'existing output')}) and no manifest lists it; "
            "choose another output, or pass --force to overwrite"
        )


def _summarize(args: argparse.Namespace) -> int:
    from sqsegv3_ros.labelling.summary import format_summary, summarize

    if args.input or args.output is not None:
        raise UserError("--summary labels nothing: it takes no INPUT and no --output")
    summary = summarize(args.summary)
    print_results(args, format_summary(summary), summary)
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parse_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UserError(f"--shard must be I/N, such as 1/4, found '{text}'")
    return int(match[1]), int(match[2])
