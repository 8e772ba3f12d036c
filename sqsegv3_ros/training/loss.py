# SPDX-License-Identifier: Apache-2.0
"""Training loss: weighted cross entropy of all heads and, optionally, Lovász-softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.errors import require

CLASS_WEIGHTS = ("release", "paper", "sqrt", "none")
RELEASE_EPSILON = 0.001  # epsilon_w of the release
PAPER_EPSILON = 1.02  # not given in the paper; this value, usual in the field, keeps 1 / log(f + eps) positive
SMALLEST_PROBABILITY = 1e-8  # the release clamps the softmax at it before taking the logarithm

NEGLIGIBLE_ERROR = 1e-3
"""Errors up to this are left out of the Lovász loss: most pixels have them, and they change it by less than this."""


@dataclass(frozen=True)
class LossConfig:
    """Loss settings.

    Attributes:
        class_weights: 'release' 1 / (f + 0.001), 'paper' 1 / log(f + 1.02), 'sqrt' the square root of the release's,
            'none' 1 for every class, with f the class's share of the points. Ignored classes always weigh 0.
        heads: Factor of the cross entropy of each head, full-width head first (release: 1 each).
        lovasz: Factor of the Lovász-softmax loss of the full-width head; 0 disables it.
    """

    class_weights: str = "release"
    heads: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    lovasz: float = 0.0

    def __post_init__(self) -> None:
        names = ", ".join(CLASS_WEIGHTS)
        require(self.class_weights in CLASS_WEIGHTS, "loss: class_weights", f"one of {names}", self.class_weights)
        object.__setattr__(self, "heads", tuple(float(h) for h in self.heads))
        valid = len(self.heads) == 5 and min(self.heads) >= 0 and self.heads[0] > 0
        require(valid, "loss: heads", "five factors >= 0, the first one above 0", self.heads)
        require(self.lovasz >= 0, "loss: lovasz", "0 or more", self.lovasz)


def class_weights(kind: str, frequencies: Sequence[float], ignored: Sequence[bool]) -> Tensor:
    """Compute the class weights of `LossConfig`.

    Args:
        kind: One of `CLASS_WEIGHTS`.
        frequencies: Share of each class in the points, 0..1.
        ignored: Whether each class is ignored.

    Returns:
        (C,) float32.
    """
    frequency = torch.tensor([float(f) for f in frequencies], dtype=torch.float64)
    if kind == "paper":
        weights = 1.0 / torch.log(frequency + PAPER_EPSILON)
    elif kind == "none":
        weights = torch.ones_like(frequency)
    else:
        weights = 1.0 / (frequency + RELEASE_EPSILON)
        weights = weights.sqrt() if kind == "sqrt" else weights
    return weights.masked_fill(torch.tensor([bool(i) for i in ignored]), 0.0).float()


def downsample_labels(labels: Tensor, width: int) -> Tensor:
    """Take every (W / width)-th column of labels (N, H, W), as the release does (nearest, no voting)."""
    return labels[:, :, :: labels.shape[2] // width]


def cross_entropy_sums(
    logits: Tensor, labels: Tensor, weights: Tensor, sets: Sequence[Sequence[int]] = ()
) -> tuple[Tensor, Tensor]:
    """Compute the sums of -w log p and of w over the pixels.

    The probability of a set of classes is the sum of its classes' probabilities. A set weighs as much as that of its
    classes that weighs least, which is its most frequent one.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) int64: class, or C + i for set i.
        weights: (C,) class weights.
        sets: Classes of each set.

    Returns:
        Both sums, scalars.
    """
    log_probability = F.log_softmax(logits.float(), dim=1).clamp_min(math.log(SMALLEST_PROBABILITY))
    number = labels - logits.shape[1]
    in_set = number >= 0
    if not sets or not bool(in_set.any()):
        return F.nll_loss(log_probability, labels, weight=weights, reduction="sum"), weights[labels].sum()
    total = F.nll_loss(log_probability, labels.masked_fill(in_set, -100), weight=weights, reduction="sum")
    outside = ~membership(sets, logits.shape[1], labels.device)[number[in_set]]
    of_set = log_probability.movedim(1, -1)[in_set].masked_fill(outside, -math.inf).logsumexp(1)
    set_weights = torch.stack([weights[list(members)].amin() for members in sets])[number[in_set]]
    return total - torch.dot(set_weights, of_set), weights[labels[~in_set]].sum() + set_weights.sum()


def membership(sets: Sequence[Sequence[int]], classes: int, device: torch.device) -> Tensor:
    """(S, C) bool: whether each set holds each class."""
    members = torch.zeros((len(sets), classes), dtype=torch.bool)
    for row, of_set in zip(members, sets, strict=True):
        row[list(of_set)] = True
    return members.to(device)


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, sets: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Compute the sum of -w log p over the pixels, divided by the sum of w (release: NLLLoss with weights).

    In distributed training the divisor is averaged over the processes, so that the averaged gradients are those of one
    process with all the pixels; every process must call this function. The loss of a batch without labels is 0 (NaN in
    the release).

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) int64: class, or C + i for set i.
        weights: (C,) class weights.
        sets: Classes of each set.

    Returns:
        A scalar.
    """
    total, weight_sum = cross_entropy_sums(logits, labels, weights, sets)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(weight_sum)
        weight_sum = weight_sum / torch.distributed.get_world_size()
    return total / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)


