# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 train`: train a network. jsonargparse parses the options, not argparse."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Pass every argument through: without a prefix character argparse sees no options, not even --help."""
    parser.prefix_chars = "\0"
    parser.add_argument("options", nargs=argparse.REMAINDER)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that jsonargparse parses, for shell completion.

    Raises:
        UserError: A package that training needs is not installed.
    """
    _require_packages()
    from sqsegv3_ros.training.run import train_parser

    for action in train_parser()._actions:
        options = [option for option in action.option_strings if option.startswith("--")]
        if not options or "--help" in options:
            continue
        if action.nargs == 0 or "--print_config" in options:  # whose value is optional
            parser.add_argument(*options, action="store_true", help=action.help)
            continue
        choices = re.fullmatch(r"\{(.*)\}", str(action.metavar))
        if choices:
            parser.add_argument(*options, choices=choices[1].split(","), help=action.help)
        else:  # numbers, too: what is a path is not known
            parser.add_argument(*options, type=Path, help=action.help)


def run(args: argparse.Namespace) -> int:
    """Train. Returns the exit code."""
    _require_packages()
    from sqsegv3_ros.training.run import train

    return train(args.options)


def _require_packages() -> None:
    """Raise UserError if a package that training needs is not installed."""
    try:
        import jsonargparse  # noqa: F401
        import lightning.pytorch  # noqa: F401
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        from sqsegv3_ros.errors import missing_package

        raise missing_package(error.name or "lightning", "training", "train") from error
