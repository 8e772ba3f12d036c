# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, GOLDEN, needs_shared

from sqsegv3_ros import process
from sqsegv3_ros.benchmark import measure, reference, stages
from sqsegv3_ros.benchmark.child import Child, child_environment
from sqsegv3_ros.benchmark.networks import network_config, random_network
from sqsegv3_ros.benchmark.scene import (
    BUILDING,
    CAR,
    POLE,
    ROAD,
    SIDEWALK,
    TERRAIN,
    VEGETATION,
    synthetic_scan,
    synthetic_scene,
)
from sqsegv3_ros.benchmark.stages import COMPARED, OtherWork
from sqsegv3_ros.benchmark.work import count
from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import read_scan, write_labels, write_scan
from sqsegv3_ros.errors import OperationError, UserError
from sqsegv3_ros.inference.knn import KnnConfig, refine
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig, normalize, project

STAGES = ("decode", "project", "network", "classify", "knn", "encode", "input_checks", "total")
POINTS = 12_000


RUNTIMES = ("reference", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """Exit code, JSON and folder of one whole run of the command."""
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'sqsegv3_ros[onnx]' openvino")
    folder = tmp_path_factory.mktemp("benchmark")
    points, labels = synthetic_scene(POINTS)
    for name in ("velodyne", "labels"):
        (folder / "00" / name).mkdir(parents=True)
    scan = folder / "00/velodyne/000000.bin"
    write_scan(scan, points)
    write_labels(folder / "00/labels/000000.label", SEMANTIC_KITTI.to_raw(labels))
    arguments = ["--network", "1/8", "--width", "128", "--threads", "1", "--repeat", "1", "--precision", "fp32"]
    arguments += ["--backend", "torch", "--compare", ",".join(RUNTIMES), "--scan", str(scan)]
    code = main(["benchmark", *arguments, "--json", str(folder / "b.json"), "--plot", str(folder / "b.png")])
    return code, json.loads((folder / "b.json").read_text()), folder


def test_the_json_has_the_documented_keys_and_consistent_numbers(compared: Any) -> None:
    code, result, _ = compared
    assert code == 0
    for stage in STAGES:
        times = result["stages"][stage]
        assert 0 <= times["min_ms"] <= times["median_ms"] <= times["p95_ms"], stage
    parts = sum(result["stages"][stage]["median_ms"] for stage in STAGES[:-1])
    assert 0.5 * result["stages"]["total"]["median_ms"] < parts <= 1.01 * result["stages"]["total"]["median_ms"]
    assert result["cpu_seconds"] > 0 and result["other_cores"] >= 0
    assert 100 < result["peak_rss_mb"] < 4000 and 0.1 < result["rss_ratio"] < 3
    # doubled, because a multiply-accumulate counts as two operations
    assert result["gflops"] == pytest.approx(2e3 * result["gmac"] / result["stages"]["network"]["median_ms"])
    assert set(result["speedup"]) == {"project", "network", "knn", "total"}
    assert all(value > 0 for value in result["speedup"].values())
    assert (result["backend"], result["device"], result["precision"]) == ("torch", "cpu", "fp32")
    assert result["threads"] == 1 and (result["height"], result["width"]) == (64, 128)
    assert result["points"] == POINTS and result["bytes"]["cloud_in"] == POINTS * 16
    assert result["startup"]["first_cloud_s"] > 0


def test_every_runtime_is_measured_on_the_same_weights(compared: Any) -> None:
    variants = compared[1]["variants"]
    assert set(variants) == {"ours", *RUNTIMES}
    for name, found in variants.items():
        assert found["network_ms"] > 0 and 30 < found["peak_rss_mb"] < 4000, name
        assert found["precision"] == "fp32", name
        # other weights or another image would leave a few percent; rounding may change single pixels
        assert found["labels_equal"] > 0.999, name
    assert variants["ours"]["network_ms"] == compared[1]["stages"]["network"]["median_ms"]
    assert variants["reference"]["network_ms"] == compared[1]["reference"]["stages"]["network"]["median_ms"]


def test_the_reference_gives_the_same_labels(compared: Any) -> None:
    equal = compared[1]["equal"]
    assert equal["exact"] and equal["all"]
    assert equal["pixels_differ"] == equal["knn_labels_differ"] == equal["classes_differ"] == 0
    assert equal["classes_within_margin_differ"] < 10


def test_knn_is_also_compared_on_labels_as_a_good_network_gives_them(compared: Any) -> None:
    knn = compared[1]["knn_on_true_labels"]
    assert set(knn) == {"5/5", "7/7"}
    for figures in knn.values():
        assert figures["labels_differ"] == 0
        assert figures["speedup"] == pytest.approx(figures["reference_median_ms"] / figures["median_ms"])


def test_the_plot_is_a_picture(compared: Any) -> None:
    assert (compared[2] / "b.png").read_bytes().startswith(b"\x89PNG")


def test_work_is_counted_as_in_the_releases_table() -> None:
    # GMAC of the released networks with all heads; heads 2 to 5 see W/8, W/8, W/4, W/2
    table = {("21", 512): 49.122, ("21", 2048): 196.486, ("53", 512): 130.508}
    for (name, width), gmac in table.items():
        all_heads = count(network_config(name), 64, width)
        assert all_heads.macs == pytest.approx(1e9 * gmac, rel=2e-5)
        others = 64 * width * 20 * (256 / 8 + 256 / 8 + 128 / 4 + 64 / 2)
        assert count(network_config(name), 64, width, heads=1).macs == all_heads.macs - others


def test_bytes_are_the_inputs_outputs_and_weights_of_the_convolutions() -> None:
    config = network_config("1/8")
    network, moved = random_network(config), []
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.register_forward_hook(
                lambda layer, inputs, output: moved.append(inputs[0].nbytes + output.nbytes + layer.weight.nbytes)
            )
    with torch.no_grad():
        network(torch.zeros(1, 5, 8, 64))
    assert count(config, 8, 64).bytes == sum(moved)


def test_the_synthetic_scan_is_always_the_same_and_has_surfaces_edges_and_occluded_points() -> None:
    scan = synthetic_scan(30_000)
    assert scan.shape == (30_000, 4) and scan.dtype == np.float32 and np.isfinite(scan).all()
    np.testing.assert_array_equal(scan, synthetic_scan(30_000))
    image = project(torch.from_numpy(synthetic_scan()), ProjectionConfig())
    filled = image.mask.float().mean().item()
    assert 0.6 < filled < 0.9  # real scans: 0.76
    jumps = (image.range[:, 1:] - image.range[:, :-1]).abs()[image.mask[:, 1:] & image.mask[:, :-1]] > 1
    assert 0.005 < jumps.float().mean() < 0.2
    points, labels = synthetic_scene(30_000)
    assert (points[labels == ROAD, 2] < -1.5).all() and (np.abs(points[labels == BUILDING, 1]) > 7).all()
    assert {ROAD, SIDEWALK, TERRAIN, BUILDING, CAR, POLE, VEGETATION} == set(labels.tolist())
    with pytest.raises(UserError, match="at least 1 point"):
        synthetic_scan(0)


@needs_shared
def test_the_reference_projects_as_the_release() -> None:
    golden = np.load(GOLDEN / "projection_000001.npz")
    image = reference.project(
        read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000001.bin"), ProjectionConfig(official_mask=True)
    )
    for name, values in (("px", image.px), ("py", image.py), ("proj_range", image.range), ("proj_xyz", image.xyz)):
        # the release's numpy rounds the angles differently with AVX-512: two points of this scan
        assert (values != golden[name]).sum() <= (values.size // 10_000 if name == "proj_xyz" else 12), name
    network_input = reference.normalize(image, Normalization(), official_mask=True)[0]
    first = golden["crop_cols"][0]
    crop = network_input[:, :, first : first + golden["norm21_crop"].shape[2]]
    np.testing.assert_allclose(crop, golden["norm21_crop"], atol=2e-5, rtol=1e-6)


@needs_shared
@pytest.mark.parametrize(("name", "size"), [("knn_5_5_gt", 5), ("knn_7_7_official21", 7)])
def test_the_reference_votes_as_the_release(name: str, size: int) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    image = reference.project(
        read_scan(DATA / "semantic_kitti/sequences/00/velodyne/000000.bin"), ProjectionConfig(official_mask=True)
    )
    label_image = torch.from_numpy(golden["proj_argmax"].astype(np.int64))
    labels = reference.vote(label_image, image, KnnConfig("official", size, size), 20)
    np.testing.assert_array_equal(labels, golden["labels"])


def agreement(folder: Path, *, exact: bool, **counts: int) -> dict[str, Any]:
    """The comparison of a 2 x 2 image: one pixel is empty, one within the margin; both have another class."""
    expected, clear = np.array([[1, 2], [3, 4]]), np.array([[True, False], [True, True]])
    np.savez(folder / "expected.npz", label_image=expected, clear=clear)
    np.savez(folder / "ours.npz", label_image=np.array([[1, 9], [3, 9]]), labels=np.array([1, 2]))
    np.savez(folder / "reference.npz", label_image=expected, labels=np.array([1, 3]))
    ends = {"reference": {"pixels_differ": 0, "knn_labels_differ": 0, "knn_ties_differ": 0, **counts}}
    variants: dict[str, dict[str, Any]] = {"ours": {}, "reference": {}}
    filled = np.array([[True, True], [True, False]])
    return {**measure._agreement(folder, filled, variants, ends, exact=exact), "variants": variants}


def test_labels_are_compared_in_pixels_with_a_point_and_outside_the_margin(tmp_path: Path) -> None:
    found = agreement(tmp_path, exact=True)
    assert (found["classes_differ"], found["classes_within_margin_differ"], found["labels_differ"]) == (0, 1, 1)
    assert found["variants"]["ours"]["labels_equal"] == pytest.approx(2 / 3)
    assert found["variants"]["reference"]["labels_equal"] == 1 and found["all"]


@pytest.mark.parametrize(
    ("name", "agree"), [("knn_ties_differ", True), ("knn_labels_differ", False), ("pixels_differ", False)]
)
@pytest.mark.parametrize("exact", [True, False])
def test_only_knn_ties_may_differ_from_the_reference(tmp_path: Path, exact: bool, name: str, agree: bool) -> None:
    found = agreement(tmp_path, exact=exact, **{name: 1})
    assert found["all"] is agree and found[name] == 1


def test_classes_may_differ_from_the_reference_in_low_precision_only(tmp_path: Path) -> None:
    agreement(tmp_path, exact=True)
    filled = np.ones((2, 2), bool)  # now the pixel counts whose class differs by more than the margin
    for exact in (True, False):
        found = measure._agreement(tmp_path, filled, {"ours": {}}, {}, exact=exact)
        assert found["classes_differ"] == 1 and found["all"] is not exact


def test_a_point_is_tied_if_one_of_two_equally_far_neighbours_votes() -> None:
    config = KnnConfig("official", 3, 3, cutoff_m=0.0)
    ranges = np.array([[20, 30, 40], [50, 10, 60], [70, 80, 90]], np.float32)  # all at other distances of the middle

    def middle(ranges: np.ndarray) -> reference.ReferenceImage:
        one, empty = np.array([1], np.int32), np.zeros((3, 3), np.float32)
        return reference.ReferenceImage(ranges, empty, empty, empty, one, one, ranges[1, 1:2])

    assert not reference.tied(middle(ranges), config)
    ranges[0, 2] = 20  # a corner as the nearest one, and both nearer than the third
    assert not reference.tied(middle(ranges), config)  # the middle and these two vote
    ranges[0, 1], ranges[0, 0] = 15, 20  # the middle, 15, and one of two corners
    assert reference.tied(middle(ranges), config)
    assert not reference.tied(middle(ranges), KnnConfig("official", 3, 3, cutoff_m=0.5))  # none but the middle votes
    ranges[:] = -1  # nothing but empty pixels around it
    ranges[1, 1] = 10
    assert not reference.tied(middle(ranges), config)
    assert not reference.tied(middle(ranges), KnnConfig("official", 9, 3))


@pytest.mark.parametrize("seed", range(2))
def test_reference_and_package_agree_on_synthetic_scans_and_patches_of_labels(seed: int) -> None:
    points = synthetic_scan(20_000, seed)
    points[::7, 3] *= -1.0  # which has no power, but a value
    config = ProjectionConfig(width=512)
    image, other = project(torch.from_numpy(points), config), reference.project(points, config)
    np.testing.assert_array_equal(image.range, other.range)
    for normalization in (Normalization(), Normalization(remission_exponent=1.2)):
        expected = reference.normalize(other, normalization, False)
        np.testing.assert_allclose(normalize(image, normalization), expected, atol=1e-5)
    generator = np.random.default_rng(seed)
    labels = torch.from_numpy(generator.integers(0, 20, (16, 128)).repeat(4, 0).repeat(4, 1))
    for size in (5, 7):
        knn = KnnConfig("official", size, size)
        assert torch.equal(refine(labels, image, knn, 20), reference.vote(labels, other, knn, 20))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_the_work_of_other_processes_is_measured() -> None:
    spin = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    spinning = subprocess.Popen([sys.executable, "-c", spin])  # counts as another process: nobody waits for it inside
    try:
        with OtherWork() as others:
            time.sleep(2)
    finally:
        spinning.kill()
        spinning.wait()
    assert 0.3 < others.cores < 1.1 * (os.cpu_count() or 1)


def test_own_work_and_that_of_finished_children_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1000 200 30 9999 999 4 5 6 0 0\ncpu0 ...")
    monkeypatch.setattr(stages, "Path", lambda _: tmp_path / "stat")
    before, own = stages._others_cpu_s(), os.times()
    assert before == pytest.approx((1000 + 200 + 30 + 4 + 5 + 6) / os.sysconf("SC_CLK_TCK") - sum(own[:4]), abs=0.05)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert stages._others_cpu_s() < before - 0.25


def test_a_machine_without_a_free_core_for_every_thread_is_called_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.os, "cpu_count", lambda: 4)
    others = OtherWork()
    others.cores = 1.95
    assert others.busy(2, "cpu") is None and others.busy(1, "cpu") is None
    said = others.busy(3, "cpu")
    assert said is not None and "used 1.95 of 4 cores" in said
    assert others.busy(4, "cuda:0") is None  # the CPU only waits there
    others.cores = float("nan")
    assert others.busy(4, "cpu") is None


def test_statistics_are_of_the_runs_and_the_speedup_compares_what_both_do() -> None:
    def sample(factor: float, stages: tuple[str, ...]) -> dict[str, Any]:
        return {
            "stages": dict.fromkeys(stages, factor),
            "wall_ms": factor * len(stages),
            "cpu_s": 2e-3 * factor * len(stages),
        }

    about = dict.fromkeys((*measure._ABOUT, "torch", "startup"), "x")
    about |= {"cloud_in_bytes": 1, "cloud_out_bytes": 2, "average_mirrored": False}
    samples = {
        "ours": [sample(f, STAGES[:-1]) for f in (9.0, 10.0, 20.0)],
        "reference": [sample(f, COMPARED) for f in (39.0, 40.0, 80.0)],
        "openvino": [sample(5.0, ("network",))],
    }
    ends = {
        "ours": {"peak_rss_mb": 300.0},
        "reference": {"peak_rss_mb": 600.0},
        "openvino": {"peak_rss_mb": 200.0, "precision": "bf16"},
    }
    work = {"gmac": 0.5, "bytes": 7}
    result = measure.summarize(about, work, samples, ends)
    assert result["stages"]["knn"] == {"min_ms": 9.0, "median_ms": 10.0, "p95_ms": pytest.approx(19.0)}
    assert result["speedup"] == {"project": 4.0, "network": 4.0, "knn": 4.0, "total": 4.0}
    assert result["rss_ratio"] == 0.5 and result["gflops"] == 100.0
    assert result["cpu_per_wall"] == pytest.approx(2.0)
    found = {name: (variant["network_ms"], variant["precision"]) for name, variant in result["variants"].items()}
    assert found == {"ours": (10.0, "x"), "reference": (40.0, "fp32"), "openvino": (5.0, "bf16")}
    twice = measure.summarize(about | {"average_mirrored": True}, work, samples, ends)
    assert (twice["gmac"], twice["gflops"], twice["bytes"]["network"]) == (1.0, 200.0, 14)


def test_children_start_with_the_environment_that_was_there_before_this_packages_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(process, "_set_here", False)
    process.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in child_environment({})
    monkeypatch.setattr(process, "_set_here", False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    process.prepare()
    assert child_environment({})["OMP_WAIT_POLICY"] == "active"
    assert "OMP_WAIT_POLICY" not in child_environment({"OMP_WAIT_POLICY": ""})


def test_a_child_that_fails_says_why() -> None:
    with (
        pytest.raises(OperationError, match=r"Codec'.*no_such_argument"),
        Child("benchmark.codec.Codec", {"no_such_argument": 1}),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"model file \S+ not found"),
        Child("benchmark.variants.Pipeline", {"scan": "", "model": "/no/such.pt", "parameters": {}}),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeat", "0"], "repeat must be at least 1"),
        (["--threads", "0"], "threads must be in 1..1024"),
        (["--network", "99"], "21, 53, 3/16, 1/4"),
        (["--model", "/no/such.pt"], "model file /no/such.pt not found"),
        (["--scan", "/no/such.bin"], "/no/such.bin"),
        (["--device", "cuda", "--compare", "reference"], "--device cpu"),
        (["--average-mirrored", "--compare", "reference"], "omit --compare or --average-mirrored"),
        (["--compare", "reference,tensorrt"], "any of reference, onnxruntime, openvino, found 'tensorrt'"),
        (["--device", "cpu", "--cuda-graph"], "cuda_graph requires a CUDA device"),
        (["--load", "--plot", "a.png"], "--plot cannot be used here"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = [] if {"--network", "--model"} & set(arguments) else ["--network", "1/8"]
    assert main(["benchmark", *network, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_scan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scan(tmp_path / "empty.bin", np.zeros((0, 4), np.float32))
    assert main(["benchmark", "--network", "1/8", "--scan", str(tmp_path / "empty.bin")]) == 2
    assert "has no points" in capsys.readouterr().err


def test_a_model_file_is_measured_with_its_own_settings(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "scan.bin", synthetic_scan(5000))
    out = tmp_path / "b.json"
    arguments = ["--model", str(small_model), "--scan", str(tmp_path / "scan.bin"), "--repeat", "1"]
    assert main(["benchmark", *arguments, "--knn-k", "3", "--knn-search", "3", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["model"], result["width"], result["points"]) == ("small-random", 256, 5000)
    assert (result["knn"]["k"], result["knn"]["search"]) == (3, 3) and "speedup" not in result
    printed = capsys.readouterr().out
    assert "GMAC" in printed and "| network" in printed and "load average" in printed
