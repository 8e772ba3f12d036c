# SPDX-License-Identifier: Apache-2.0
"""An archive on a cluster that loses half of its nodes, with bad bags: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
pytest.importorskip("ray", reason="needs ray: pip install 'sqsegv3_ros[cluster]'")
pytest.importorskip("embreex", reason="needs embreex: pip install 'sqsegv3_ros[simulate]'")

from archives import BAD_CLOUD, all_records, broken_scans, call, fragile_model, messages_of, records, truncate
from ray_clusters import cluster, killer, meanwhile
from recording import record, scans

from sqsegv3_ros.simulation.dataset import SimulationSettings, simulate_sweeps
from sqsegv3_ros.simulation.simulated_bag import simulated_bag

BAGS, BAD = 200, ("cut", "killer", "odd")


def make_archive(root: Path) -> Path:
    """Simulated bags of 1 to 40 clouds; one truncated, one with a cloud without z, one long one to kill workers at."""
    generator = np.random.default_rng(0)
    sweeps = list(simulate_sweeps(SimulationSettings(10, "vlp16", seed=3), range(10)))
    lengths = np.clip(generator.geometric(0.25, BAGS - len(BAD)), 1, 40)
    names = [f"day{number % 7}/drive{number:03d}" for number in range(len(lengths))]
    (root / "day0").mkdir(parents=True)
    for name, length in zip([*names, "cut", "killer"], [*lengths, 5, 80], strict=True):
        with simulated_bag(root / name, 10.0) as write:
            for number in range(length):
                write(sweeps[generator.integers(len(sweeps))], number)
    truncate(root / "cut")
    found = scans(3, 5000)
    record(root / "odd", "mcap", {"/lidar": [found[0], found[1][BAD_CLOUD], found[2]]})
    return root


def remove_nodes(started: Any, manifest: Path, after: tuple[int, ...]) -> Callable[[], bool]:
    """An action that removes a node each time the manifest has reached a number of lines."""
    doomed = list(started.worker_nodes)
    pending = list(after)

    def remove() -> bool:
        lines = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
        if pending and lines >= pending[0]:
            pending.pop(0)
            started.remove_node(doomed.pop(), allow_graceful=False)
        return not pending

    return remove


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_good_bag_is_labelled_once_whatever_happens_to_bags_workers_and_nodes(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, loop, out = make_archive(tmp_path / "archive"), tmp_path / "loop", tmp_path / "ray"
    arguments = ("label", archive, "--model", small_model, "--threads", 1, "--on-error", "quarantine")
    assert call(*arguments, "--output", loop) == 0
    manifest = out / "manifest.jsonl"
    with cluster(nodes=4, cpus_per_node=1) as started:
        on_ray = (*arguments, "--output", out, "--ray", started.address, "--num-actors", 4)
        with (
            meanwhile(killer("killer", times=3)),
            meanwhile(remove_nodes(started, manifest, after=(30, 90)), period_s=0.1),
        ):
            assert call(*on_ray) == 0
        assert len(started.worker_nodes) == 1
        assert "worker died; retrying" in capsys.readouterr().err
        before = manifest.read_bytes()
        assert call(*on_ray) == 0
        assert f"nothing to label ({BAGS} inputs finished before)" in capsys.readouterr().out
        assert manifest.read_bytes() == before

    names = [line["name"] for line in all_records(manifest)]
    assert len(names) == BAGS and set(Counter(names).values()) == {1}
    settings, found = records(manifest)
    expected_settings, expected = records(loop / "manifest.jsonl")
    assert settings == expected_settings
    bad = {name: (r["status"], r["reason"]) for name, r in found.items() if r["status"] != "done"}
    assert bad == {
        "cut": ("quarantined", "input cannot be read"),
        "odd": ("quarantined", "cloud cannot be labelled"),
        "killer": ("quarantined", "worker died"),
    }
    assert found["killer"]["attempts"] == 3
    assert any(r["attempts"] > 1 for name, r in found.items() if name not in BAD)  # the removed nodes' bags
    for name in set(found) - set(BAD):
        for key in ("sha256", "clouds", "points", "class_counts", "mean_confidence"):
            assert found[name][key] == expected[name][key], (name, key)
        assert messages_of(out / name) == messages_of(loop / name), name
    assert not [name for name in BAD if (out / name).exists()]

    assert call("label", "--summary", manifest, "--json", tmp_path / "summary.json") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["done"], summary["not_labelled"]) == (BAGS - len(BAD), len(BAD))
    assert summary["clouds"] == sum(r["clouds"] for name, r in expected.items() if name not in BAD)


@pytest.mark.long
def test_a_worker_whose_inference_fails_is_replaced_and_its_bag_quarantined_after_three_workers(
    small_model: Path, tmp_path: Path
) -> None:
    """So that an actor with a broken GPU does not set one bag after another aside."""
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    record(archive / "broken", "mcap", {"/lidar": broken_scans(scans(5, 500))})
    record(archive / "good", "mcap", {"/lidar": scans(1, 500)})
    model = fragile_model(small_model, tmp_path / "fragile.pt")
    options = ("--backend", "torch", "--on-error", "quarantine", "--num-actors", 1)
    assert call("label", archive, "--model", model, "--output", out, *options, "--ray") == 0
    found = records(out / "manifest.jsonl")[1]
    assert (found["good"]["status"], found["good"]["attempts"]) == ("done", 1)
    assert (found["broken"]["status"], found["broken"]["attempts"]) == ("quarantined", 3)
    assert found["broken"]["reason"] == "inference failed" and "shape" in found["broken"]["error"]
