"""`sqsegv3 figures`: scans, and trained networks, in; the paper's figures 2 and 3 made of them out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.network.model import SqueezeSegV3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="scans in SemanticKITTI's layout; labels are not read")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="of these sequences (default: all)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N scans")
    parser.add_argument("--height", type=int, default=64, metavar="H", help="rows of the image (default: %(default)s)")
    parser.add_argument("--width", type=int, default=2048, metavar="W", help="columns (default: %(default)s)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="CKPT",
        help="also show where the filters of this network are active; may be given again, to compare",
    )
    parser.add_argument(
        "--stage", type=int, choices=range(1, 6), default=3, help="of the encoder, whose filters (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what lies in DIR")


def run(args: argparse.Namespace) -> int:
    """Draw, and say what was drawn. Returns the exit code."""
    from sqsegv3_ros.benchmark.tables import import_pyplot

    import_pyplot()  # better missed now than after the work
    from sqsegv3_ros.benchmark.ablation import figures, observation
    from sqsegv3_ros.data.semantic_kitti import find_scans, read_scan
    from sqsegv3_ros.files import write_atomically
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    names = {"means": "coordinates.png", "places": "locations.png", "filters": "activation.png", "json": "figures.json"}
    paths = {key: args.output / name for key, name in names.items()}
    taken = [str(path) for path in paths.values() if path.exists()]
    if taken and not args.force:
        raise UserError(f"{', '.join(taken)} exists already; choose another --output or overwrite with --force")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be 1 or more, found {args.limit}")
    projection = ProjectionConfig(height=args.height, width=args.width)
    files = find_scans(args.root, args.sequences)[: args.limit]

    def scans() -> Iterator[Any]:
        return (read_scan(file.path) for file in files)

    found = {
        name: observation.activation(network, scans(), projection, normalization, args.stage)
        for name, network, projection, normalization in _networks(args.checkpoint)
    }
    seen = observation.coordinates(scans(), projection)
    args.output.mkdir(parents=True, exist_ok=True)
    figures.draw_means(seen, paths["means"])
    figures.draw_locations(seen, paths["places"])
    if found:
        figures.draw_activations(found, args.stage, paths["filters"])
    result = figures.summary(seen, found, args.stage)
    write_atomically(paths["json"], json.dumps(result, indent=1).encode())
    drawn = [path.name for key, path in paths.items() if found or key != "filters"]
    print(f"{', '.join(drawn)} of {seen.scans} scans in {args.output}")
    return 0


def _networks(checkpoints: list[Path]) -> Iterator[tuple[str, SqueezeSegV3, ProjectionConfig, Normalization]]:
    """What each network is called, itself, and how its images are made; all files are read before the first is used."""
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.training.checkpoint import load_network, read_checkpoint

    loaded = [(path, *read_checkpoint(path)) for path in checkpoints]
    names = [description["name"] for _, description, _ in loaded]
    for path, description, weights in loaded:
        name = description["name"] if names.count(description["name"]) == 1 else f"{path.parent.name}/{path.name}"
        projection = ProjectionConfig.from_dict(description["projection"])
        yield (
            name,
            load_network(description, weights),
            projection,
            Normalization.from_dict(description["normalization"]),
        )
