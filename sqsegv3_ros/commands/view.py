# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 view`: label clouds and show them in the Rerun viewer, or record them for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.commands.options import (
    add_cloud_options,
    add_format,
    add_json,
    add_model_options,
    add_params,
    check_output,
    intensity_settings,
    node_parameters,
    print_results,
)
from sqsegv3_ros.data.point_files import PointFile, find_point_files, read_clouds
from sqsegv3_ros.data.rosbag_reader import BagReader, is_bag
from sqsegv3_ros.errors import UserError, require
from sqsegv3_ros.pointcloud2 import CloudSettings, decode, stamp_ns, to_remission

if TYPE_CHECKING:
    from sqsegv3_ros.inference.segmenter import Segmenter
    from sqsegv3_ros.viewing.rerun_recording import RerunRecording


@dataclass(frozen=True, eq=False)
class _Scan:
    """A cloud to show: its points with remission, rings, true classes, and its time if it is known."""

    points: npt.NDArray[np.float32]
    rings: npt.NDArray[np.int32] | None
    ground_truth: npt.NDArray[Any] | None = None
    stamp_ns: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    source = "point-cloud file, folder of such files, SemanticKITTI data set, or bag"
    parser.add_argument("input", type=Path, metavar="INPUT", help=source)
    parser.add_argument("--save", type=Path, metavar="RRD", help="write a recording instead of starting the viewer")
    parser.add_argument("--force", action="store_true", help="overwrite an existing recording")
    parser.add_argument("--limit", type=int, metavar="N", help="show only the first N clouds")
    add_format(parser)
    parser.add_argument("--topic", metavar="T", help="topic of a bag (default: the only topic with clouds)")
    add_json(parser)
    add_params(parser)
    add_cloud_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label and show the clouds. Returns the exit code."""
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.inference.settings import DEFAULTS, Settings
    from sqsegv3_ros.viewing.rerun_recording import RerunRecording

    require(args.limit is None or args.limit > 0, "--limit", "1 or more", args.limit)
    if args.save is not None:
        check_output(args.save, ".rrd", args.force, "--save")
    bag = is_bag(args.input)
    if bag and args.format is not None:
        raise UserError(f"--format is for point-cloud files, but {args.input} is a bag")
    if not bag and args.topic is not None:
        raise UserError(f"--topic is for bags, but {args.input} is not one")
    files = [] if bag else find_point_files(args.input, args.format)
    parameters = node_parameters(args)
    segmenter = CloudSegmenter.from_parameters(parameters).segmenter
    if bag:
        settings = Settings({**DEFAULTS, **parameters}).for_model(segmenter.info)
        cloud_settings = settings.cloud_settings(rings_needed=segmenter.projection.needs_rings)
        scans = _scans_of_bag(args.input, args.topic, cloud_settings)
    else:
        cloud_settings = CloudSettings(**intensity_settings(args))
        scans = _scans_of_files(files, cloud_settings)
    first = next(scans)  # before the viewer starts: an unusable input must not open one
    totals_ms: list[float] = []
    with closing(RerunRecording(args.save)) as recording:
        recording.log_classes(segmenter.info.labels)
        for number, scan in enumerate(islice(_chain(first, scans), args.limit)):
            totals_ms.append(_show(segmenter, scan, number, recording, cloud_settings))
    model, median_ms = segmenter.info.name, float(np.median(totals_ms))
    results = {"clouds": len(totals_ms), "model": model, "median_ms": median_ms, "recording": str(args.save or "")}
    shown = f"{len(totals_ms)} cloud{'s' * (len(totals_ms) != 1)} of {args.input}"
    text = f"{shown} labelled with {model} (median {median_ms:.0f} ms): {args.save or 'Rerun viewer'}"
    print_results(args, text, results)
    if args.save is not None:
        print(f"open it with: rerun {args.save}", file=sys.stderr)
    return 0


def _chain(first: _Scan, rest: Iterator[_Scan]) -> Iterator[_Scan]:
    yield first
    yield from rest


def _scans_of_files(files: list[PointFile], settings: CloudSettings) -> Iterator[_Scan]:
    for file in files:
        for cloud in read_clouds(file, settings.intensity_fields):
            to_remission(cloud.points[:, 3], settings)
            yield _Scan(cloud.points, cloud.rings, cloud.ground_truth)


def _scans_of_bag(path: Path, topic: str | None, settings: CloudSettings) -> Iterator[_Scan]:
    with BagReader(path) as reader:
        for message in reader.messages(reader.cloud_topic(topic)):
            cloud = reader.cloud(message)
            decoded = decode(cloud, settings)
            yield _Scan(decoded.points, decoded.rings, stamp_ns=stamp_ns(cloud.header))


def _show(segmenter: Segmenter, scan: _Scan, number: int, recording: RerunRecording, settings: CloudSettings) -> float:
    """Label and record a cloud. Returns its latency in milliseconds."""
    from sqsegv3_ros.inference.input_checks import Expected, check_input

    result = segmenter.segment(scan.points, scan.rings)
    recording.set_scan(number, scan.stamp_ns)
    recording.log_points(scan.points, result.labels, result.confidences, scan.ground_truth)
    recording.log_range_image(result.image.range.clamp_min(0).cpu().numpy())
    recording.log_label_image(result.label_image.cpu().numpy())
    total_ms = sum(result.timings_ms.values())
    recording.log_latency({**result.timings_ms, "total": total_ms})
    info = segmenter.info
    expected = Expected(segmenter.projection, info.normalization, segmenter.extrinsics, info.sensor_height_m, settings)
    for warning in check_input(scan.points, scan.rings, expected, result.image.index >= 0):
        recording.log_warning(warning)
    return total_ms
