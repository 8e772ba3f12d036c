# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, GOLDEN, SHARED, needs_openvino, needs_shared

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.knn import KnnConfig, refine
from sqsegv3_ros.inference.model_file import load_model
from sqsegv3_ros.inference.range_image import ProjectionConfig, normalize
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.inference.stages import STAGES

MARGIN = 1e-4  # below this difference of the two best classes rounding decides


def random_points(count: int = 3000, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, 4)) * [15, 15, 1, 0.2]).astype(np.float32)


@pytest.fixture(scope="module")
def segmenter(small_model: Path) -> Segmenter:
    return Segmenter(small_model, backend="torch", precision="fp32")


BACKENDS = ["torch", pytest.param("openvino", marks=needs_openvino)]


@pytest.mark.slow
@needs_shared
def test_official_weights_give_the_official_labels_from_the_scan_file_on(tmp_path: Path) -> None:
    """OpenVINO gives the official softmax by test_backends.py, and the official labels of trained weights below."""
    model = import_official(GOLDEN / "official_21", tmp_path / "official.pt")
    segmenter = Segmenter(model, backend="torch", device="cpu", precision="fp32")
    points = read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin")
    golden = np.load(GOLDEN / "official_21_scan000000_64x2048.npz")
    result = segmenter.segment(points)
    clear = (golden["margin_0"] > MARGIN) & (result.image.index.numpy() >= 0)
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(result.label_image.numpy()[clear], golden["argmax_0"][clear])
    # in random weights rounding decides many pixels, and one of them can sway its neighbours' votes
    for name, knn in (("none", KnnConfig("off")), ("5_5", KnnConfig("official")), ("7_7", KnnConfig("official", 7, 7))):
        labels = refine(result.label_image, result.image, knn, 20).numpy()
        assert (labels == np.load(GOLDEN / f"knn_{name}_official21.npz")["labels"]).mean() > 0.9995, name


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("sequence", "tied"),  # tied: points of two ranges that are equal to the bit, of which the release keeps either
    [("03", 0), pytest.param("05", 2, marks=pytest.mark.long), pytest.param("07", 0, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_trained_weights_give_the_official_labels_with_and_without_knn(
    tmp_path: Path, sequence: str, tied: int, backend: str
) -> None:
    golden = np.load(GOLDEN / "ssgv3_21_mini_labels.npz")
    model = import_official(SHARED / "checkpoints/ssgv3_21_mini", tmp_path / "mini.pt")
    segmenter = Segmenter(model, backend=backend, device="cpu", precision="fp32")
    result = segmenter.segment(read_scan(DATA / f"semantic_kitti/sequences/{sequence}/velodyne/000004.bin"))
    clear = golden[f"{sequence}_000004_margin"] > MARGIN
    assert clear.mean() > 0.99
    assert (result.labels != golden[f"{sequence}_000004_none"])[clear].sum() <= tied
    for name, knn in (("5_5", KnnConfig("official")), ("7_7", KnnConfig("official", 7, 7))):
        labels = refine(result.label_image, result.image, knn, 20).numpy()
        assert (labels != golden[f"{sequence}_000004_knn_{name}"]).sum() <= (~clear).sum() + tied, name


def import_official(folder: Path, model: Path) -> Path:
    assert main(["import-official", str(folder), "--output", str(model), "--parity"]) == 0
    return model


def test_confidence_is_the_softmax_of_the_label_at_the_points_own_pixel(segmenter: Segmenter) -> None:
    points = random_points()
    result = segmenter.segment(points)
    network_input = normalize(result.image, segmenter.info.normalization)
    with torch.inference_mode():
        softmax = load_model(segmenter.model_path).network(network_input)[0].double().softmax(0)
    rows, columns = result.image.py, result.image.px
    expected = softmax[torch.from_numpy(result.labels).long(), rows, columns]
    np.testing.assert_allclose(result.confidences, expected, atol=1e-5)
    assert result.labels.dtype == np.uint8 and result.confidences.dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_average_with_the_mirrored_image_labels_a_scan_and_its_mirror_image_alike(
    small_model: Path, backend: str
) -> None:
    points = random_points()
    mirrored = points * np.float32([1, -1, 1, 1])
    settings: dict[str, Any] = {"backend": backend, "precision": "fp32", "knn": KnnConfig("off")}
    alone, averaged = Segmenter(small_model, **settings), Segmenter(small_model, average_mirrored=True, **settings)
    result, of_mirrored = averaged.segment(points, entropy=True), averaged.segment(mirrored, entropy=True)
    # a point on the border of two columns is in the other one of them in the mirrored image
    same = (result.labels == of_mirrored.labels) & (abs(result.confidences - of_mirrored.confidences) < 1e-4)
    assert same.mean() > 0.999
    assert (abs(result.entropies - of_mirrored.entropies) < 1e-4).mean() > 0.999
    one, other = alone.segment(points), alone.segment(mirrored)
    assert (one.labels == other.labels).mean() < 0.95
    agree = (one.labels == other.labels) & (one.labels == result.labels)
    mean = (one.confidences + other.confidences) / 2
    assert agree.mean() > 0.2 and np.median(abs(result.confidences - mean)[agree]) < 1e-5


def test_points_that_cannot_be_used_get_label_0_and_confidence_0_and_change_nothing_else(segmenter: Segmenter) -> None:
    points = random_points()
    spoiled = np.insert(points, [0, 500, 3000], 0, axis=0)
    spoiled[0] = math.nan
    spoiled[501, :3] = 0
    spoiled[3002, 1] = math.inf
    result, clean = segmenter.segment(spoiled), segmenter.segment(points)
    bad = [0, 501, 3002]
    assert result.labels[bad].tolist() == [0, 0, 0] and result.confidences[bad].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(np.delete(result.labels, bad), clean.labels)
    np.testing.assert_allclose(np.delete(result.confidences, bad), clean.confidences, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_no_point_and_one_point(segmenter: Segmenter, count: int) -> None:
    result = segmenter.segment(random_points(count))
    assert result.labels.shape == result.confidences.shape == (count,)


def test_arrays_and_tensors_give_the_same_and_the_input_is_left_alone(segmenter: Segmenter) -> None:
    points = random_points()
    before = points.copy()
    points.setflags(write=False)  # as the view of a message's data may be
    from_array = segmenter.segment(points)
    from_tensor = segmenter.segment(torch.from_numpy(before.copy()))
    np.testing.assert_array_equal(from_array.labels, from_tensor.labels)
    np.testing.assert_array_equal(points, before)


def test_every_stage_is_timed(segmenter: Segmenter) -> None:
    timings = segmenter.segment(random_points()).timings_ms
    assert tuple(timings) == STAGES[1:7] and all(value >= 0 for value in timings.values())


def test_a_tilted_sensor_with_its_extrinsics_sees_what_a_level_one_sees(small_model: Path) -> None:
    points = random_points()
    level = Segmenter(small_model, backend="torch").segment(points).labels
    # the sensor is rolled by 10 and pitched by 20 degrees: in its own frame the world is turned the other way
    roll, pitch = math.radians(10), math.radians(20)
    roll_matrix = [[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]]
    pitch_matrix = [[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]]
    to_level = np.array(pitch_matrix) @ np.array(roll_matrix)  # REP 103: roll first, about fixed axes
    tilted = points.copy()
    tilted[:, :3] = points[:, :3] @ to_level  # the transposed rotation, for row vectors
    extrinsics = Extrinsics.from_angles(10, 20, 0)
    assert (Segmenter(small_model, backend="torch").segment(tilted).labels == level).mean() < 0.9
    assert (
        Segmenter(small_model, extrinsics=extrinsics, backend="torch").segment(tilted).labels == level
    ).mean() > 0.98


def test_extrinsics_from_a_quaternion_equal_those_from_angles() -> None:
    half = math.radians(30) / 2
    by_quaternion = Extrinsics.from_quaternion(0, 0, math.sin(half), math.cos(half))
    np.testing.assert_allclose(by_quaternion.rotation, Extrinsics.from_angles(0, 0, 30).rotation, atol=1e-12)
    assert Extrinsics.from_angles(0, 0, 0).is_level and not by_quaternion.is_level


def test_another_image_size_and_field_of_view_run_with_the_same_model(small_model: Path) -> None:
    projection = ProjectionConfig(height=32, width=128, fov_up_deg=10, fov_down_deg=-30)
    result = Segmenter(small_model, projection=projection).segment(random_points())
    assert result.label_image.shape == (32, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "auto, cuda, cpu"),
        ({"sha256": "0" * 64}, "expected 0000"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_scan(small_model: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Segmenter(small_model, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_cuda_where_there_is_none_is_refused(small_model: Path) -> None:
    with pytest.raises(UserError, match=r"CUDA devices: 0.*auto"):
        Segmenter(small_model, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_gives_nearly_the_labels_of_the_cpu(small_model: Path, segmenter: Segmenter, precision: str) -> None:
    points = random_points()
    on_gpu = Segmenter(small_model, device="cuda", precision=precision)
    on_gpu.warm_up()
    assert (on_gpu.segment(points).labels == segmenter.segment(points).labels).mean() > 0.95


@pytest.mark.cuda
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_cuda_averages_with_the_mirrored_image_as_the_cpu_does(small_model: Path, cuda_graph: bool) -> None:
    points = random_points()
    on_gpu = Segmenter(small_model, device="cuda", precision="fp32", cuda_graph=cuda_graph, average_mirrored=True)
    on_cpu = Segmenter(small_model, device="cpu", precision="fp32", average_mirrored=True)
    assert (on_gpu.segment(points).labels == on_cpu.segment(points).labels).mean() > 0.95


def test_a_loaded_model_file_serves_as_well_as_its_path(small_model: Path, segmenter: Segmenter) -> None:
    loaded = Segmenter(load_model(small_model), backend="torch", precision="fp32")
    np.testing.assert_array_equal(loaded.segment(random_points()).labels, segmenter.segment(random_points()).labels)
