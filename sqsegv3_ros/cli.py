# SPDX-License-Identifier: Apache-2.0
"""The command line `sqsegv3 VERB ...`. Each verb is a module of `commands`, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sqsegv3_ros import process
from sqsegv3_ros.errors import OperationError, UserError, missing_torch

# help of each verb; its module in sqsegv3_ros.commands has add_arguments(parser) and run(args)
VERBS = {
    "demo": "run the whole system on a simulated drive: no data or robot needed",
    "label": "label scans and data sets",
    "inspect": "print the metadata of a model file",
    "import-official": "convert a checkpoint folder of the official release into a model file",
    "train": "train a network",
    "export": "export a training checkpoint as a model file or as ONNX",
    "evaluate": "compare predictions with ground truth",
    "render": "draw a scan and its labels",
    "view": "label clouds and show them in the Rerun viewer",
    "report": "write an evaluation as an HTML page",
    "simulate": "simulate labelled scans of synthetic scenes",
    "benchmark": "measure per-scan latency, memory and throughput",
    "ablate": "measure, train and plot the paper's ablation variants",
    "replay": "publish a bag or a SemanticKITTI sequence at its recorded rate",
    "convert": "convert a SemanticKITTI sequence into a bag, or a bag into a sequence",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 success, 1 failure, 2 wrong use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="sqsegv3", description="Semantic segmentation of LiDAR scans, offline.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen_verb = next((a for a in arguments if not a.startswith("-")), None)
    try:
        for verb, summary in VERBS.items():
            verb_parser = verbs.add_parser(verb, help=summary, description=summary)
            if verb == chosen_verb:
                process.prepare(training=verb == "train")
                module = importlib.import_module(f"sqsegv3_ros.commands.{verb.replace('-', '_')}")
                module.add_arguments(verb_parser)
                verb_parser.set_defaults(run=module.run)
        args = parser.parse_args(arguments)
        return int(args.run(args) or 0)
    except SystemExit as stop:  # from argparse: 0 after --help, 2 after a wrong argument
        return int(stop.code or 0)
    except UserError as error:
        print(f"sqsegv3 {chosen_verb}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"sqsegv3 {chosen_verb}: {missing_torch(error, 'this command')}", file=sys.stderr)
        return 2
    except OperationError as error:
        print(f"sqsegv3 {chosen_verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
