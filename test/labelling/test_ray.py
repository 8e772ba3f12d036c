# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label --ray` on a cluster of one node on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
pytest.importorskip("ray", reason="needs ray: pip install 'sqsegv3_ros[cluster]'")

from archives import all_records, call, messages_of, records, truncate
from ray_clusters import cluster, killer, meanwhile
from recording import record, scans

from sqsegv3_ros.errors import OperationError
from sqsegv3_ros.inference.settings import DEFAULTS
from sqsegv3_ros.labelling.plan import BagOptions, plan_jobs
from sqsegv3_ros.labelling.ray_driver import Cluster, label_on_ray
from sqsegv3_ros.labelling.run_settings import resolve
from sqsegv3_ros.pointcloud2 import CloudSettings

QUICK = ("--backend", "torch", "--threads", 1, "--on-error", "quarantine")
ACTOR = ("--num-actors", 1)  # test_ray_archive.py, which takes longer, has several


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(nodes=1, cpus_per_node=1) as started:
        yield started.address


def test_ray_labels_as_the_loop_does(
    small_model: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "ray"
    (archive / "monday").mkdir(parents=True)
    record(archive / "0", "mcap", {"/lidar": scans(1, 500)})
    record(archive / "monday" / "long", "sqlite3", {"/lidar": scans(9, 500)})
    truncate(record(archive / "cut", "mcap", {"/lidar": scans(2, 500)}))
    arguments = ("label", archive, "--model", small_model, *QUICK)
    assert call(*arguments, "--output", tmp_path / "loop") == 0
    assert call(*arguments, "--output", out, "--ray", address, *ACTOR) == 0
    settings, found = records(out / "manifest.jsonl")
    expected_settings, expected = records(tmp_path / "loop" / "manifest.jsonl")
    assert settings == expected_settings
    assert found.keys() == {"0", "monday/long", "cut"}
    for name in ("class_counts", "mean_confidence", "sha256", "clouds", "status", "reason", "attempts"):
        assert {n: r[name] for n, r in found.items()} == {n: r[name] for n, r in expected.items()}, name
    for name in ("0", "monday/long"):
        assert messages_of(out / name) == messages_of(tmp_path / "loop" / name)
    names = [line["name"] for line in all_records(out / "manifest.jsonl")]
    assert names == ["monday/long", "cut", "0"]  # the longest first

    assert call(*arguments, "--output", out, "--ray", "nowhere:1") == 0  # nothing to do: Ray is not even asked
    assert "nothing to label" in capsys.readouterr().out
    assert not list(out.rglob(".*"))


def test_the_bag_of_a_dead_worker_is_taken_again(
    small_model: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "archive" / "long", "sqlite3", {"/lidar": scans(40, 500)})
    arguments = ("label", tmp_path / "archive", "--model", small_model, *QUICK)
    with meanwhile(killer("long", times=1)):
        assert call(*arguments, "--output", tmp_path / "out", "--ray", address, *ACTOR) == 0
    assert "long: worker died; retrying" in capsys.readouterr().err
    _, found = records(tmp_path / "out" / "manifest.jsonl")
    assert [(r["status"], r["clouds"], r["attempts"]) for r in found.values()] == [("done", 40, 2)]


def test_a_worker_that_cannot_meet_the_settings_is_refused_with_the_reason(
    small_model: Path, address: str, tmp_path: Path
) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(1, 500)})
    jobs = plan_jobs([str(bag)], str(tmp_path / "out"), None, BagOptions())
    parameters = {**DEFAULTS, "model": str(small_model), "device": "cpu", "threads": 1}
    settings, _ = resolve(parameters, BagOptions(), CloudSettings(), "quarantine")
    settings = replace(settings, versions={**settings.versions, "torch": "1.0"})
    said: list[str] = []
    refused = label_on_ray(jobs, settings, Cluster(address, 1, 1.0, 0.0), tmp_path / "cache", 1, said.append)
    with pytest.raises(OperationError, match=r"no worker is left: .*torch .* is installed, the driver has 1\.0"):
        list(refused)
    assert [line for line in said if line.startswith("worker refused")]
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_or_too_small_is_named(
    small_model: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = record(tmp_path / "drive", "mcap", {"/lidar": scans(1, 500)})
    arguments = ("label", bag, "--model", small_model, "--output", tmp_path / "out", *QUICK)
    for options, words in (
        (("--ray", address, "--cpus-per-actor", 8), "no node has room for an actor with 8 CPUs and 0 GPUs"),
        (("--ray", address, "--gpus-per-actor", 0.5, "--backend", "auto"), "0.5 GPUs"),
        (("--ray", address, "--device", "cuda"), "--gpus-per-actor"),
        (("--ray", address, "--num-actors", 0), "--num-actors"),
    ):
        assert call(*arguments, *options) == 2
        assert words in capsys.readouterr().err
