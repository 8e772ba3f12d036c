# SPDX-License-Identifier: Apache-2.0
"""The manifest of `sqsegv3 label`: its content, resuming, bad inputs, and the summary."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")

from archives import BAD_CLOUD, PERSON, all_records, broken_scans, call, clouds_of, fragile_model, records, truncate
from recording import record, scans

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_scan
from sqsegv3_ros.labelling.manifest import DONE, Manifest, Record, read_manifest
from sqsegv3_ros.labelling.workspace import Workspace
from sqsegv3_ros.pointcloud2 import read_field

FOUND = scans(2, 2000)
QUICK = ("--backend", "torch", "--threads", 1)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Bags: good (2 clouds), cut (truncated), odd (its second of 3 clouds has no z)."""
    root = tmp_path / "archive"
    root.mkdir()
    record(root / "good", "mcap", {"/lidar": FOUND})
    truncate(record(root / "cut", "mcap", {"/lidar": FOUND}))
    record(root / "odd", "sqlite3", {"/lidar": [FOUND[0], FOUND[1][BAD_CLOUD], FOUND[1]]})
    return root


@pytest.fixture
def label(small_model: Path, archive: Path, tmp_path: Path) -> Any:
    def run(*options: object) -> int:
        return call("label", archive, "--model", small_model, "--output", tmp_path / "out", *QUICK, *options)

    return run


