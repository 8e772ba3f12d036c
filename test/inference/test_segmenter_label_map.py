# SPDX-License-Identifier: Apache-2.0
"""Label maps and entropy in the segmenter, compared with the float64 probabilities of the network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_openvino

from sqsegv3_ros.data.label_map import LabelMap, load_label_map
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.inference.model_file import load_model
from sqsegv3_ros.inference.range_image import normalize
from sqsegv3_ros.inference.segmenter import Segmentation, Segmenter

# points in front only, so that some pixels are empty
POINTS = (np.random.default_rng(0).normal(size=(3000, 4)) * [15, 5, 1, 0.2] + [30, 0, 0, 0]).astype(np.float32)
POINTS[7, :3] = math.nan
BACKENDS = ["torch", pytest.param("openvino", marks=needs_openvino)]
MAPS = ["traversability", "autoware"]


def probabilities(segmenter: Segmenter, result: Segmentation) -> np.ndarray:
    """(C, H, W) float64 softmax of the network for the range image of a result."""
    image = normalize(result.image, segmenter.info.normalization)
    with torch.inference_mode():
        return load_model(segmenter.model_path).network(image)[0].double().softmax(0).numpy()


@pytest.fixture(scope="module", params=BACKENDS)
def plain(small_model: Path, request: pytest.FixtureRequest) -> Segmenter:
    return Segmenter(small_model, backend=request.param, precision="fp32")


def mapped_like(plain: Segmenter, label_map: LabelMap) -> Segmenter:
    return Segmenter(plain.model_path, backend=plain.runtime.backend, precision="fp32", label_map=label_map)


@pytest.mark.parametrize("name", MAPS)
def test_folded_labels_are_those_of_the_model_by_the_maps_table(plain: Segmenter, name: str) -> None:
    label_map = load_label_map(name)
    mapped = mapped_like(plain, label_map)
    original, folded = plain.segment(POINTS), mapped.segment(POINTS)
    new_of = {old: label for label, c in enumerate(label_map.classes) for old in c.members}
    table = np.array([new_of[old] for old in SEMANTIC_KITTI.names])
    np.testing.assert_array_equal(folded.labels, table[original.labels])
    np.testing.assert_array_equal(folded.label_image, table[original.label_image])
    assert len(np.unique(original.labels)) > 2 and folded.labels.dtype == np.uint8
    assert mapped.info.labels.names == tuple(c.name for c in label_map.classes)


@pytest.mark.parametrize("name", MAPS[:1])
def test_the_confidence_of_a_folded_class_is_the_sum_of_its_members(plain: Segmenter, name: str) -> None:
    label_map = load_label_map(name)
    result = mapped_like(plain, label_map).segment(POINTS)
    softmax = probabilities(plain, result)
    members = [[SEMANTIC_KITTI.index(old) for old in c.members] for c in label_map.classes]
    rows, columns = result.image.py, result.image.px
    expected = [softmax[members[new], r, c].sum() for new, r, c in zip(result.labels, rows, columns, strict=True)]
    expected[7] = 0.0
    np.testing.assert_allclose(result.confidences, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["", *MAPS])
def test_entropy_is_that_of_the_classes_divided_by_its_largest_value(plain: Segmenter, name: str) -> None:
    segmenter = mapped_like(plain, load_label_map(name)) if name else plain
    result = segmenter.segment(POINTS, entropy=True)
    p = probabilities(plain, result)
    if name:
        members = [[SEMANTIC_KITTI.index(old) for old in c.members] for c in load_label_map(name).classes]
        p = np.stack([p[old].sum(0) for old in members if old])
    expected = -(p * np.log(p)).sum(0) / math.log(len(p))
    filled = result.image.index.numpy() >= 0
    assert result.entropies is not None and result.entropy_image is not None
    assert 0 < filled.sum() < filled.size
    np.testing.assert_allclose(result.entropy_image.numpy()[filled], expected[filled], atol=1e-5)
    assert np.isnan(result.entropy_image.numpy()[~filled]).all()
    of_points = expected[result.image.py, result.image.px]
    of_points[7] = 1.0
    np.testing.assert_allclose(result.entropies, of_points, atol=1e-5)
    assert result.entropies.dtype == np.float32


def test_entropy_is_computed_only_on_request_and_changes_no_label(plain: Segmenter) -> None:
    without, with_entropy = plain.segment(POINTS), plain.segment(POINTS, entropy=True)
    assert without.entropies is None and without.entropy_image is None
    np.testing.assert_array_equal(without.labels, with_entropy.labels)
    np.testing.assert_array_equal(without.confidences, with_entropy.confidences)
