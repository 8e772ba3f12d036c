# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 train`: train a network. jsonargparse parses the options, not argparse."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Pass every argument through: without a prefix character argparse sees no options, not even --help."""
    parser.prefix_chars = "\0"
    parser.add_argument("options", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    """Train. Returns the exit code."""
    try:
        import jsonargparse  # noqa: F401
        import lightning.pytorch  # noqa: F401
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        from sqsegv3_ros.errors import missing_package

        raise missing_package(error.name or "lightning", "training", "train") from error
    from sqsegv3_ros.training.run import train

    return train(args.options)
