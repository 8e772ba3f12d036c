# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 ablate`: measure, train and plot the paper's ablation variants, next to the published numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.commands.options import add_json, print_results
from sqsegv3_ros.errors import UserError

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.network.model import SqueezeSegV3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from sqsegv3_ros.benchmark.ablation.variants import CONFIG

    parser.add_argument(
        "--network", choices=("21", "53"), default="21", help="layers of the backbone (default: %(default)s)"
    )
    parser.add_argument("--height", type=int, default=64, metavar="H", help="rows of the image (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, default=2048, metavar="W", help="columns of the image (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat", type=int, default=10, metavar="N", help="timings per block, 0 = none (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", help="device of the timings: cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    add_json(parser)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--png", type=Path, metavar="FILE", help="plot the results as PNG (needs matplotlib)")
    group = parser.add_argument_group("training", "the networks of the paper's tables 3 to 5")
    instead = group.add_mutually_exclusive_group()
    instead.add_argument(
        "--commands", action="store_true", help="print the training commands, one per network and seed"
    )
    instead.add_argument("--collect", action="store_true", help="print the tables of the finished runs in --runs")
    instead.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="plot figures 2 and 3 of the paper for the scans in --root, into DIR",
    )
    group.add_argument(
        "--root", default="ROOT", help="SemanticKITTI data set to train on or to plot (default: %(default)s)"
    )
    group.add_argument(
        "--runs", default="runs/ablation", metavar="DIR", help="output folder of the runs (default: %(default)s)"
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="random seeds (default: 0 1 2)"
    )
    group.add_argument("--config", default=CONFIG, metavar="YAML", help="training configuration (default: %(default)s)")
    group.add_argument(
        "--multiplier",
        type=float,
        default=0.25,
        metavar="M",
        help="channels relative to the paper's (default: %(default)s)",
    )
    figures = parser.add_argument_group(
        "figures", "with --figures: coordinate statistics and filter activations per pixel"
    )
    figures.add_argument("--sequences", nargs="+", metavar="NN", help="sequences to plot (default: all)")
    figures.add_argument("--limit", type=int, metavar="N", help="plot only the first N scans")
    figures.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="CKPT",
        help="also plot filter activations of this network; repeatable",
    )
    figures.add_argument(
        "--stage", type=int, choices=range(1, 6), default=3, help="encoder stage of the filters (default: %(default)s)"
    )
    figures.add_argument("--force", action="store_true", help="overwrite existing figures")


def run(args: argparse.Namespace) -> int:
    """Measure and print, or print the commands. Returns the exit code."""
    if args.commands:
        from sqsegv3_ros.benchmark.ablation.variants import training_commands

        options = {"root": args.root, "output": args.runs, "config": args.config, "multiplier": args.multiplier}
        commands = list(training_commands(args.seeds, **options))
        print_results(args, "\n".join(commands), {"commands": commands})
        return 0
    if args.collect:
        return _collect(args)
    if args.figures is not None:
        return _plot_figures(args)
    for name, least in (("height", 1), ("repeat", 0), ("threads", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be {least} or more, found {getattr(args, name)}")
    if args.width < 32 or args.width % 32:
        raise UserError(f"--width must be a multiple of 32, which RangeNet's shape needs, found {args.width}")
    if args.png is not None:
        from sqsegv3_ros.benchmark.tables import import_pyplot

        import_pyplot()  # fail before the measurement
    from sqsegv3_ros.benchmark.ablation.cost import cost
    from sqsegv3_ros.benchmark.ablation.cost_tables import draw, text

    result = cost(
        layers=args.network,
        height=args.height,
        width=args.width,
        repeat=args.repeat,
        device=args.device,
        threads=args.threads,
    )
    _say(args, result, text(result))
    if args.png is not None:
        draw(result, args.png)
    return 0


def _collect(args: argparse.Namespace) -> int:
    from sqsegv3_ros.benchmark.ablation.collect import collect, read_scores, text

    if args.png is not None:
        raise UserError("--png cannot be combined with --collect; use --json or --markdown")
    result = collect(read_scores(Path(args.runs)))
    _say(args, result, text(result))
    return 0


def _say(args: argparse.Namespace, result: Any, tables: str) -> None:
    from sqsegv3_ros.files import write_atomically

    print_results(args, tables, result)
    if args.markdown is not None:
        write_atomically(args.markdown, f"{tables}\n".encode())


def _plot_figures(args: argparse.Namespace) -> int:
    from sqsegv3_ros.benchmark.tables import import_pyplot

    import_pyplot()  # fail before the work, not after it
    from sqsegv3_ros.benchmark.ablation import figures, observation
    from sqsegv3_ros.data.semantic_kitti import find_scans, read_scan
    from sqsegv3_ros.files import refuse_existing, write_atomically
    from sqsegv3_ros.inference.range_image import ProjectionConfig

    names = ("coordinates.png", "locations.png", "activation.png", "figures.json")
    means, locations, activation, numbers = paths = [args.figures / name for name in names]
    for path in paths:
        refuse_existing(path, args.force)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be 1 or more, found {args.limit}")
    projection = ProjectionConfig(height=args.height, width=args.width)
    files = find_scans(args.root, args.sequences)[: args.limit]

    def scans() -> Iterator[Any]:
        return (read_scan(file.path) for file in files)

    activations = {
        name: observation.activation(network, scans(), projection, normalization, args.stage)
        for name, network, projection, normalization in _read_networks(args.checkpoint)
    }
    coordinates = observation.coordinates(scans(), projection)
    args.figures.mkdir(parents=True, exist_ok=True)
    figures.draw_means(coordinates, means)
    figures.draw_locations(coordinates, locations)
    if activations:
        figures.draw_activations(activations, args.stage, activation)
    result = figures.summary(coordinates, activations, args.stage)
    write_atomically(numbers, json.dumps(result, indent=1).encode())
    written = [path.name for path in paths if activations or path != activation]
    print_results(args, f"{', '.join(written)} of {coordinates.scans} scans in {args.figures}", result)
    return 0


def _read_networks(checkpoints: list[Path]) -> Iterator[tuple[str, SqueezeSegV3, ProjectionConfig, Normalization]]:
    """Yield name, network, projection and normalization of each checkpoint; all files are read first."""
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.training.checkpoint import load_network, read_checkpoint

    loaded = [(path, *read_checkpoint(path)) for path in checkpoints]
    names = [description["name"] for _, description, _ in loaded]
    for path, description, weights in loaded:
        name = description["name"] if names.count(description["name"]) == 1 else f"{path.parent.name}/{path.name}"
        projection = ProjectionConfig.from_dict(description["projection"])
        normalization = Normalization.from_dict(description["normalization"])
        yield name, load_network(description, weights), projection, normalization