def lovasz_softmax(
    logits: Tensor, labels: Tensor, evaluated: Sequence[int], sets: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Compute the Lovász extension of 1 - IoU, averaged over the classes present (Berman et al. 2018).

    A pixel of a set of classes counts as wrong for the classes outside the set, and not at all for those in it.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W): class, or C + i for set i.
        evaluated: Classes that count; pixels of other classes are left out.
        sets: Classes of each set.

    Returns:
        A scalar; 0 if no pixel is left.
    """
    classes = logits.shape[1]
    counted = torch.isin(labels, torch.tensor(list(evaluated), device=labels.device)) | (labels >= classes)
    probabilities = F.softmax(logits, dim=1).movedim(1, -1)[counted]
    truth = labels[counted]
    terms = []
    for c in evaluated:
        is_class, probability = truth == c, probabilities[:, c]
        if not bool(is_class.any()):
            continue
        holding = [classes + number for number, members in enumerate(sets) if c in members]
        if holding:
            known = ~torch.isin(truth, torch.tensor(holding, device=truth.device))
            is_class, probability = is_class[known], probability[known]
        terms.append(_lovasz_of_class(probability, is_class))
    return torch.stack(terms).mean() if terms else logits.sum() * 0.0


def _lovasz_of_class(probability: Tensor, is_class: Tensor) -> Tensor:
    errors = (is_class.to(probability.dtype) - probability).abs()
    kept = errors > NEGLIGIBLE_ERROR
    errors, order = errors[kept].sort(descending=True)
    hit, positives = is_class[kept][order].to(probability.dtype), is_class.sum()
    intersection = positives - hit.cumsum(0)
    union = positives + (1.0 - hit).cumsum(0)
    jaccard = 1.0 - intersection / union
    return torch.dot(errors, torch.diff(jaccard, prepend=jaccard.new_zeros(1)))


class MultiLayerLoss(nn.Module):
    """The release's loss: the sum of the heads' cross entropies, each with the labels at the width of the head.

    Args:
        config: Loss settings.
        weights: (C,) class weights.
        evaluated: Labels that are not ignored.

    Attributes:
        sets: Classes of each set that the labels may name.
    """

    weights: Tensor
    sets: Sequence[Sequence[int]] = ()

    def __init__(self, config: LossConfig, weights: Tensor, evaluated: Sequence[int]):
        super().__init__()
        self.config = config
        self.evaluated = tuple(evaluated)
        self.register_buffer("weights", weights)

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: Five maps (N, C, H, W'), full width first.
            labels: (N, H, W) int64: class, or C + i for set i.

        Returns:
            A scalar.
        """
        loss = torch.zeros((), device=labels.device)
        for head, factor in zip(logits, self.config.heads, strict=True):
            if factor:
                head_labels = downsample_labels(labels, head.shape[3])
                loss = loss + factor * weighted_cross_entropy(head, head_labels, self.weights, self.sets)
        if self.config.lovasz:
            loss = loss + self.config.lovasz * lovasz_softmax(logits[0].float(), labels, self.evaluated, self.sets)
        return loss
