# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 adapt`: adapt a model to a sensor from an unlabelled recording."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.commands.options import (
    add_cloud_options,
    add_format,
    add_json,
    add_output,
    check_output,
    intensity_settings,
    print_results,
)
from sqsegv3_ros.errors import UserError, missing_package, require

if TYPE_CHECKING:
    from sqsegv3_ros.inference.settings import Settings
    from sqsegv3_ros.training.adaptation.recording import Recording

_NOT_OF_THE_SENSOR = ("label_map", "model", "model_sha256")  # label_map: the network learns its own classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    inputs = "recording: bag, folder of bags, SemanticKITTI data set, or point-cloud files; it is not changed"
    parser.add_argument("input", nargs="+", metavar="INPUT", help=inputs)
    add_output(parser, "MODEL")
    model = "model to start from: model file, or name of a shipped model (default: that of --params, else default)"
    parser.add_argument("--model", help=model)
    minutes = "total time to spend (default: %(default)s)"
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help=minutes)
    params = "parameter file of the node for the sensor (YAML); repeatable, later files take precedence"
    parser.add_argument("--params", type=Path, action="append", default=[], metavar="FILE", help=params)
    evaluate = "labelled scans (SemanticKITTI data set or labelled bag): mIoU before and after"
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help=evaluate)
    exponent = (
        "power to which the new model raises the remission (default: that of the start, 1 for the shipped models); 1.2 "
        "is worth a try with default and a real sensor, see docs/adapt.md"
    )
    parser.add_argument("--remission-exponent", type=float, metavar="E", help=exponent)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all random choices (default: 0)")
    add_format(parser)
    parser.add_argument("--sequences", nargs="+", metavar="NN", help="sequences of a data set (default: all)")
    parser.add_argument("--topic", metavar="T", help="topic of a bag (default: the only topic with clouds)")
    add_cloud_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Start or resume the adaptation. Returns the exit code."""
    try:
        import jsonargparse  # noqa: F401
        import lightning.pytorch  # noqa: F401
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "lightning", "adaptation", "train") from error
    from sqsegv3_ros.inference.model_file import check_sha256
    from sqsegv3_ros.inference.parameter_file import read_parameters
    from sqsegv3_ros.inference.settings import DEFAULTS, Settings
    from sqsegv3_ros.simulation.raycast import require_embree
    from sqsegv3_ros.training.adaptation.report import finish, labelled_scans
    from sqsegv3_ros.training.adaptation.run import Adaptation, AdaptationSettings
    from sqsegv3_ros.training.adaptation.workspace import may_replace_model, refuse_inputs_inside
    from sqsegv3_ros.viewing.pictures import require_pillow

    workspace = args.output.parent / f"{args.output.stem}.adapt"  # with_suffix fails on "."
    check_output(args.output, ".pt", args.force or may_replace_model(workspace))
    require(0 < args.minutes < 1e5, "--minutes", "above 0 and below 100000", args.minutes)
    exponent = args.remission_exponent
    require(exponent is None or 0.1 <= exponent <= 10, "--remission-exponent", "in 0.1..10", exponent)
    require(0 <= args.seed < 2**32, "--seed", "in 0..4294967295", args.seed)
    require_embree()  # fail before the adaptation, not in it or after it
    require_pillow()
    parameters: dict[str, Any] = {}
    for file in args.params:
        parameters |= read_parameters(file)
    parameters |= intensity_settings(args)
    if "intensity_fields" in parameters:
        parameters["intensity_fields"] = list(parameters["intensity_fields"]) or [""]
    model, sha256 = args.model or parameters.get("model") or "default", parameters.get("model_sha256")
    recording = _recording(args, Settings({**DEFAULTS, **parameters}))
    parameters = {name: value for name, value in parameters.items() if name not in _NOT_OF_THE_SENSOR}
    settings = AdaptationSettings(model, parameters, _preset(args.params), args.minutes, exponent, args.seed)
    adaptation = Adaptation(recording, settings, workspace)
    check_sha256(adaptation.model, adaptation.model_sha256, sha256)
    labelled = None if args.evaluate is None else labelled_scans(args.evaluate, adaptation)
    evaluated = [] if args.evaluate is None else [args.evaluate]
    refuse_inputs_inside(workspace, [*args.input, *args.params, adaptation.model, *evaluated])
    try:
        with adaptation.opened(fresh=args.force):
            with redirect_stdout(sys.stderr):  # progress; stdout has the results
                outcome = adaptation.run()
            results = finish(adaptation, outcome, args.output, labelled)
    except KeyboardInterrupt:
        without = " without --force" * args.force
        print(f"interrupted; the same command{without} continues", file=sys.stderr)
        return 130
    print_results(args, *results)
    return 0


def _recording(args: argparse.Namespace, settings: Settings) -> Recording:
    from sqsegv3_ros.inference.extrinsics import Extrinsics
    from sqsegv3_ros.labelling.plan import BagOptions, check_bags, plan_jobs
    from sqsegv3_ros.labelling.remote import is_remote
    from sqsegv3_ros.pointcloud2 import CloudSettings
    from sqsegv3_ros.training.adaptation.recording import Recording

    remote = next((path for path in args.input if is_remote(path)), None)
    if remote is not None:
        raise UserError(f"{remote}: adapt reads local recordings; fetch it first")
    if settings["base_frame"]:
        raise UserError(
            f"base_frame is '{settings['base_frame']}', but only the node has TF; set base_frame to '' and "
            "extrinsics.* to the sensor's angles and height"
        )
    options = BagOptions(topic=args.topic)
    jobs = plan_jobs(args.input, str(args.output.with_suffix(".adapt")), args.sequences, options, args.format)
    check_bags(jobs, options)
    return Recording(
        args.input,
        jobs,
        options,
        settings.cloud_settings(rings_needed=False),
        CloudSettings(**intensity_settings(args)),
        Extrinsics.from_angles(*settings.angles_deg),
    )


def _preset(files: list[Path]) -> str | None:
    """The simulated sensor named like a parameter file, as those in `config/sensors` are."""
    from sqsegv3_ros.simulation.sensors import SENSORS

    names = [file.stem for file in files if file.stem in SENSORS]
    return names[-1] if names else None
