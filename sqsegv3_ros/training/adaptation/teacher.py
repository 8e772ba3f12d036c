# SPDX-License-Identifier: Apache-2.0
"""The teacher: labels the recording anew before every epoch with the average of the student's weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from sqsegv3_ros.data.semantic_kitti import write_labels
from sqsegv3_ros.files import progress, write_atomically
from sqsegv3_ros.training.adaptation.pseudo_labels import (
    TURNED,
    VARIED,
    ScanLabels,
    keep_confident,
    label_scan,
    thresholds,
)
from sqsegv3_ros.training.augment import Points
from sqsegv3_ros.training.callbacks import WeightEma
from sqsegv3_ros.training.crop import set_azimuth_padding
from sqsegv3_ros.training.data import ScanData
from sqsegv3_ros.training.module import SegmentationModule
from sqsegv3_ros.training.scans import ScanStore

FIRST_SHARE, LAST_SHARE = 0.4, 0.8
"""Share of each class's points that is kept in the first and in the last round."""

ROUNDS_NAME = "rounds.jsonl"
START_NAME = "start.npz"


class TeacherLabels(Callback):
    """Labels the recording before every epoch and hands the confident labels to the student as its ground truth.

    The labels are written to the .label files of the recording's copy, so that a resumed run continues with them.

    Args:
        root: SemanticKITTI data set of the recording's copy, one of the training data sets.
        output: Folder for `rounds.jsonl`, a line per round; it has `start.npz`, the labels of the start.
        rounds: Planned epochs.
        vary_remission: Whether the views that are averaged also differ in their remission.
    """

    def __init__(self, root: str, output: str, rounds: int, vary_remission: bool) -> None:
        self.root = root
        self.output = Path(output)
        self.rounds = rounds
        self.views = VARIED if vary_remission else TURNED

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Label all scans with the average of the weights so far."""
        assert isinstance(pl_module, SegmentationModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ScanData) and data.train_store is not None
        number, store = trainer.current_epoch, data.train_store
        indices = _indices_of(data, self.root)
        average = next(c for c in trainer.callbacks if isinstance(c, WeightEma)).average  # type: ignore[attr-defined]
        precision = trainer.precision_plugin
        with precision.forward_context():
            teacher = copy.deepcopy(average).eval()
            teacher._trainer = None
            found = [
                label_scan(teacher, points, self.views)
                for points in progress(_points(store, indices), len(indices), "scan")
            ]
            student = _agreement_of(pl_module, store, indices, found)
        pl_module.train()
        start = load_labels(self.output / START_NAME)
        least = thresholds(found, len(pl_module.label_set), share_of_round(number, self.rounds))
        kept = [keep_confident(scan, least) for scan in found]
        for index, labels in zip(indices, kept, strict=True):
            write_labels(store.files[index].labels_path, pl_module.label_set.to_raw(labels))
            store.replace_labels(index, labels)
        record = {
            "round": number,
            "step": trainer.global_step,
            "kept": float(np.mean(np.concatenate(kept) > 0)),
            "student_agreement": student,
            "start_agreement": agreement(start, found),
            **statistics(found, pl_module.label_set.names),
        }
        self._record(record)

    def _record(self, record: dict[str, Any]) -> None:
        """Write the line of a round over that of the same round and of later ones, which a resumed run repeats."""
        lines = [entry for entry in read_rounds(self.output) if entry["round"] < record["round"]]
        text = "".join(json.dumps(entry) + "\n" for entry in [*lines, record])
        write_atomically(self.output / ROUNDS_NAME, text.encode())
        print(
            f"round {record['round'] + 1} of {self.rounds}: {100 * record['kept']:.0f} % of the points labelled, "
            f"confidence {record['confidence']:.3f}, agreement with the student "
            f"{100 * record['student_agreement']:.1f} %, with the start {100 * record['start_agreement']:.1f} %",
            flush=True,
        )


def share_of_round(number: int, rounds: int) -> float:
    """Share of each class's points to keep in a round, counted from 0."""
    return FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * min(number / max(rounds - 1, 1), 1.0)


def read_rounds(output: Path) -> list[dict[str, Any]]:
    """Read the records of the rounds so far."""
    path = output / ROUNDS_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def agreement(first: Sequence[ScanLabels], second: Sequence[ScanLabels]) -> float:
    """Share of the points with the same label in both."""
    equal = sum(int(np.count_nonzero(a.labels == b.labels)) for a, b in zip(first, second, strict=True))
    return equal / max(sum(len(a.labels) for a in first), 1)


def statistics(scans: Sequence[ScanLabels], names: Sequence[str]) -> dict[str, Any]:
    """Mean confidence, and share of the points and mean confidence by class, of the labelled points."""
    counts, sums = np.zeros(len(names)), np.zeros(len(names))
    for scan in scans:
        counts += np.bincount(scan.labels, minlength=len(names))
        sums += np.bincount(scan.labels, scan.confidences.astype(np.float64), minlength=len(names))
    total = max(counts[1:].sum(), 1)
    return {
        "confidence": float(sums[1:].sum() / total),
        "shares": {name: float(counts[c] / total) for c, name in enumerate(names) if c},
        "confidences": {name: float(sums[c] / counts[c]) for c, name in enumerate(names) if c and counts[c]},
    }


def save_labels(path: Path, scans: Sequence[ScanLabels]) -> None:
    """Write the labels and confidences of scans into one file."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        counts=[len(scan.labels) for scan in scans],
        labels=np.concatenate([scan.labels for scan in scans]),
        confidences=np.concatenate([scan.confidences for scan in scans]),
    )
    write_atomically(path, buffer.getvalue())


def load_labels(path: Path) -> list[ScanLabels]:
    """Read what `save_labels` wrote."""
    with np.load(path) as file:
        ends = np.cumsum(file["counts"])[:-1]
        pairs = zip(np.split(file["labels"], ends), np.split(file["confidences"], ends), strict=True)
        return [ScanLabels(*pair) for pair in pairs]


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of the indices, evenly spread."""
    return [indices[i * len(indices) // count] for i in range(count)] if len(indices) > count else list(indices)


def _indices_of(data: ScanData, root: str) -> list[int]:
    """Numbers of the scans of a data set in the training data."""
    number = next(i for i, given in enumerate(data.train_roots) if given.path == root)
    assert data.train_store is not None
    return data.train_store.indices_of_root[number]


def _points(store: ScanStore, indices: Sequence[int]) -> Iterator[Points]:
    for index in indices:
        scan = store.read(index)
        assert scan is not None
        yield scan.points


def _agreement_of(
    student: SegmentationModule, store: ScanStore, indices: Sequence[int], teacher: Sequence[ScanLabels]
) -> float:
    """Agreement of the student, who sees one view of a scan, with the teacher on a few scans."""
    student.eval()
    set_azimuth_padding(student.network, student.network_config.circular)  # crops have another
    chosen = spread(range(len(indices)), 12)
    own = [label_scan(student, points) for points in _points(store, [indices[i] for i in chosen])]
    return agreement([teacher[i] for i in chosen], own)
