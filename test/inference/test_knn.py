# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import DATA, GOLDEN, needs_shared

from sqsegv3_ros.data.semantic_kitti import read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference import knn
from sqsegv3_ros.inference.knn import KnnConfig, inverse_gaussian, refine, uniform_windows, vote
from sqsegv3_ros.inference.range_image import ProjectionConfig, RangeImage, project

CLASSES = 20


@pytest.fixture(scope="module")
def scan_image() -> RangeImage:
    points = read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin")
    return project(torch.from_numpy(points), ProjectionConfig())


def random_scene(seed: int, count: int = 3000) -> tuple[RangeImage, torch.Tensor]:
    generator = np.random.default_rng(seed)
    points = (generator.normal(size=(count, 4)) * [10, 10, 1, 1]).astype(np.float32)
    points[:: count // 10] = np.nan
    image = project(torch.from_numpy(points), ProjectionConfig(16, 64, 20.0, -20.0))
    # patches of one class, so that decided and undecided windows both occur
    patches = generator.integers(0, CLASSES, size=(4, 8)).repeat(4, axis=0).repeat(8, axis=1)
    return image, torch.from_numpy(patches)


def reference_vote(label_image: torch.Tensor, image: RangeImage, config: KnnConfig) -> list[int | None]:
    """The release's definition, point by point in plain Python; None where it leaves the order of votes open."""
    labels, ranges = label_image.tolist(), image.range.tolist()
    weights = inverse_gaussian(config.search, config.sigma).tolist()
    half = config.search // 2
    result: list[int | None] = []
    for usable, row, column, own_range in zip(
        image.usable.tolist(), image.py.tolist(), image.px.tolist(), image.point_range.tolist(), strict=True
    ):
        if not usable:
            result.append(0)
            continue
        candidates = []
        for i in range(config.search**2):
            y, x = row + i // config.search - half, column + i % config.search - half
            inside = 0 <= y < image.height and 0 <= x < image.width
            candidate_range, label = (ranges[y][x], labels[y][x]) if inside else (0.0, 0)
            if i == config.search**2 // 2:
                candidate_range = own_range
            distance = math.inf if candidate_range < 0 else abs(candidate_range - own_range) * weights[i]
            candidates.append((distance, label))
        nearest = sorted(candidates)[: config.k]
        limit = config.cutoff_m if config.cutoff_m > 0 else math.inf
        may_be_infinite = config.mode == "official" and config.cutoff_m <= 0
        if may_be_infinite and math.isinf(nearest[-1][0]):
            result.append(None)  # which of the infinitely far pixels vote is not defined
            continue
        votes = [label for d, label in nearest if label > 0 and d <= limit and not math.isinf(d)]
        if votes:
            result.append(max(sorted(set(votes)), key=votes.count))
        else:
            result.append(labels[row][column] if config.mode == "safe" else 1)
    return result


@needs_shared
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("knn_none_gt", KnnConfig("off")),
        ("knn_none_official21", KnnConfig("off")),
        ("knn_5_5_gt", KnnConfig("official")),
        ("knn_5_5_nocutoff_gt", KnnConfig("official", cutoff_m=0.0)),
        ("knn_7_7_gt", KnnConfig("official", k=7, search=7)),
        ("knn_5_5_official21", KnnConfig("official")),
        ("knn_7_7_official21", KnnConfig("official", k=7, search=7)),
    ],
)
def test_labels_equal_the_official_release(scan_image: RangeImage, name: str, config: KnnConfig) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    label_image = torch.from_numpy(golden["proj_argmax"].astype(np.int64))
    np.testing.assert_array_equal(refine(label_image, scan_image, config, CLASSES), golden["labels"])


