"""Bags with labelled clouds, and with the ground truth in them or in bags beside them, go in; the summary comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.rosbag_reader import BagReader, find_bags, is_bag
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.evaluator import BorderConfig, Evaluator
from sqsegv3_ros.evaluation.live_evaluation import evaluate_clouds


@dataclass(frozen=True)
class BagFields:
    """Where labels and ground truth lie: topics (None: the only clouds of the bag) and fields of the clouds."""

    topic: str | None = None
    ground_truth_topic: str | None = None
    label_field: str = "label"
    ground_truth_field: str = "ground_truth"


def holds_bags(path: Path) -> bool:
    """Whether a path is a bag, or a folder of bags."""
    return path.exists() and (is_bag(path) or (path.is_dir() and bool(find_bags(path))))


def evaluate_bags(
    predictions: Path,
    ground_truth: Path | None,
    labels: LabelSet,
    fields: BagFields,
    border: BorderConfig | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate every labelled cloud of a bag, or of a folder of bags.

    ground_truth: a bag with the same clouds in the same order, or a folder of bags with the same names; None where the
    labelled clouds hold the ground truth too. limit: only the first clouds.
    Returns the summary of `Evaluator` with 'predictions_bag' and 'ground_truth_bag' added. Raises UserError naming the bag
    and the cloud that cannot be evaluated.
    """
    evaluator = Evaluator(labels, border)
    bags = _bags(predictions, ground_truth)
    total = _count(bags, fields)
    total = total if limit is None else min(limit, total)
    done = 0
    for name, labelled, truth in bags:
        for labelled_cloud, truth_cloud in _clouds(labelled, truth, fields):
            if done == total:
                break
            stamp = labelled_cloud.header.stamp
            scan = f"{name}/{stamp.sec}.{stamp.nanosec:09d}"
            try:
                evaluate_clouds(
                    evaluator, scan, truth_cloud, labelled_cloud, fields.ground_truth_field, fields.label_field
                )
            except UserError as error:
                raise UserError(f"bag {labelled}: {error}{_help(labelled_cloud, truth_cloud, fields)}") from error
            done += 1
            if progress is not None:
                progress(done, total)
    origin = {
        "predictions_bag": str(predictions.resolve()),
        "ground_truth_bag": None if ground_truth is None else str(ground_truth.resolve()),
        "limit": limit,
    }
    return origin | evaluator.summary()


def _help(labelled: Any, truth: Any, fields: BagFields) -> str:
    """What to do about a field that is not there."""
    if fields.ground_truth_field not in {field.name for field in truth.fields}:
        return " with --ground-truth-field, or give a bag that has the true classes as --dataset"
    if fields.label_field not in {field.name for field in labelled.fields}:
        return " with --label-field, or let `sqsegv3 label` add labels"
    return ""


def _bags(predictions: Path, ground_truth: Path | None) -> list[tuple[str, Path, Path | None]]:
    """(name, bag with labels, bag with ground truth) of each."""
    if is_bag(predictions):
        found = [(predictions.stem if predictions.is_file() else predictions.resolve().name, predictions)]
        pairs = [(name, bag, ground_truth) for name, bag in found]
    else:
        pairs = []
        for bag in find_bags(predictions):
            relative = bag.relative_to(predictions)
            truth = None if ground_truth is None else ground_truth / relative
            pairs.append((str(relative.with_suffix("") if bag.is_file() else relative), bag, truth))
    for _, bag, truth in pairs:
        if truth is not None and not (truth.exists() and is_bag(truth)):
            raise UserError(f"there is no bag {truth} with the ground truth of {bag}")
    return pairs


def _count(bags: list[tuple[str, Path, Path | None]], fields: BagFields) -> int:
    """How many clouds there are to evaluate. Raises UserError for bags that do not fit, before anything is evaluated."""
    total = 0
    for _, bag, truth in bags:
        with BagReader(bag) as reader:
            count = reader.count(reader.cloud_topic(fields.topic))
        if truth is not None:
            with BagReader(truth) as reader:
                expected = reader.count(reader.cloud_topic(fields.ground_truth_topic, "--ground-truth-topic"))
            if count != expected:
                raise UserError(
                    f"bag {bag} holds {count} labelled clouds, but {truth} {expected} with ground truth; every cloud "
                    "must be labelled"
                )
        total += count
    return total


def _clouds(bag: Path, truth: Path | None, fields: BagFields) -> Iterator[tuple[Any, Any]]:
    """(labelled cloud, cloud with ground truth) pair by pair. Raises UserError where their stamps differ."""
    with ExitStack() as stack:
        reader = stack.enter_context(BagReader(bag))
        labelled = (reader.cloud(m) for m in reader.messages(reader.cloud_topic(fields.topic)))
        if truth is None:
            yield from ((cloud, cloud) for cloud in labelled)
            return
        beside = stack.enter_context(BagReader(truth))
        true = (beside.cloud(m) for m in beside.messages(beside.cloud_topic(fields.ground_truth_topic)))
        for number, (cloud, true_cloud) in enumerate(zip_longest(labelled, true), start=1):
            if cloud is None or true_cloud is None or not _same_stamp(cloud, true_cloud):
                raise UserError(f"cloud {number} of bag {bag} and of {truth} are not the same: their stamps differ")
            yield cloud, true_cloud


def _same_stamp(one: Any, other: Any) -> bool:
    a, b = one.header.stamp, other.header.stamp
    return (a.sec, a.nanosec) == (b.sec, b.nanosec)
