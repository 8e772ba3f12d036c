"""Five maps of logits and the labels of the full-width image go in; the loss that is minimised comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqsegv3_ros.errors import UserError

CLASS_WEIGHTS = ("release", "paper", "sqrt", "none")
RELEASE_EPSILON = 0.001  # epsilon_w of the release
PAPER_EPSILON = 1.02  # not given in the paper; this value, usual in the field, keeps 1 / log(f + eps) positive
SMALLEST_PROBABILITY = 1e-8  # the release clamps the softmax at it before taking the logarithm


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    class_weights: 'release' 1 / (f + 0.001), 'paper' 1 / log(f + 1.02), 'sqrt' the square root of the release's,
        'none' 1 for every class; f is the share of the points that the class has. Ignored classes always weigh 0.
    heads: factor of each head's cross entropy, full-width head first (release: 1 each).
    lovasz: factor of the Lovász-softmax loss of the full-width head; 0 leaves it out.
    """

    class_weights: str = "release"
    heads: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    lovasz: float = 0.0

    def __post_init__(self) -> None:
        if self.class_weights not in CLASS_WEIGHTS:
            raise UserError(
                f"loss: class_weights must be one of {', '.join(CLASS_WEIGHTS)}, found '{self.class_weights}'"
            )
        object.__setattr__(self, "heads", tuple(float(h) for h in self.heads))
        if len(self.heads) != 5 or min(self.heads) < 0 or self.heads[0] == 0:
            raise UserError(f"loss: heads must be five factors >= 0, the first one above 0, found {self.heads}")
        if not self.lovasz >= 0:
            raise UserError(f"loss: lovasz must be 0 or more, found {self.lovasz}")


def class_weights(kind: str, frequencies: Sequence[float], ignored: Sequence[bool]) -> Tensor:
    """(C,) float32 weights of the classes; see `LossConfig`. frequencies: share of the points of each class, 0..1."""
    frequency = torch.tensor([float(f) for f in frequencies], dtype=torch.float64)
    if kind == "paper":
        weights = 1.0 / torch.log(frequency + PAPER_EPSILON)
    elif kind == "none":
        weights = torch.ones_like(frequency)
    else:
        weights = 1.0 / (frequency + RELEASE_EPSILON)
        weights = weights.sqrt() if kind == "sqrt" else weights
    return weights.masked_fill(torch.tensor([bool(i) for i in ignored]), 0.0).float()


def narrow_labels(labels: Tensor, width: int) -> Tensor:
    """(N, H, W) labels -> (N, H, width): every (W / width)-th column from 0 on, as released (nearest, no voting)."""
    return labels[:, :, :: labels.shape[2] // width]


def cross_entropy_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the pixels of -w log p, and the sum of the w.

    logits: (N, C, H, W). labels: (N, H, W) int64. weights: (C,).
    """
    log_probability = F.log_softmax(logits.float(), dim=1).clamp_min(math.log(SMALLEST_PROBABILITY))
    return F.nll_loss(log_probability, labels, weight=weights, reduction="sum"), weights[labels].sum()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pixels of -w log p, divided by the sum of the w (release: NLLLoss with weights).

    Where several processes train together the divisor is the mean of theirs, so that their averaged gradients are those
    of one process with all the pixels: all of them must call it. A batch in which every pixel is ignored costs 0 (the
    release gets NaN).
    """
    total, weight_sum = cross_entropy_sums(logits, labels, weights)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(weight_sum)
        weight_sum = weight_sum / torch.distributed.get_world_size()
    return total / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)


def lovasz_softmax(logits: Tensor, labels: Tensor, evaluated: Sequence[int]) -> Tensor:
    """The Lovász extension of 1 - IoU, averaged over the evaluated classes that the batch holds (Berman et al. 2018).

    logits: (N, C, H, W). labels: (N, H, W); pixels of a class that is not evaluated do not count. 0 where none is left.
    """
    counted = torch.isin(labels, torch.tensor(list(evaluated), device=labels.device))
    probabilities = F.softmax(logits, dim=1).movedim(1, -1)[counted]
    truth = labels[counted]
    terms = [_lovasz_of_class(probabilities[:, c], truth == c) for c in evaluated if bool((truth == c).any())]
    return torch.stack(terms).mean() if terms else logits.sum() * 0.0


def _lovasz_of_class(probability: Tensor, is_class: Tensor) -> Tensor:
    errors, order = (is_class.to(probability.dtype) - probability).abs().sort(descending=True)
    hit = is_class[order].to(probability.dtype)
    intersection = hit.sum() - hit.cumsum(0)
    union = hit.sum() + (1.0 - hit).cumsum(0)
    jaccard = 1.0 - intersection / union
    return torch.dot(errors, torch.diff(jaccard, prepend=jaccard.new_zeros(1)))


class MultiLayerLoss(nn.Module):
    """The release's loss: the cross entropies of all heads, each with the labels narrowed to its width, added up.

    weights: (C,) class weights. evaluated: the labels that are not ignored.
    """

    weights: Tensor

    def __init__(self, config: LossConfig, weights: Tensor, evaluated: Sequence[int]):
        super().__init__()
        self.config = config
        self.evaluated = tuple(evaluated)
        self.register_buffer("weights", weights)

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """logits: five maps (N, C, H, W'), full width first. labels: (N, H, W) int64. Returns a scalar."""
        loss = torch.zeros((), device=labels.device)
        for head, factor in zip(logits, self.config.heads, strict=True):
            if factor:
                narrowed = narrow_labels(labels, head.shape[3])
                loss = loss + factor * weighted_cross_entropy(head, narrowed, self.weights)
        if self.config.lovasz:
            loss = loss + self.config.lovasz * lovasz_softmax(logits[0].float(), labels, self.evaluated)
        return loss
