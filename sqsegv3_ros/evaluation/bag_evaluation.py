# SPDX-License-Identifier: Apache-2.0
"""Evaluation of labelled bags, with ground truth in the same clouds or in other bags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from sqsegv3_ros.data.label_map import FoldedLabels
from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.data.rosbag_reader import BagReader, find_bags, is_bag
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.border import BorderConfig
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.files import progress
from sqsegv3_ros.pointcloud2 import format_stamp, stamp_ns

LABEL_SET_NOTE = "sqsegv3_label_set"
STRING_TYPE = "std_msgs/msg/String"


@dataclass(frozen=True)
class BagFields:
    """Topics and fields of labels and ground truth in bags.

    Attributes:
        topic: Topic of the labelled clouds; None for the only clouds of the bag.
        ground_truth_topic: Topic of the clouds with ground truth; None for the only clouds of the bag.
        label_field: Field of the labels.
        ground_truth_field: Field of the true classes.
    """

    topic: str | None = None
    ground_truth_topic: str | None = None
    label_field: str = "label"
    ground_truth_field: str = "ground_truth"


class _BagPair(NamedTuple):
    name: str
    labelled: Path
    ground_truth: Path | None  # None: in the labelled clouds


def contains_bags(path: Path) -> bool:
    """Whether a path is a bag, or a folder of bags."""
    return path.exists() and (is_bag(path) or (path.is_dir() and bool(find_bags(path))))


def evaluate_bags(
    predictions: Path,
    ground_truth: Path | None,
    labels: LabelSet,
    fields: BagFields,
    border: BorderConfig | None = None,
    limit: int | None = None,
    label_map: FoldedLabels | None = None,
) -> dict[str, Any]:
    """Evaluate every labelled cloud of a bag, or of a folder of bags.

    Args:
        predictions: Bag with labelled clouds, or folder of such bags.
        ground_truth: Bag with the same clouds in the same order, or folder of bags with the same names; None if the
            labelled clouds contain the ground truth.
        labels: Label set.
        fields: Topics and fields.
        border: Also evaluate the points near borders between classes.
        limit: Evaluate only the first clouds.
        label_map: The label map, applied to `labels`, whose classes are evaluated. The bag says whether its labels are
            folded already.

    Returns:
        The summary of `Evaluator`, plus 'predictions_bag', 'ground_truth_bag' and 'limit'.

    Raises:
        UserError: A cloud cannot be evaluated; the message names bag and cloud.
    """
    evaluator = Evaluator(labels if label_map is None else label_map.labels, border)
    pairs = _find_pairs(predictions, ground_truth)
    total = _count_clouds(pairs, fields)
    clouds = ((pair, *clouds) for pair in pairs for clouds in _read_clouds(pair, fields))
    folded = {bag: label_map is not None and _is_folded(bag, labels, label_map.labels) for _, bag, _ in pairs}
    for pair, labelled, truth in progress(islice(clouds, limit), min(limit or total, total), "cloud"):
        name = f"{pair.name}/{format_stamp(stamp_ns(labelled.header))}"
        field_names = fields.ground_truth_field, fields.label_field
        try:
            evaluator.add_clouds(name, truth, labelled, *field_names, label_map, output_is_folded=folded[pair.labelled])
        except UserError as error:
            raise UserError(f"bag {pair.labelled}: {error}{_hint(labelled, truth, fields)}") from error
    origin = {
        "predictions_bag": str(predictions.resolve()),
        "ground_truth_bag": None if ground_truth is None else str(ground_truth.resolve()),
        "limit": limit,
    }
    return origin | evaluator.summary()


def _is_folded(bag: Path, original: LabelSet, folded: LabelSet) -> bool:
    """Whether a bag's labels are those of the label map. Raises UserError if the bag does not record its label set."""
    name = _label_set_of(bag)
    if name not in (original.name, folded.name):
        found = f"is labelled with the classes of '{name}'" if name else "does not record its label set"
        raise UserError(
            f"bag {bag} {found}; expected '{original.name}' or '{folded.name}'. A ROS 2 bag written by `sqsegv3 label` "
            "records it, as does a recording of the node that includes ~/output/label_set"
        )
    return name == folded.name


