# SPDX-License-Identifier: Apache-2.0
"""The command line `sqsegv3 COMMAND ...`. Each command is a module of `commands`, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqsegv3_ros import process
from sqsegv3_ros.errors import OperationError, UserError, missing_package, missing_torch

# help of each command; its module in sqsegv3_ros.commands has add_arguments(parser) and run(args)
COMMANDS = {
    "demo": "run the whole system on a simulated drive: no data or robot needed",
    "label": "label scans and data sets",
    "inspect": "print the metadata of a model file, or check the files of a data set",
    "import-official": "convert a checkpoint folder of the official release into a model file",
    "train": "train a network",
    "adapt": "adapt a model to your sensor from an unlabelled recording",
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
    """Run one command. Returns the exit code: 0 success, 1 failure, 2 wrong use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    name = f"sqsegv3 {chosen}"
    try:
        if arguments[:1] == ["--print-completion"]:
            name, commands = "sqsegv3", COMMANDS.keys() - {"train"}  # it adds its options itself
        else:
            commands = COMMANDS.keys() & {chosen}
            process.prepare(training=chosen in ("train", "adapt"))
        args = _make_parser(commands).parse_args(arguments)
        return int(args.run(args) or 0)
    except SystemExit as stop:  # from argparse: 0 after --help, 2 after a wrong argument
        return int(stop.code or 0)
    except (UserError, OperationError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError):
            error = missing_torch(error, "this command")
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"{name}: {error}", file=sys.stderr)
        return 1 if isinstance(error, OperationError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _make_parser(complete: Collection[str]) -> argparse.ArgumentParser:
    """The parser of all commands; only these have their arguments, as that imports their modules."""
    parser = argparse.ArgumentParser(prog="sqsegv3", description="Semantic segmentation of LiDAR scans, offline.")
    completion = "print the completion script of a shell"
    parser.add_argument("--print-completion", choices=("bash", "zsh"), action=_PrintCompletion, help=completion)
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, summary in COMMANDS.items():
        # training passes all its arguments on
        parents = [] if command == "train" else [debug]
        subparser = commands.add_parser(command, help=summary, description=summary, parents=parents)
        if command in complete:
            module = importlib.import_module(f"sqsegv3_ros.commands.{command.replace('-', '_')}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


class _PrintCompletion(argparse.Action):
    """Prints the completion script, with files for every option that is a path, and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        try:
            import shtab
        except ImportError as error:
            raise missing_package("shtab", "shell completion", "tools") from error
        from sqsegv3_ros.commands import train

        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        try:
            train.add_options(commands.choices["train"])
        except UserError as error:
            print(f"sqsegv3: no completion of the options of train: {error}", file=sys.stderr)
        for subparser in commands.choices.values():
            for action in subparser._actions:
                if action.type is Path:
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