@needs_shared
@pytest.mark.parametrize("search", [3, 5, 7])
def test_the_gaussian_equals_the_official_release(search: int) -> None:
    golden = np.load(GOLDEN / "knn_gauss.npz")[f"k{search}"]
    np.testing.assert_allclose(1 - inverse_gaussian(search, 1.0).view(search, search), golden, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cutoff_m", [1.0, 0.05, 0.0])
@pytest.mark.parametrize(("k", "search"), [(1, 1), (3, 3), (5, 5), (7, 7)])
@pytest.mark.parametrize("mode", ["safe", "official"])
def test_labels_equal_a_plain_loop_over_the_points(mode: str, k: int, search: int, cutoff_m: float, seed: int) -> None:
    image, label_image = random_scene(seed, 1500)
    config = KnnConfig(mode, k, search, 1.0, cutoff_m)
    expected = reference_vote(label_image, image, config)
    found = refine(label_image, image, config, CLASSES).tolist()
    assert sum(label is not None for label in expected) > 100
    assert [f for f, e in zip(found, expected, strict=True) if e is not None] == [e for e in expected if e is not None]


@pytest.mark.parametrize(("mode", "cutoff_m"), [("safe", 1.0), ("official", 0.0)])
def test_the_shortcut_of_uniform_windows_changes_no_label(mode: str, cutoff_m: float) -> None:
    image, label_image = random_scene(7)
    config = KnnConfig(mode, cutoff_m=cutoff_m)
    decided = uniform_windows(label_image, image, config, CLASSES)
    assert 0.1 < decided.mean() < 0.9
    voted = vote(image.pixel, image.point_range, label_image, image, config, CLASSES)
    own = label_image.flatten()[image.pixel] if mode == "safe" else 1
    everyone = torch.where(image.usable, torch.where(voted > 0, voted, own), 0)
    assert torch.equal(refine(label_image, image, config, CLASSES), everyone)


@pytest.mark.parametrize("k", [5, 7])
def test_threads_and_devices_give_the_same_labels(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, label_image = random_scene(3, 60_000)
    config = KnnConfig("official", k=k, search=k)
    alone = refine(label_image, image, config, CLASSES)
    for threads in (2, 5):
        assert torch.equal(refine(label_image, image, config, CLASSES, threads), alone)
        with torch.inference_mode():
            assert torch.equal(refine(label_image, image, config, CLASSES, threads), alone)
    monkeypatch.setattr(knn, "library", lambda tensor: torch)  # the lines that run on a device
    monkeypatch.setattr(knn, "array", lambda tensor: tensor)
    assert torch.equal(refine(label_image, image, config, CLASSES), alone)


def test_more_than_256_classes_are_told_apart() -> None:
    image, label_image = random_scene(5)
    scaled = refine(label_image * 100, image, KnnConfig(), 2000)
    assert torch.equal(scaled, refine(label_image, image, KnnConfig(), CLASSES) * 100)


def test_without_a_valid_vote_safe_keeps_the_pixels_label_and_official_says_class_1() -> None:
    image = project(torch.tensor([[5.0, 0.0, 0.0, 0.5]]), ProjectionConfig(8, 32, 10.0, -10.0))
    unlabeled = torch.zeros((8, 32), dtype=torch.int64)
    assert refine(unlabeled, image, KnnConfig("safe"), CLASSES).tolist() == [0]
    assert refine(unlabeled, image, KnnConfig("official"), CLASSES).tolist() == [1]


def test_a_point_behind_another_takes_the_label_of_its_own_depth() -> None:
    wall = [[20.0, 0.6 * i, 0.1, 0.5] for i in range(-6, 7)]
    pole = [[5.0, 0.0, 0.025, 0.5]]
    image = project(torch.tensor(wall + pole), ProjectionConfig(8, 256, 10.0, -10.0))
    label_image = torch.full((8, 256), 13)
    label_image.flatten()[image.pixel[-1]] = 18
    hidden = 6  # the wall point behind the pole: its pixel belongs to the pole
    assert image.pixel[hidden] == image.pixel[-1]
    assert refine(label_image, image, KnnConfig("off"), CLASSES)[hidden] == 18
    assert refine(label_image, image, KnnConfig("safe"), CLASSES)[hidden] == 13


def test_no_points_and_unusable_points() -> None:
    config = ProjectionConfig(8, 32, 10.0, -10.0)
    labels = torch.full((8, 32), 3)
    assert refine(labels, project(torch.zeros(0, 4), config), KnnConfig(), CLASSES).shape == (0,)
    assert refine(labels, project(torch.zeros(2, 4), config), KnnConfig(), CLASSES).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "on"}, "off, safe, official"),
        ({"search": 4}, "odd"),
        ({"k": 26}, r"1\.\.25"),
        ({"sigma": 0.0}, "sigma"),
        ({"cutoff_m": math.inf}, "cutoff_m"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        KnnConfig(**settings)
