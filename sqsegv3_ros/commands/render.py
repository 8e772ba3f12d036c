"""`sqsegv3 render`: a scan, and labels for it, -> a PNG with range image, label image, bird's-eye view and legend."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.data.semantic_kitti import ScanFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("input", metavar="INPUT", help="a .bin scan, or a SemanticKITTI root")
    parser.add_argument("--scan", metavar="NN/SCAN", help="which scan of a root (default: its first)")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="its .label file, predicted or true, or a folder of predictions (default: the data set's ground truth)",
    )
    parser.add_argument(
        "--compare", metavar="FILE", help="another .label file or folder of predictions: also show where the two differ"
    )
    parser.add_argument(
        "--dataset-labels", metavar="YAML", help="label configuration in SemanticKITTI's form (default: its own)"
    )
    parser.add_argument(
        "--image-size", nargs=2, type=int, default=(64, 2048), metavar=("H", "W"), help="of the images (64 2048)"
    )
    parser.add_argument(
        "--fov", nargs=2, type=float, default=(3.0, -25.0), metavar=("UP", "DOWN"), help="in degrees (3 -25)"
    )
    parser.add_argument("--output", required=True, metavar="PNG", help="the picture to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Draw and write. Returns the exit code."""
    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
    from sqsegv3_ros.data.semantic_kitti import read_known_labels, read_scan
    from sqsegv3_ros.evaluation.sheet import png_of, scan_sheet
    from sqsegv3_ros.files import write_atomically
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    check_output(args.output, ".png", args.force)
    label_set = SEMANTIC_KITTI if args.dataset_labels is None else LabelSet.from_yaml(args.dataset_labels)
    projection = ProjectionConfig(*args.image_size, *args.fov)
    scan = _find(args.input, args.scan)
    points = read_scan(scan.path)
    labels_path = _labels_path(scan, args.labels)
    if args.compare is not None and labels_path is None:
        raise UserError(f"--compare needs labels to compare with: {scan.path} has no ground truth; give --labels")
    compared = None if args.compare is None else _labels_path(scan, args.compare)
    labels, truth = (
        None if path is None else read_known_labels(path, len(points), label_set) for path in (labels_path, compared)
    )
    sources = (("", scan.path), ("labels: ", labels_path), ("compared with: ", compared))
    title = "   ".join(f"{what}{path}" for what, path in sources if path is not None)
    sheet = scan_sheet(title, points, label_set, labels, truth, projection)
    write_atomically(args.output, png_of(sheet))
    return 0


def check_output(path: str, suffix: str, force: bool) -> None:
    """Raise UserError where a file must not or cannot be written, before any work is done."""
    if not path.lower().endswith(suffix):
        raise UserError(f"--output {path} must end in {suffix}")
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists already; give --force to replace it")


def _find(given: str, name: str | None) -> ScanFile:
    from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans

    path = Path(given)
    if not path.is_dir():
        if name is not None:
            raise UserError(f"--scan chooses a scan of a SemanticKITTI root, but {given} is no folder")
        if path.suffix != ".bin":
            raise UserError(
                f"{given}: expected a .bin scan or a SemanticKITTI root, found a '{path.suffix}' file; "
                "`sqsegv3 convert BAG --output ROOT` makes a root of a bag"
            )
        return ScanFile(path.absolute().parent.parent.name, path.stem, path)
    if name is None:
        return find_scans(path)[0]
    sequence, _, stem = name.partition("/")
    for scan in find_scans(path, [sequence]):
        if scan.stem == stem:
            return scan
    raise UserError(f"{given} has no scan '{name}'; expected the form 00/000000")


def _labels_path(scan: ScanFile, given: str | None) -> Path | None:
    if given is None:
        truth = scan.path.absolute().parent.name == "velodyne" and scan.labels_path.is_file()
        return scan.labels_path if truth else None
    return scan.prediction_path(given) if Path(given).is_dir() else Path(given)
