# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 render`: draw a scan and its labels: range image, label image, bird's-eye view and legend."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sqsegv3_ros.commands.options import add_format, add_label_set, add_output, check_output
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.point_files import FileCloud, PointFile, find_point_files, read_clouds
from sqsegv3_ros.data.rosbag_reader import is_bag
from sqsegv3_ros.data.semantic_kitti import find_scans, is_dataset, read_known_labels
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import write_atomically
from sqsegv3_ros.viewing.pictures import encode_png
from sqsegv3_ros.viewing.scan_picture import draw_scan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    source = "point-cloud file, folder of such files, or SemanticKITTI data set"
    parser.add_argument("input", type=Path, metavar="INPUT", help=source)
    scan = (
        "scan to draw (default: the first): NN/SCAN of a data set, a file's path in a folder without suffix, or "
        "NAME/NNNNNN"
    )
    parser.add_argument("--scan", metavar="NAME", help=f"{scan} of a recording")
    add_format(parser)
    labels = ".label file, predicted or true, or folder of predictions (default: the ground truth, if there is any)"
    parser.add_argument("--labels", metavar="FILE", help=labels)
    parser.add_argument("--compare", metavar="FILE", help=".label file or folder of predictions to compare with")
    add_label_set(parser, "--dataset-labels")
    size, fov = ("H", "W"), ("UP", "DOWN")
    parser.add_argument("--image-size", nargs=2, type=int, default=(64, 2048), metavar=size, help="default: 64 2048")
    degrees = "vertical field of view in degrees (default: 3 -25)"
    parser.add_argument("--fov", nargs=2, type=float, default=(3.0, -25.0), metavar=fov, help=degrees)
    add_output(parser, "PNG")


def run(args: argparse.Namespace) -> int:
    """Draw the scan. Returns the exit code."""
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    check_output(args.output, ".png", args.force)
    label_set = args.dataset_labels
    projection = ProjectionConfig(*args.image_size, *args.fov)
    scan = _find_scan(args.input, args.scan, args.format)
    labels = _read_labels(scan, args.labels, label_set)
    if args.compare is not None and labels is None:
        raise UserError(f"{scan.file.path} has no ground truth to show; --compare needs --labels")
    compared = None if args.compare is None else _read_labels(scan, args.compare, label_set)
    name = f"{scan.file.path}" + (f" ({scan.name})" if scan.file.has_many_clouds else "")
    sources = (("", name), ("labels: ", labels and labels[0]), ("compared with: ", compared and compared[0]))
    title = "   ".join(f"{what}{source}" for what, source in sources if source)
    picture = draw_scan(
        title, scan.points, label_set, labels and labels[1], compared and compared[1], projection=projection
    )
    write_atomically(args.output, encode_png(picture, compress_level=1))
    return 0


def _find_scan(source: Path, name: str | None, file_format: str | None) -> FileCloud:
    if is_bag(source):
        raise UserError(f"{source} is a bag; convert it with `sqsegv3 convert {source} --output DIR`")
    for file in _files(source, name, file_format):
        if name is not None and not f"{name}/".startswith(f"{file.name}/"):
            continue
        for scan in read_clouds(file, intensity_fields=()):
            if name in (None, scan.name):
                return scan
    raise UserError(f"{source} has no scan '{name}'; expected a name such as 00/000000")


def _files(source: Path, name: str | None, file_format: str | None) -> Iterator[PointFile]:
    """The files that may hold the scan. Those of a SemanticKITTI data set are named NN/SCAN."""
    if source.is_dir() and is_dataset(source):
        sequences = None if name is None else [name.partition("/")[0]]
        return (PointFile(s.path, "kitti", f"{s.sequence}/{s.stem}") for s in find_scans(source, sequences))
    return iter(find_point_files(source, file_format))


def _read_labels(scan: FileCloud, option: str | None, label_set: LabelSet) -> tuple[str, npt.NDArray[Any]] | None:
    """The labels to show and their source; without an option, the ground truth or None."""
    path = scan.labels_path
    if option is not None:
        path = scan.prediction_path(option) if Path(option).is_dir() else Path(option)
    elif scan.ground_truth is not None:
        return "ground_truth", scan.ground_truth
    elif not path.is_file():
        return None
    return str(path), read_known_labels(path, len(scan.points), label_set)
