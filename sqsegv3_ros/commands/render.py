# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 render`: draw a scan and its labels: range image, label image, bird's-eye view and legend."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.commands.options import add_label_set, add_output, check_output
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.pictures import encode_png
from sqsegv3_ros.evaluation.scan_picture import draw_scan
from sqsegv3_ros.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("input", metavar="INPUT", help=".bin scan, or SemanticKITTI root")
    parser.add_argument("--scan", metavar="NN/SCAN", help="scan of the root (default: the first)")
    labels = ".label file, predicted or true, or folder of predictions (default: the data set's ground truth)"
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
    scan = _find_scan(args.input, args.scan)
    points = read_scan(scan.path)
    labels_path = _labels_path(scan, args.labels)
    if args.compare is not None and labels_path is None:
        raise UserError(f"{scan.path} has no ground truth to show; --compare needs --labels")
    compared = None if args.compare is None else _labels_path(scan, args.compare)
    labels, truth = (
        None if path is None else read_known_labels(path, len(points), label_set) for path in (labels_path, compared)
    )
    sources = (("", scan.path), ("labels: ", labels_path), ("compared with: ", compared))
    title = "   ".join(f"{name}{path}" for name, path in sources if path is not None)
    picture = draw_scan(title, points, label_set, labels, truth, projection)
    write_atomically(args.output, encode_png(picture, compress_level=1))
    return 0


def _find_scan(source: str, name: str | None) -> ScanFile:

    path = Path(source)
    if not path.is_dir():
        if name is not None:
            raise UserError(f"--scan needs a SemanticKITTI root, but {source} is not a folder")
        if path.suffix != ".bin":
            raise UserError(
                f"{source}: expected a .bin scan or a SemanticKITTI root, found a '{path.suffix}' file; "
                "convert a bag with `sqsegv3 convert BAG --output ROOT`"
            )
        return ScanFile(path.absolute().parent.parent.name, path.stem, path)
    if name is None:
        return find_scans(path)[0]
    sequence, _, stem = name.partition("/")
    for scan in find_scans(path, [sequence]):
        if scan.stem == stem:
            return scan
    raise UserError(f"{source} has no scan '{name}'; expected a name such as 00/000000")


def _labels_path(scan: ScanFile, option: str | None) -> Path | None:
    if option is None:
        has_truth = scan.path.absolute().parent.name == "velodyne" and scan.labels_path.is_file()
        return scan.labels_path if has_truth else None
    return scan.prediction_path(option) if Path(option).is_dir() else Path(option)
