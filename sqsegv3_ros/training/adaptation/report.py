# SPDX-License-Identifier: Apache-2.0
"""The end of an adaptation: labelled scans evaluated before and after, the report, the model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqsegv3_ros.data.conversion import BagImport
from sqsegv3_ros.data.labelled_bag import folder_of
from sqsegv3_ros.data.semantic_kitti import ScanFile, find_scans, read_known_labels, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.adaptation_report import ComparedScan, build_adaptation_report
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.evaluation.summary import percent
from sqsegv3_ros.files import atomic_output, progress, write_atomically
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
from sqsegv3_ros.pointcloud2 import CloudSettings, to_remission
from sqsegv3_ros.training.adaptation.checks import shrunk_classes
from sqsegv3_ros.training.adaptation.run import Adaptation, Outcome
from sqsegv3_ros.training.adaptation.teacher import spread
from sqsegv3_ros.training.adaptation.workspace import REPORT_NAME

SHOWN_SCANS = 5


@dataclass(frozen=True)
class LabelledScans:
    """Labelled scans to evaluate models on.

    Attributes:
        files: The scans.
        clouds: How their intensity becomes the remission.
    """

    files: Sequence[ScanFile]
    clouds: CloudSettings

    def evaluate(self, model: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the summary of a model with the parameters of the sensor."""
        segmenter = CloudSegmenter.from_parameters(
            {**parameters, "model": str(model.absolute())}, warm_up=False
        ).segmenter
        evaluator = Evaluator(segmenter.info.labels)
        for scan in progress(self.files, len(self.files), "scan"):
            points = read_scan(scan.path)
            truth = read_known_labels(scan.labels_path, len(points), segmenter.info.labels)
            to_remission(points[:, 3], self.clouds)
            evaluator.add(f"{scan.sequence}/{scan.stem}", points, segmenter.segment(points).labels, truth)
        return evaluator.summary()


def labelled_scans(path: Path, adaptation: Adaptation) -> LabelledScans:
    """Find the labelled scans of a SemanticKITTI data set or a labelled bag.

    Raises:
        UserError: There are none, or one has no labels.
    """
    recording = adaptation.recording
    root = folder_of(path, BagImport(cloud=recording.bag_clouds, labels=adaptation.start_info.labels))
    scans = find_scans(root)
    missing = next((scan.labels_path for scan in scans if not scan.labels_path.is_file()), None)
    if missing is not None:
        raise UserError(f"--evaluate {path}: labels {missing} are missing")
    of_bag = root != path  # its copy holds the remission
    return LabelledScans(scans, CloudSettings() if of_bag else recording.file_clouds)


def finish(
    adaptation: Adaptation, outcome: Outcome, output: Path, labelled: LabelledScans | None
) -> tuple[str, dict[str, Any]]:
    """Write model and report, and delete the copies of the scans.

    Args:
        adaptation: The adaptation.
        outcome: Its result.
        output: Model file to write.
        labelled: Scans to evaluate before and after, if any.

    Returns:
        What was found, as text and in plain JSON types.

    Raises:
        UserError: A file cannot be read or written.
    """
    evaluations = []
    with atomic_output(output) as draft:
        adaptation.write(outcome, draft)
        if labelled is not None:
            parameters = dict(adaptation.settings.parameters)
            if outcome.recorded_height_m is not None:
                parameters["extrinsics.height_m"] = outcome.recorded_height_m
            evaluations = [labelled.evaluate(model, parameters) for model in (adaptation.model, draft)]
        report = adaptation.workspace / REPORT_NAME
        write_atomically(report, _report(adaptation, outcome, evaluations).encode())
    adaptation.clear()
    start, end = outcome.before, outcome.after
    lines = [
        f"{percent(end['start_agreement'])} % of the points kept their label; mean confidence "
        f"{percent(start['confidence'])} -> {percent(end['confidence'])} %"
    ]
    shrunk = shrunk_classes(start, end)
    if shrunk:
        lines.append(f"much rarer than before, check them in the report: {', '.join(shrunk)} of the points")
    if labelled is not None:
        before, after = evaluations
        changes = (f"{percent(before[key])} -> {percent(after[key])} %" for key in ("miou_present", "accuracy"))
        lines.append(f"{len(labelled.files)} labelled scans: mIoU of the classes present {', accuracy '.join(changes)}")
    height = outcome.recorded_height_m
    if height is not None and not adaptation.settings.parameters.get("extrinsics.height_m"):
        lines.append(f"the sensor is {height:g} m above the ground: set extrinsics.height_m in your parameter file")
    lines.append(f"{output}: {outcome.info.name}, licence {outcome.info.licence}")
    lines.append(f"look at {report} before you use it")
    results = {
        "model": str(output),
        "report": str(report),
        "recorded_height_m": height,
        "before": outcome.before,
        "after": outcome.after,
        "rounds": outcome.rounds,
        "evaluations": evaluations,
    }
    return "\n".join(lines), results


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
    return build_adaptation_report(
        info.labels, about, outcome.before, outcome.after, outcome.rounds, shown, info.projection, evaluations
    )
