# SPDX-License-Identifier: Apache-2.0
"""Biases of the classes, chosen by labelled scans."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from test_training_data import write_data_set

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import find_scans, read_labels, read_scan
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import ModelInfo, read_info
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, project
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.export import export_model
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.calibration import SHARE, LabelledPixels, best_biases, read_pixels

ROAD, CAR, PERSON = 9, 1, 6


def skewed_pixels(seed, skew):
    """Noisy logits of three classes, with a skew added to some."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([ROAD, CAR, PERSON], 4000, p=[0.6, 0.3, 0.1])
    logits = np.full((20, 4000), -20.0, np.float32)
    for c in (ROAD, CAR, PERSON):
        logits[c] = rng.normal(2.0 * (labels == c), 1.0) + skew.get(c, 0.0)
    logits[0] = -np.inf
    return LabelledPixels(torch.from_numpy(logits), torch.from_numpy(labels))


def mean_iou(pixels, biases):
    """Mean IoU of the three classes, counted by hand."""
    predicted = np.argmax(pixels.logits.numpy() + biases[:, None], 0)
    truth = pixels.labels.numpy()
    ious = [
        np.sum((predicted == c) & (truth == c)) / np.sum((predicted == c) | (truth == c)) for c in (ROAD, CAR, PERSON)
    ]
    return float(np.mean(ious))


def test_biases_undo_a_skew_as_well_as_a_search_of_all():
    pixels = skewed_pixels(0, {PERSON: 1.5, CAR: -0.75})
    found = best_biases([pixels], SEMANTIC_KITTI).numpy()
    grid = np.arange(-3, 1.01, 0.25)
    best = 0.0
    for car, person in product(grid, grid):  # a common shift of all three changes nothing
        tried = np.zeros(20)
        tried[[CAR, PERSON]] = car, person
        best = max(best, mean_iou(pixels, tried))
    assert mean_iou(pixels, found) > mean_iou(pixels, np.zeros(20)) + 0.05
    assert mean_iou(pixels, found) > best - 0.01
    assert not found[[c for c in range(20) if c not in (ROAD, CAR, PERSON)]].any()


def test_every_data_set_counts_the_same():
    small, large = skewed_pixels(1, {PERSON: 1.5}), skewed_pixels(2, {PERSON: -1.0})
    large = LabelledPixels(large.logits.repeat(1, 5), large.labels.repeat(5))
    both = best_biases([small, large], SEMANTIC_KITTI).numpy()
    alone = best_biases([large], SEMANTIC_KITTI).numpy()
    assert mean_iou(small, both) > mean_iou(small, alone) + 0.02


@pytest.fixture
def model(tmp_path):
    """A network that has learned nothing, and its file."""
    torch.manual_seed(0)
    network = SqueezeSegV3(NetworkConfig(blocks=(1, 1, 1, 1, 1), channels=(8, 8, 8, 8, 8), attention_kernel=1)).eval()
    network.get_parameter("heads.0.conv.bias").data[0] = -100.0  # never unlabeled
    info = ModelInfo(
        name="tiny",
        architecture=network.config.to_dict(),
        labels=SEMANTIC_KITTI,
        projection=ProjectionConfig(height=16, width=128),
        normalization=Normalization(),
        knn=KnnConfig(),
    )
    export_model(network, tmp_path / "tiny.pt", info=info)
    return network, info, tmp_path / "tiny.pt"


def test_pixels_have_the_labels_that_the_exported_model_gives_them(model, tmp_path):
    network, info, path = model
    root = write_data_set(tmp_path / "data")
    segmenter = Segmenter(path, backend="torch", device="cpu", precision="fp32", knn=KnnConfig(mode="off"))
    expected = ConfusionMatrix(SEMANTIC_KITTI)
    for scan in find_scans(root):
        points = read_scan(scan.path)
        truth = SEMANTIC_KITTI.to_labels(read_labels(scan.labels_path))
        index = project(torch.from_numpy(points), info.projection).index.flatten().numpy()
        nearest = index[index >= 0]
        nearest = nearest[truth[nearest] > 0]
        expected.add(segmenter.segment(points).labels[nearest], truth[nearest])
    pixels = read_pixels(network, info, root)
    found = ConfusionMatrix(SEMANTIC_KITTI)
    found.add(pixels.logits.argmax(0).numpy(), pixels.labels.numpy())
    assert expected.points > 1000
    assert found.counts.tolist() == expected.counts.tolist()


def test_export_adds_and_records_the_biases(model, tmp_path, monkeypatch):
    network, info, path = model
    root = write_data_set(tmp_path / "data")
    output = tmp_path / "calibrated.pt"
    monkeypatch.chdir(root / "sequences" / "01")
    assert main(["export", str(path), "--output", str(output), "--calibrate", "."]) == 0
    pixels = read_pixels(network, info, root / "sequences" / "01")
    expected = SHARE * best_biases([pixels], SEMANTIC_KITTI)
    assert expected.any()
    recorded = read_info(output).provenance["class_bias"]
    assert recorded == {SEMANTIC_KITTI.names[c]: float(expected[c]) for c in range(20) if expected[c]}
    assert len(read_pixels(network, info, root).labels) > len(pixels.labels)  # all sequences


def test_export_refuses_scans_without_enough_labels(model, tmp_path, capsys):
    root, output = write_data_set(tmp_path / "data"), tmp_path / "calibrated.pt"
    labels = list(root.glob("sequences/*/labels/*.label"))

    def refused(folder):
        assert main(["export", str(model[2]), "--output", str(output), "--calibrate", str(folder)]) == 2
        return capsys.readouterr().err

    for path in labels:
        path.write_bytes(bytes(path.stat().st_size))  # unlabeled
    assert f"{root}: 0 labelled pixels of the most frequent class; expected 300" in refused(root)
    for path in labels:
        path.unlink()
    assert f"{root} has no .label files" in refused(root)
    assert "99 does not exist; expected a SemanticKITTI data set or its folder" in refused(root / "sequences" / "99")
    assert not output.exists()
