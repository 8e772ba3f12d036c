"""`sqsegv3 label`: scans and SemanticKITTI roots go in, .label files come out."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.commands.options import add_model_options, make_segmenter, progress
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.kitti import find_scans, is_dataset, read_scan, write_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "input",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help=".bin scans (x, y, z, remission as float32) or SemanticKITTI roots (with sequences/NN/velodyne)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a scan gives DIR/<stem>.label, a root DIR/sequences/NN/predictions/<stem>.label (raw ids, uint32)",
    )
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences of the roots (default: all)")
    parser.add_argument("--force", action="store_true", help="overwrite label files that are there")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label every input. Nothing is written before all inputs and outputs have been checked."""
    jobs = _jobs(args.input, args.output, args.sequences)
    present = [target for _, target in jobs if target.exists()]
    if present and not args.force:
        raise UserError(f"{present[0]} is there already ({len(present)} in all); pass --force to overwrite")
    segmenter = make_segmenter(args)
    for scan_path, target in progress(jobs, len(jobs), "scan"):
        points = read_scan(scan_path)
        try:
            result = segmenter.segment(points)
        except RuntimeError as error:
            raise OperationError(f"{scan_path}: {error}") from error
        write_labels(target, segmenter.info.labels.to_raw(result.labels))
    print(f"labelled {len(jobs)} scans with {segmenter.info.name} on {segmenter.device}: {args.output}")
    return 0


def _jobs(inputs: list[Path], output: Path, sequences: list[str] | None) -> list[tuple[Path, Path]]:
    """(scan, label file) for every scan of the inputs."""
    jobs: list[tuple[Path, Path]] = []
    for item in inputs:
        if item.is_dir():
            if not is_dataset(item):
                raise UserError(f"{item} is a folder without sequences/NN/velodyne; give .bin files or such a root")
            jobs += [(scan.path, scan.prediction_path(output)) for scan in find_scans(item, sequences)]
        elif not item.exists():
            raise UserError(f"there is no file or folder {item}")
        elif item.suffix != ".bin":
            raise UserError(f"{item}: expected a .bin scan or a SemanticKITTI root, found a '{item.suffix}' file")
        else:
            jobs.append((item, output / f"{item.stem}.label"))
    targets: dict[Path, Path] = {}
    for scan_path, target in jobs:
        other = targets.setdefault(target, scan_path)
        if other != scan_path:
            raise UserError(f"{other} and {scan_path} would both be written to {target}; label them apart")
    if sequences and not any(item.is_dir() for item in inputs):
        raise UserError("--sequences chooses among the sequences of a SemanticKITTI root, but no root was given")
    return jobs
