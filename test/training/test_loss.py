# SPDX-License-Identifier: Apache-2.0
"""The loss and the learning rate: against the official release's numbers and against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN, needs_shared

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.loss import (
    LossConfig,
    MultiLayerLoss,
    class_weights,
    cross_entropy_sums,
    downsample_labels,
    lovasz_softmax,
    weighted_cross_entropy,
)
from sqsegv3_ros.training.schedule import OptimizerConfig, build_optimizer, build_schedule

FREQUENCIES = [c.frequency for c in SEMANTIC_KITTI.classes]
IGNORED = [c.ignored for c in SEMANTIC_KITTI.classes]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "loss.npz")


def release_loss(**settings):
    weights = class_weights("release", FREQUENCIES, IGNORED)
    return MultiLayerLoss(LossConfig(**settings), weights, SEMANTIC_KITTI.evaluated)


def logits_and_labels(golden):
    logits = [torch.from_numpy(golden[f"softmax_{i}"]).log() for i in range(5)]
    return logits, torch.from_numpy(golden["labels"]).long()


@needs_shared
def test_release_class_weights_equal_the_release(golden):
    weights = class_weights("release", FREQUENCIES, IGNORED)
    np.testing.assert_allclose(weights.numpy(), golden["class_weights"], rtol=1e-6)


def test_other_class_weights_follow_their_formula():
    frequencies, ignored = [0.3, 0.2, 0.0], [True, False, False]
    paper = class_weights("paper", frequencies, ignored).tolist()
    assert paper == pytest.approx([0.0, 1 / math.log(1.22), 1 / math.log(1.02)])
    assert class_weights("sqrt", frequencies, ignored).tolist() == pytest.approx([0, 0.201**-0.5, 0.001**-0.5])
    assert class_weights("none", frequencies, ignored).tolist() == [0, 1, 1]


@needs_shared
def test_labels_are_downsampled_as_released(golden):
    labels = torch.from_numpy(golden["labels"])
    for i in range(5):
        expected = golden[f"labels_{i}"]
        np.testing.assert_array_equal(downsample_labels(labels, expected.shape[2]).numpy(), expected)


@needs_shared
def test_loss_equals_the_release(golden):
    logits, labels = logits_and_labels(golden)
    assert float(release_loss()(logits, labels)) == pytest.approx(float(golden["total"]), rel=1e-6)
    total, weight = cross_entropy_sums(logits[0], labels, release_loss().weights)
    assert float(total / weight) == pytest.approx(golden["terms"][0], rel=1e-6)


@needs_shared
@pytest.mark.parametrize("head", range(1, 5))
def test_each_heads_term_equals_the_release(golden, head):
    logits, labels = logits_and_labels(golden)
    factors = [1.0] + [2.0 if i == head else 0.0 for i in range(1, 5)]
    expected = golden["terms"][0] + 2 * golden["terms"][head]
    assert float(release_loss(heads=factors)(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_probability_is_clamped_as_in_the_release():
    logits = torch.zeros(1, 20, 1, 8)
    logits[:, 3] = 1000.0
    labels = torch.full((1, 1, 8), 9)
    assert float(weighted_cross_entropy(logits, labels, release_loss().weights)) == pytest.approx(-math.log(1e-8))


def test_a_batch_without_labels_has_zero_loss_and_gradient():
    logits = [torch.randn(1, 20, 4, w, requires_grad=True) for w in (32, 16, 8, 4, 4)]
    loss = release_loss(lovasz=1.0)(logits, torch.zeros(1, 4, 32, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert all(float(x.grad.abs().max()) == 0 for x in logits)


SETS = ((1, 2), (2, 3, 4))


def test_a_set_of_classes_costs_the_log_of_the_sum_of_their_probabilities():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(2, 5, 3, 8)), generator.integers(0, 7, (2, 3, 8))
    weights = np.array([0.0, 2.0, 0.5, 3.0, 1.0])
    total, weight_sum = 0.0, 0.0
    for n, y, x in np.ndindex(labels.shape):
        probability = np.exp(logits[n, :, y, x]) / np.exp(logits[n, :, y, x]).sum()
        label = labels[n, y, x]
        members = [label] if label < 5 else list(SETS[label - 5])
        weight = min(weights[members])
        total -= weight * np.log(probability[members].sum())
        weight_sum += weight
    found = weighted_cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights).float(), SETS
    )
    assert float(found) == pytest.approx(total / weight_sum, rel=1e-5)


def test_only_the_sum_over_a_set_is_trained():
    logits = torch.zeros(1, 5, 1, 1, requires_grad=True)
    weighted_cross_entropy(logits, torch.full((1, 1, 1), 6), torch.ones(5), SETS).backward()
    assert logits.grad.flatten().tolist() == pytest.approx([0.2, 0.2, 0.2 - 1 / 3, 0.2 - 1 / 3, 0.2 - 1 / 3])


def test_sets_reach_every_head_and_the_lovasz_loss():
    logits = [torch.randn(1, 20, 4, w) for w in (32, 16, 8, 4, 4)]
    labels = torch.randint(0, 22, (1, 4, 32))
    loss = release_loss(lovasz=1.0)
    loss.sets = SETS
    expected = lovasz_softmax(logits[0], labels, SEMANTIC_KITTI.evaluated, SETS)
    for head in logits:
        narrow = downsample_labels(labels, head.shape[3])
        expected = expected + weighted_cross_entropy(head, narrow, loss.weights, SETS)
    assert float(loss(logits, labels)) == pytest.approx(float(expected))


def lovasz_by_definition(probabilities, truth, evaluated, sets=()):
    """Sum of sorted errors times what each adds to 1 - IoU of the set of the errors before it; sets, float64."""
    terms = []
    for c in [c for c in evaluated if (np.asarray(truth) == c).any()]:
        unsure = {len(probabilities[0]) + number for number, members in enumerate(sets) if c in members}
        known = [i for i, t in enumerate(truth) if t not in unsure]
        positive = {n for n, i in enumerate(known) if truth[i] == c}
        errors = [1 - probabilities[i][c] if n in positive else probabilities[i][c] for n, i in enumerate(known)]

        def lost(wrong, positive=positive):
            return 1 - len(positive - wrong) / len(positive | wrong)

        total, wrong = 0.0, set()
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            total += errors[i] * (lost(wrong | {i}) - lost(wrong))
            wrong |= {i}
        terms.append(total)
    return float(np.mean(terms))


def test_lovasz_softmax_equals_its_definition():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2, 5, 3, 8)), generator.integers(0, 4, (2, 3, 8))
    counted = labels.ravel() != 0
    probabilities = torch.from_numpy(logits).softmax(1).movedim(1, -1).reshape(-1, 5).numpy()[counted]
    expected = lovasz_by_definition(probabilities, labels.ravel()[counted], range(1, 5))
    found = lovasz_softmax(torch.from_numpy(logits), torch.from_numpy(labels), range(1, 5))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_set_of_classes_counts_in_the_lovasz_loss_of_the_classes_outside_it():
    generator = np.random.default_rng(2)
    logits, labels = generator.normal(size=(2, 5, 3, 8)), generator.integers(0, 7, (2, 3, 8))
    counted = labels.ravel() != 0
    probabilities = torch.from_numpy(logits).softmax(1).movedim(1, -1).reshape(-1, 5).numpy()[counted]
    expected = lovasz_by_definition(probabilities, labels.ravel()[counted], range(1, 5), SETS)
    found = lovasz_softmax(torch.from_numpy(logits), torch.from_numpy(labels), range(1, 5), SETS)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_negligible_errors_are_left_out_of_the_lovasz_loss():
    logits = 12 * torch.nn.functional.one_hot(torch.arange(60) % 3, 3).T.reshape(1, 3, 6, 10).double()
    labels = ((torch.arange(60) + (torch.arange(60) > 40)) % 3).reshape(1, 6, 10)
    probabilities = logits.softmax(1).movedim(1, -1).reshape(-1, 3).numpy()
    expected = lovasz_by_definition(probabilities, labels.ravel().numpy(), range(3))
    assert float(lovasz_softmax(logits, labels, range(3))) == pytest.approx(expected, abs=1e-3)


def test_lovasz_softmax_of_certain_answers_is_one_minus_iou():
    labels = torch.tensor([[[1, 1, 1, 2, 2, 2, 2, 0]]])
    answers = torch.tensor([[[1, 1, 2, 2, 2, 1, 2, 1]]])
    logits = 1e4 * torch.nn.functional.one_hot(answers, 3).movedim(-1, 1).double()
    assert float(lovasz_softmax(logits, labels, [1, 2])) == pytest.approx(1 - (2 / 4 + 3 / 5) / 2)


def test_lovasz_is_added_with_its_factor():
    logits = [torch.randn(1, 20, 4, w) for w in (32, 16, 8, 4, 4)]
    labels = torch.randint(0, 20, (1, 4, 32))
    expected = release_loss()(logits, labels) + 0.5 * lovasz_softmax(logits[0], labels, SEMANTIC_KITTI.evaluated)
    assert float(release_loss(lovasz=0.5)(logits, labels)) == pytest.approx(float(expected))


def rates(config, steps, steps_per_epoch, total=float("inf")):
    module = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(module, config)
    schedule = build_schedule(optimizer, config, steps_per_epoch, total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@needs_shared
@pytest.mark.parametrize(("name", "lr", "decay"), [("ssgv321", 0.001, 0.995), ("ssgv353", 0.005, 0.99)])
def test_learning_rate_equals_the_release(name, lr, decay):
    found = rates(OptimizerConfig(lr=lr, decay_per_epoch=decay), 60, 10)
    np.testing.assert_allclose(found, np.load(GOLDEN / "lr.npz")[name], rtol=1e-9)


def test_one_cycle_rises_to_the_given_rate_and_ends_near_zero():
    found = rates(OptimizerConfig(method="adamw", schedule="one-cycle", lr=0.01, warmup_share=0.25), 100, 10, 100)
    assert max(found) == pytest.approx(0.01)
    assert 23 <= int(np.argmax(found)) <= 25
    assert found[0] == pytest.approx(0.01 / 25)
    assert found[-1] < 1e-6


def test_one_cycle_without_a_number_of_steps_is_refused():
    config = OptimizerConfig(method="adamw", schedule="one-cycle")
    with pytest.raises(UserError, match=r"set trainer\.max_steps or trainer\.max_epochs"):
        rates(config, 1, 10)


def test_adamw_decays_kernels_only_and_sgd_everything():
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2))
    decayed = [g for g in build_optimizer(module, OptimizerConfig(method="adamw")).param_groups if g["weight_decay"]]
    assert [p.ndim for g in decayed for p in g["params"]] == [4]
    sgd = build_optimizer(module, OptimizerConfig()).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in sgd] == [(4, 1e-4)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(class_weights="square"), "class_weights must be one of release, paper, sqrt, none"),
        (lambda: LossConfig(heads=(1, 1)), "five factors"),
        (lambda: LossConfig(lovasz=-1), "lovasz must be 0 or more"),
        (lambda: OptimizerConfig(method="lion"), "method must be one of sgd, adamw"),
        (lambda: OptimizerConfig(lr=0), "lr must be above 0"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_scaled_gradients_in_fp16_agree_with_those_in_fp32():
    """As with trainer.precision 16-mixed, with a scale that the gradient scaler reaches after a few steps."""

    def gradients(dtype, scale):
        torch.manual_seed(0)
        config = NetworkConfig(channels=(8, 8, 8, 8, 8), dropout=0.0, decoder_dropout=0.0, head_dropout=0.0)
        network, criterion = SqueezeSegV3(config), release_loss(lovasz=1.0)
        images, labels = torch.randn(2, 5, 16, 64), torch.randint(0, 20, (2, 16, 64))
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = criterion(network(images), labels)
        (loss * scale).backward()
        return torch.cat([p.grad.flatten() / scale for p in network.parameters()])

    expected, found = gradients(torch.float32, 1.0), gradients(torch.float16, 1024.0)
    assert torch.isfinite(found).all()
    assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.98
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.05)