def _label_set_of(bag: Path) -> str:
    """The name of a bag's label set, from its metadata or a recorded label_set; '' if unknown."""
    with BagReader(bag) as reader:
        if LABEL_SET_NOTE in reader.notes:
            return reader.notes[LABEL_SET_NOTE]
        for topic in sorted({c.topic for c in reader.connections if c.topic.endswith("/label_set")}):
            for message in reader.messages(topic, (STRING_TYPE,)):
                with suppress(ValueError, KeyError, TypeError):
                    return str(json.loads(reader.deserialize(message, STRING_TYPE).data)["name"])
    return ""


def _hint(labelled: Any, truth: Any, fields: BagFields) -> str:
    """Say what to do about a missing field."""
    if fields.ground_truth_field not in {field.name for field in truth.fields}:
        return " with --ground-truth-field, or pass a bag with ground truth as --dataset"
    if fields.label_field not in {field.name for field in labelled.fields}:
        return " with --label-field, or add labels with `sqsegv3 label`"
    return ""


def _find_pairs(predictions: Path, ground_truth: Path | None) -> list[_BagPair]:
    if is_bag(predictions):
        name = predictions.stem if predictions.is_file() else predictions.resolve().name
        pairs = [_BagPair(name, predictions, ground_truth)]
    else:
        pairs = []
        for bag in find_bags(predictions):
            relative = bag.relative_to(predictions)
            truth = None if ground_truth is None else ground_truth / relative
            pairs.append(_BagPair(str(relative.with_suffix("") if bag.is_file() else relative), bag, truth))
    for _, bag, truth in pairs:
        if truth is not None and not (truth.exists() and is_bag(truth)):
            raise UserError(f"no bag {truth} with the ground truth of {bag}")
    return pairs


def _count_clouds(pairs: list[_BagPair], fields: BagFields) -> int:
    """Count the labelled clouds. Raises UserError for bags that do not fit, before anything is evaluated."""
    total = 0
    for _, bag, truth in pairs:
        with BagReader(bag) as reader:
            count = reader.count(reader.cloud_topic(fields.topic))
        if truth is not None:
            with BagReader(truth) as reader:
                expected = reader.count(reader.cloud_topic(fields.ground_truth_topic, "--ground-truth-topic"))
            if count != expected:
                raise UserError(
                    f"bag {bag} has {count} labelled clouds, but {truth} {expected} with ground truth; every cloud "
                    "must be labelled"
                )
        total += count
    return total


def _read_clouds(pair: _BagPair, fields: BagFields) -> Iterator[tuple[Any, Any]]:
    """Yield (labelled cloud, cloud with ground truth). Raises UserError if their stamps differ."""
    _, bag, truth = pair
    with ExitStack() as stack:
        reader = stack.enter_context(BagReader(bag))
        labelled = (reader.cloud(m) for m in reader.messages(reader.cloud_topic(fields.topic)))
        if truth is None:
            yield from ((cloud, cloud) for cloud in labelled)
            return
        truth_reader = stack.enter_context(BagReader(truth))
        truth_topic = truth_reader.cloud_topic(fields.ground_truth_topic)
        true = (truth_reader.cloud(m) for m in truth_reader.messages(truth_topic))
        for number, (cloud, true_cloud) in enumerate(zip_longest(labelled, true), start=1):
            if cloud is None or true_cloud is None or stamp_ns(cloud.header) != stamp_ns(true_cloud.header):
                raise UserError(f"cloud {number} of bag {bag} and of {truth} are not the same: their stamps differ")
            yield cloud, true_cloud
