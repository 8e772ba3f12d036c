# SPDX-License-Identifier: Apache-2.0
"""The end of an adaptation: labelled scans evaluated before and after, the report, the model file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqsegv3_ros.data.labelled_bag import folder_of
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.adaptation_report import ComparedScan, build_adaptation_report
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.evaluation.summary import percent
from sqsegv3_ros.files import atomic_output, progress, write_atomically
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
from sqsegv3_ros.pointcloud2 import to_remission
from sqsegv3_ros.training.adaptation.checks import shrunk_classes
from sqsegv3_ros.training.adaptation.run import Adaptation, Outcome
from sqsegv3_ros.training.adaptation.teacher import spread
from sqsegv3_ros.training.adaptation.workspace import REPORT_NAME

SHOWN_SCANS = 5


def labelled_scans(path: Path, adaptation: Adaptation) -> list[ScanFile]:
    """Find the labelled scans of a SemanticKITTI data set or a labelled bag.

    Raises:
        UserError: There are none, or one has no labels.
    """
    scans = find_scans(folder_of(path, adaptation.start_info.labels))
    missing = next((scan.labels_path for scan in scans if not scan.labels_path.is_file()), None)
    if missing is not None:
        raise UserError(f"--evaluate {path}: labels {missing} are missing")
    return scans


def finish(
    adaptation: Adaptation, outcome: Outcome, output: Path, labelled: Sequence[ScanFile]
) -> tuple[str, dict[str, Any]]:
    """Write model and report, and delete the copies of the scans.

    Args:
        adaptation: The adaptation.
        outcome: Its result.
        output: Model file to write.
        labelled: Scans to evaluate before and after.

    Returns:
        What was found, as text and in plain JSON types.

    Raises:
        UserError: A file cannot be read or written.
    """
    evaluations = []
    with atomic_output(output) as draft:
        adaptation.write(outcome, draft)
        if labelled:
            models = (adaptation.model, draft)
            evaluations = [_evaluate(model, labelled, adaptation, outcome) for model in models]
        report = adaptation.workspace / REPORT_NAME
        write_atomically(report, _report(adaptation, outcome, evaluations).encode())
    adaptation.clear()
    start, end = outcome.rounds[0], outcome.rounds[-1]
    lines = [
        f"{percent(end['start_agreement'])} % of the points kept their label; mean confidence "
        f"{percent(start['confidence'])} -> {percent(end['confidence'])} %"
    ]
    shrunk = shrunk_classes(start, end)
    if shrunk:
        lines.append(f"much rarer than before, check them in the report: {', '.join(shrunk)} of the points")
    if evaluations:
        before, after = evaluations
        changes = (f"{percent(before[key])} -> {percent(after[key])} %" for key in ("miou_present", "accuracy"))
        lines.append(f"{len(labelled)} labelled scans: mIoU of the classes present {', accuracy '.join(changes)}")
    height = outcome.recorded_height_m
    if height is not None and not adaptation.settings.parameters.get("extrinsics.height_m"):
        lines.append(f"the sensor is {height:g} m above the ground: set extrinsics.height_m in your parameter file")
    lines.append(f"{output}: {outcome.info.name}, licence {outcome.info.licence}")
    lines.append(f"look at {report} before you use it")
    results = {
        "model": str(output),
        "report": str(report),
        "recorded_height_m": height,
        "rounds": outcome.rounds,
        "evaluations": evaluations,
    }
    return "\n".join(lines), results


def _evaluate(model: Path, scans: Sequence[ScanFile], adaptation: Adaptation, outcome: Outcome) -> dict[str, Any]:
    """Evaluate a model on labelled scans with the parameters of the sensor."""
    parameters = {**adaptation.settings.parameters, "model": str(model.absolute())}
    if outcome.recorded_height_m is not None:
        parameters["extrinsics.height_m"] = outcome.recorded_height_m
    segmenter = CloudSegmenter.from_parameters(parameters, warm_up=False).segmenter
    evaluator = Evaluator(segmenter.info.labels)
    for scan in progress(scans, len(scans), "scan"):
        points = read_scan(scan.path)
        truth = read_known_labels(scan.labels_path, len(points), segmenter.info.labels)
        to_remission(points[:, 3], adaptation.recording.file_clouds)
        evaluator.add(f"{scan.sequence}/{scan.stem}", points, segmenter.segment(points).labels, truth)
    return evaluator.summary()


def _report(adaptation: Adaptation, outcome: Outcome, evaluations: Sequence[dict[str, Any]]) -> str:
    files = find_scans(adaptation.scans)
    shown = [
        ComparedScan(
            f"scan {i + 1} of {len(files)}", read_scan(files[i].path), outcome.start[i].labels, outcome.end[i].labels
        )
        for i in spread(range(len(files)), SHOWN_SCANS)
    ]
    info, provenance = outcome.info, outcome.info.provenance
    sensor = provenance["sensor"]
    about = [
        ("Model", f"{info.name}, started from {provenance['started_from']['name']}"),
        ("Licence", f"{info.licence}; {provenance['note']}"),
        ("Recording", f"{', '.join(provenance['recording'])}; {len(files)} scans"),
        ("Sensor", f"{sensor['simulated']}, {sensor['height_m']:g} m above the ground ({sensor['height']})"),
        ("Training", f"{provenance['training']['rounds']} rounds of {provenance['training']['steps']} steps"),
    ]
    return build_adaptation_report(info.labels, about, outcome.rounds, shown, info.projection, evaluations)