def test_a_record_holds_what_the_output_and_the_input_hold(label: Any, archive: Path, tmp_path: Path) -> None:
    assert label("--on-error", "quarantine") == 0
    settings, found = records(tmp_path / "out" / "manifest.jsonl")
    clouds = clouds_of(tmp_path / "out" / "good")
    labels = np.concatenate([read_field(cloud, "label") for cloud in clouds])
    confidences = np.concatenate([read_field(cloud, "confidence") for cloud in clouds])
    counts = Counter(SEMANTIC_KITTI.names[label] for label in labels)
    good = found["good"]
    assert good["status"] == "done" and good["clouds"] == 2 and good["points"] == len(labels)
    assert good["class_counts"] == dict(counts)
    assert good["mean_confidence"] == pytest.approx(confidences.mean(dtype=np.float64), abs=1e-5)
    files = sorted((archive / "good").iterdir())
    listing = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    assert good["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert good["size"] == sum(f.stat().st_size for f in files)
    assert settings["model"]["name"] == "small-random" and settings["runtime"]["device"] == "cpu"


def test_quarantine_goes_on_with_the_other_bags_and_skip_cloud_with_the_other_clouds(
    label: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert label("--on-error", "quarantine") == 0
    assert "2 inputs not labelled completely" in capsys.readouterr().err
    _, found = records(out / "manifest.jsonl")
    reasons = {name: (r["status"], r["reason"]) for name, r in found.items()}
    assert reasons["cut"] == ("quarantined", "input cannot be read")
    assert reasons["odd"] == ("quarantined", "cloud cannot be labelled")
    assert "cloud 2 of /lidar" in found["odd"]["error"]
    assert sorted(p.name for p in out.iterdir()) == ["good", "manifest.jsonl"]

    assert label("--on-error", "skip-cloud") == 0  # quarantined inputs are not tried again by themselves
    assert "nothing to label (3 inputs finished before)" in capsys.readouterr().out
    assert label("--on-error", "skip-cloud", "--retry-quarantined") == 0
    _, found = records(out / "manifest.jsonl")
    odd = found["odd"]
    assert (odd["status"], odd["clouds"], odd["skipped_clouds"]) == ("done", 2, 1)
    assert "cloud 2 of /lidar" in odd["error"] and found["cut"]["status"] == "quarantined"
    kept = clouds_of(out / "odd")
    assert [len(read_field(cloud, "label")) for cloud in kept] == [2000, 2000]
    for cloud, scan in zip(kept, FOUND, strict=True):
        np.testing.assert_array_equal(read_field(cloud, "x"), scan["x"])
    assert label("--on-error", "skip-cloud") == 0
    assert "nothing to label" in capsys.readouterr().out


def test_a_bag_without_a_usable_cloud_is_quarantined_even_if_clouds_may_be_skipped(
    small_model: Path, tmp_path: Path
) -> None:
    bag = record(tmp_path / "none", "mcap", {"/lidar": [FOUND[0][BAD_CLOUD]]})
    out = tmp_path / "out"
    assert call("label", bag, "--model", small_model, "--output", out, *QUICK, "--on-error", "skip-cloud") == 0
    assert records(out / "manifest.jsonl")[1]["none"]["status"] == "quarantined"
    assert [p.name for p in out.iterdir()] == ["manifest.jsonl"]


def test_a_bag_whose_inference_fails_does_not_end_the_run_and_is_tried_again(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    record(archive / "broken", "mcap", {"/lidar": broken_scans(scans(1, 500))})
    record(archive / "good", "mcap", {"/lidar": scans(1, 500)})
    model = fragile_model(small_model, tmp_path / "fragile.pt")
    arguments = ("label", archive, "--model", model, "--output", out, *QUICK)
    for _ in range(2):
        assert call(*arguments, "--on-error", "skip-cloud") == 1
        assert "1 input failed" in capsys.readouterr().err
        found = records(out / "manifest.jsonl")[1]
        assert (found["broken"]["status"], found["broken"]["reason"]) == ("failed", "inference failed")
        assert found["good"]["status"] == "done" and not (out / "broken").exists()
    assert call(*arguments) == 1
    assert "bag" in capsys.readouterr().err


def test_a_tree_is_labelled_in_pieces_and_a_bad_scan_can_be_skipped(small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kitti" / "sequences" / "00" / "velodyne"
    points = np.stack([FOUND[0][name] for name in ("x", "y", "z", "intensity")], 1)
    for number in range(3):
        write_scan(folder / f"{number:06d}.bin", points)
    (folder / "000001.bin").write_bytes(b"no scan")
    out = tmp_path / "out"
    arguments = ("label", tmp_path / "kitti", "--model", small_model, "--output", out, *QUICK)
    assert call(*arguments, "--on-error", "skip-cloud") == 0
    (name, piece), *others = records(out / "manifest.jsonl")[1].items()
    assert not others and name == "sequences/00/predictions/000000-000002"
    assert (piece["status"], piece["clouds"], piece["skipped_clouds"]) == ("done", 2, 1)
    assert sorted(p.name for p in out.glob("sequences/00/predictions/*")) == ["000000.label", "000002.label"]
    assert call(*arguments, "--on-error", "skip-cloud") == 0
    assert len(all_records(out / "manifest.jsonl")) == 1


def test_a_run_that_was_killed_goes_on_where_it_stopped(
    label: Any, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after `odd` was written, while its record was; the draft of another output is left over."""
    out, manifest = tmp_path / "out", tmp_path / "out" / "manifest.jsonl"
    options = ("--on-error", "skip-cloud")
    assert label(*options) == 0
    header, *lines = manifest.read_text().splitlines(keepends=True)
    lines.sort(key=lambda line: '"name": "odd"' in line)
    manifest.write_text(header + "".join(lines[:-1]) + lines[-1][:40])
    (out / ".odd.abcd_123" / "new").mkdir(parents=True)
    (out / ".odd.abcd_1234.abcd_123").mkdir()  # the draft of another bag
    written = (out / "good" / "good.mcap").stat().st_mtime_ns
    capsys.readouterr()
    assert label(*options) == 0
    assert "labelled 2 scans (2 inputs finished before)" in capsys.readouterr().out
    assert (out / "good" / "good.mcap").stat().st_mtime_ns == written
    names = [line["name"] for line in all_records(manifest)]
    assert sorted(names) == ["cut", "good", "odd"]
    assert sorted(p.name for p in out.iterdir()) == [".odd.abcd_1234.abcd_123", "good", "manifest.jsonl", "odd"]


def write_scans(folder: Path, *names: str) -> None:
    for name in names:
        write_scan(folder / f"{name}.bin", np.stack([FOUND[0][field] for field in ("x", "y", "z", "intensity")], 1))


def test_a_file_that_no_run_was_about_to_write_is_not_overwritten(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_scans(tmp_path, "a", "b")
    arguments = ("--model", small_model, "--output", out, *QUICK)
    assert call("label", tmp_path / "a.bin", *arguments) == 0
    (out / "b.label").write_bytes(b"corrected by hand")
    for inputs in ([tmp_path / "b.bin"], [tmp_path / "a.bin", tmp_path / "b.bin"]):
        assert call("label", *inputs, *arguments) == 2
        assert "b.label already exists (1 existing output) and no manifest lists it" in capsys.readouterr().err
    assert (out / "b.label").read_bytes() == b"corrected by hand"
    assert call("label", tmp_path / "b.bin", *arguments, "--force") == 0
    assert (out / "b.label").stat().st_size == 4 * 2000


def test_labels_of_a_killed_run_and_of_a_data_set_that_has_grown_are_written_again(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    velodyne = tmp_path / "kitti" / "sequences" / "00" / "velodyne"
    write_scans(velodyne, "000000", "000001")
    out = tmp_path / "out"
    arguments = ("label", tmp_path / "kitti", "--model", small_model, "--output", out, *QUICK)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", interrupt)  # between the labels and their record
        assert call(*arguments) == 130
    assert not all_records(out / "manifest.jsonl") and len(list(out.rglob("*.label"))) == 2
    assert call(*arguments) == 0
    write_scans(velodyne, "000002")
    assert call(*arguments) == 0
    pieces = [record["name"].rpartition("/")[2] for record in all_records(out / "manifest.jsonl")]
    assert pieces == ["000000-000001", "000000-000002"]


def test_only_drafts_are_removed(label: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    notes, draft = out / ".good.original" / "notes.txt", out / ".good.abcd_123" / "new" / "good"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    draft.mkdir(parents=True)
    assert label("--on-error", "quarantine") == 0
    assert notes.read_text() == "mine" and not draft.parent.parent.exists()


def test_a_failed_run_leaves_no_folder_but_what_other_runs_use(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, out = tmp_path / "cut.bin", tmp_path / "a" / "b" / "c"
    scan.write_bytes(b"no scan")
    arguments = ("label", scan, "--model", small_model, "--output", out, *QUICK)
    assert call(*arguments) == 2
    assert not (tmp_path / "a").exists()

    def iterdir_then_another_shard_starts(folder: Path) -> Any:
        found = list(original(folder))
        if folder == out:
            (out / "manifest-2-of-2.jsonl").write_text("")
        return iter(found)

    original = Path.iterdir
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", iterdir_then_another_shard_starts)
        assert call(*arguments) == 2
    assert "cut.bin: 7 bytes is not a whole number of points" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["manifest-2-of-2.jsonl"]


def test_a_run_that_waited_for_one_that_failed_writes_a_manifest_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run opens the file before the first removes it, and locks it afterwards."""
    workspace, out = Workspace(tmp_path / "cache", 0), tmp_path / "a" / "out"
    first, second = (Manifest(str(out), "", {}, workspace) for _ in range(2))
    lock, waited = fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        if not waited:
            waited.append(file)
            first.__exit__(ValueError, ValueError("failed"), None)
            assert not (tmp_path / "a").exists()
        lock(file, operation)

    first.__enter__()
    monkeypatch.setattr(fcntl, "flock", flock)
    with second:
        second.add(Record("good", "good.bin", 1, DONE))
    assert list(read_manifest(out / "manifest.jsonl").records) == ["good"]


def test_a_changed_input_and_a_lost_output_are_labelled_again(
    label: Any, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("--on-error", "skip-cloud") == 0
    record(archive / "new", "mcap", {"/lidar": FOUND[:1]}).rename(tmp_path / "new")
    for old in (archive / "cut").iterdir():
        old.unlink()
    for file in (tmp_path / "new").iterdir():
        file.rename(archive / "cut" / file.name.replace("new", "new"))
    for file in (tmp_path / "out" / "good").iterdir():
        file.unlink()
    (tmp_path / "out" / "good").rmdir()
    capsys.readouterr()
    assert label("--on-error", "skip-cloud") == 0
    assert "labelled 3 scans (1 input finished before)" in capsys.readouterr().out


def test_other_settings_are_refused_once_labels_exist(
    label: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("--on-error", "quarantine", "--shard", "1/2", "--knn", "off") == 0  # the bag cut: nothing was labelled
    assert label("--on-error", "quarantine", "--shard", "2/2") == 0
    before = (tmp_path / "out" / "manifest-2-of-2.jsonl").read_text()
    for options, words in (
        (("--threads", 2), "runtime.threads: was 1, now 2"),
        (("--knn", "off"), "parameters.knn.mode: was not set, now off"),
        (("--output-topic", "/x"), "bags.output_topic: was not set, now /x"),
    ):
        capsys.readouterr()
        assert label("--on-error", "quarantine", *options) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "out" / "manifest-2-of-2.jsonl").read_text() == before
    assert label("--on-error", "quarantine", "--shard", "2/2", "--knn", "off", "--force") == 0
    assert records(tmp_path / "out" / "manifest-2-of-2.jsonl")[0]["parameters"] == {"knn.mode": "off"}


def test_two_runs_do_not_write_one_manifest(label: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label("--on-error", "quarantine") == 0
    with (tmp_path / "out" / "manifest.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert label("--on-error", "quarantine", "--force") == 2
    assert "another run is writing" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_ends_the_run_and_blames_no_bag(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "archive" / "monday").mkdir(parents=True)
    record(tmp_path / "archive" / "monday" / "a", "mcap", {"/lidar": FOUND})
    out = tmp_path / "out"
    out.mkdir()
    (out / "monday").write_text("a file, not a folder")
    arguments = (
        "label",
        tmp_path / "archive",
        "--model",
        small_model,
        "--output",
        out,
        *QUICK,
        "--on-error",
        "quarantine",
    )
    assert call(*arguments) == 2
    assert "cannot write" in capsys.readouterr().err
    assert records(out / "manifest.jsonl")[1] == {}


def test_a_missing_package_ends_the_run_and_blames_no_input(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "laspy", None)  # cannot be imported
    (tmp_path / "scan.las").write_bytes(b"LASF")
    out = tmp_path / "out"
    arguments = ("label", tmp_path / "scan.las", "--model", small_model, "--output", out, *QUICK)
    assert call(*arguments, "--on-error", "quarantine") == 2
    assert "laspy" in capsys.readouterr().err
    assert not out.exists()


def test_the_summary_counts_failures_classes_and_persons_over_all_shards(
    label: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in ("1/2", "2/2"):
        assert label("--on-error", "quarantine", "--shard", shard) == 0
    out = tmp_path / "out"
    manifests = sorted(out.glob("manifest-*.jsonl"))
    capsys.readouterr()
    assert call("label", "--summary", *manifests, "--json", tmp_path / "summary.json") == 0
    table = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["inputs"], summary["done"], summary["not_labelled"]) == (3, 1, 2)
    assert {f["reason"]: f["count"] for f in summary["failures"]} == {
        "input cannot be read": 1,
        "cloud cannot be labelled": 1,
    }
    labels = np.concatenate([read_field(cloud, "label") for cloud in clouds_of(out / "good")])
    assert summary["class_shares"]["car"] == pytest.approx((labels == SEMANTIC_KITTI.index("car")).mean())
    persons = (labels == PERSON).sum() / 2
    assert [p["person_points_per_cloud"] for p in summary["most_persons"]] == [pytest.approx(persons, abs=0.05)]
    assert "3: 1 done, 2 not labelled" in table and "1 x input cannot be read" in table and str(tmp_path) in table
    assert call("label", "--summary", tmp_path / "summary.json") == 2
    assert "not a manifest of `sqsegv3 label`" in capsys.readouterr().err
