"""The command line: `sqsegv3 VERB ...`. Each verb is a module of `commands`, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sqsegv3_ros import process
from sqsegv3_ros.errors import OperationError, UserError

# verb -> one line of help; the module sqsegv3_ros.commands.<verb, '-' as '_'> has add_arguments(parser) and run(args)
VERBS = {
    "demo": "see everything work on a simulated drive: no data, no robot",
    "label": "label scans and data sets",
    "inspect": "print what a model file says about itself",
    "import-official": "turn a checkpoint folder of the official release into a model file",
    "train": "train a network, with checkpoints that can be resumed and exported",
    "export": "turn a training checkpoint into a model file or an ONNX file",
    "evaluate": "evaluate predictions by ground truth",
    "render": "draw a scan and its labels",
    "report": "turn an evaluation into a page to read",
    "simulate": "make labelled scans of synthetic streets",
    "benchmark": "measure what a scan costs, beside the reference implementation and other runtimes",
    "stress": "load the running node, and account for every cloud",
    "ablate": "what the variants that the paper compares cost, beside its tables; the commands that train them",
    "figures": "draw what lies where in LiDAR images, and where filters are active (the paper's figures 2 and 3)",
    "replay": "publish a bag or a data set's sequence at its recorded pace",
    "convert": "turn a data set's sequence into a bag, and a bag into a sequence",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 good, 1 failed, 2 wrong use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="sqsegv3", description="Semantic segmentation of LiDAR scans, offline.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for verb, summary in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=summary, description=summary)
        if verb == chosen:
            process.prepare(training=verb == "train")
            module = importlib.import_module(f"sqsegv3_ros.commands.{verb.replace('-', '_')}")
            module.add_arguments(verb_parser)
            verb_parser.set_defaults(run=module.run)
    try:
        args = parser.parse_args(arguments)
        return int(args.run(args) or 0)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return int(stop.code or 0)
    except UserError as error:
        print(f"sqsegv3 {chosen}: {error}", file=sys.stderr)
        return 2
    except OperationError as error:
        print(f"sqsegv3 {chosen}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
