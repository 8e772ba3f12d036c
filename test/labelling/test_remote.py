# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label` from and to S3 and SFTP, with servers on loopback."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'sqsegv3_ros[bags]'")
pytest.importorskip("s3fs", reason="needs s3fs: pip install 'sqsegv3_ros[remote]'")
pytest.importorskip("sshfs", reason="needs sshfs: pip install 'sqsegv3_ros[remote]'")
pytest.importorskip("moto", reason="needs moto: pip install -r requirements/test.txt")
pytest.importorskip("flask_cors", reason="needs flask-cors: pip install -r requirements/test.txt")

from archives import call, messages_of, records, truncate
from recording import record, scans
from remote_servers import Server, Sftp, s3_server, sftp_server

from sqsegv3_ros.data.semantic_kitti import read_labels, write_scan
from sqsegv3_ros.labelling.workspace import Workspace

FOUND = scans(2, 1000)
QUICK = ("--backend", "torch", "--threads", 1)


@pytest.fixture(scope="module", params=["s3", "sftp"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import fsspec.config

    opened = s3_server() if request.param == "s3" else sftp_server(tmp_path_factory.mktemp("sftp"))
    with opened as found, pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, found.protocol, found.options)
        yield found


@pytest.fixture(scope="module")
def archive(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder bag, a bag that is one file, a truncated one, and a SemanticKITTI data set, also on the server."""
    root = tmp_path_factory.mktemp("local")
    (root / "bags" / "monday").mkdir(parents=True)
    record(root / "bags" / "monday" / "a", "sqlite3", {"/lidar": FOUND})
    record(root / "b", "mcap", {"/lidar": FOUND[:1]})
    (root / "b" / "b.mcap").rename(root / "bags" / "b.mcap")
    truncate(record(root / "bags" / "cut", "mcap", {"/lidar": FOUND}))
    points = np.stack([FOUND[0][name] for name in ("x", "y", "z", "intensity")], 1)
    for number in range(2):
        write_scan(root / "kitti" / "sequences" / "00" / "velodyne" / f"{number:06d}.bin", points)
    server.put(root)
    return root


def test_bags_are_labelled_from_and_to_a_server_as_on_a_disk(
    server: Server, archive: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", small_model, *QUICK, "--on-error", "quarantine", "--cache", tmp_path / "cache")
    assert call("label", archive / "bags", "--output", tmp_path / "local", *options) == 0
    remote = ("label", f"{server.url}/bags", "--output", f"{server.url}/labelled", *options)
    assert call(*remote) == 0
    files = {name: data for name, data in server.files().items() if name.startswith("labelled/")}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    outputs = sorted(str(p.relative_to(tmp_path / "local")) for p in tmp_path.glob("local/**/*") if p.is_file())
    assert sorted(name.removeprefix("labelled/") for name in files) == outputs
    for name in ("monday/a", "b.mcap"):
        assert messages_of(tmp_path / "labelled" / name) == messages_of(tmp_path / "local" / name)

    settings, found = records(tmp_path / "labelled" / "manifest.jsonl")
    expected_settings, expected = records(tmp_path / "local" / "manifest.jsonl")
    assert settings == expected_settings
    for name, record_ in expected.items():
        for key in ("status", "reason", "size", "sha256", "clouds", "class_counts", "mean_confidence"):
            assert found[name][key] == record_[key], (name, key)
    assert found["cut"]["status"] == "quarantined" and found["monday/a"]["input"] == f"{server.url}/bags/monday/a"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]

    capsys.readouterr()
    assert call(*remote) == 0
    assert "nothing to label (3 inputs finished before)" in capsys.readouterr().out
    assert call(*remote, "--knn", "off") == 2
    assert "labels would be mixed" in capsys.readouterr().err
    assert {name: data for name, data in server.files().items() if name.startswith("labelled/")} == files
    manifest = f"{server.url}/labelled/manifest.jsonl"
    assert call("label", "--summary", manifest, "--json", tmp_path / "summary.json") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["done"] == 2


def test_a_root_and_a_single_bag_are_fetched_to_a_local_output(
    server: Server, archive: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", small_model, *QUICK, "--cache", tmp_path / "cache")
    inputs = (f"{server.url}/kitti", f"{server.url}/bags/b.mcap")
    assert call("label", *inputs, "--output", tmp_path / "out", *options) == 0
    assert call("label", archive / "kitti", "--output", tmp_path / "local", *options) == 0
    for number in range(2):
        name = f"sequences/00/predictions/{number:06d}.label"
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / name), read_labels(tmp_path / "local" / name))
    assert (tmp_path / "out" / "b.mcap").is_file()
    capsys.readouterr()
    for arguments, words in (
        ((f"{server.url}/nothing",), "does not exist or is empty"),
        ((f"{server.url}/kitti", "--sequences", "7"), "no sequence '07' (sequences: 00)"),
    ):
        assert call("label", *arguments, "--output", tmp_path / "x", *options) == 2
        assert words in capsys.readouterr().err


def test_an_input_that_could_not_be_fetched_fails_and_is_tried_again_by_the_next_run(
    server: Server, archive: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", small_model, *QUICK, "--cache", tmp_path / "cache", "--on-error", "quarantine")
    arguments = ("label", f"{server.url}/bags/b.mcap", "--output", tmp_path / "out", *options)
    assert call(*arguments, "--cache-gb", 1e-6) == 1
    said = capsys.readouterr().err
    assert "1 input failed" in said
    found = records(tmp_path / "out" / "manifest.jsonl")[1]["b.mcap"]
    assert (found["status"], found["reason"]) == ("failed", "input cannot be fetched")
    assert "raise --cache-gb" in found["error"]
    assert call(*arguments) == 0
    assert records(tmp_path / "out" / "manifest.jsonl")[1]["b.mcap"]["status"] == "done"


def test_an_output_that_the_server_damages_ends_the_run(
    server: Server, archive: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(server, Sftp):
        pytest.skip("moto's server cannot be told to damage what it stores")
    server.damages_writes = True
    try:
        options = ("--model", small_model, *QUICK, "--on-error", "quarantine", "--cache", tmp_path / "cache")
        assert call("label", archive / "bags" / "b.mcap", "--output", f"{server.url}/damaged", *options) == 2
    finally:
        server.damages_writes = False
    assert "cannot be written: the uploaded file differs from the local one" in capsys.readouterr().err
    assert not [name for name in server.files() if name.startswith("damaged/")]


def test_a_storage_without_its_package_or_server_is_named(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec.config

    monkeypatch.setitem(fsspec.config.conf, "sftp", {"username": "x", "password": "x", "known_hosts": None})
    for url, words in (
        ("sftp://127.0.0.1:1/archive", "cannot be listed"),
        ("gcs://fleet/archive", "pip install"),
        ("abacus://fleet/archive", "abacus"),
    ):
        assert call("label", url, "--model", small_model, "--output", tmp_path / "out", *QUICK) == 2
        said = capsys.readouterr().err
        assert url in said and words in said and "Traceback" not in said


def test_workspaces_of_killed_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    dead, alive = tmp_path / "work-dead", tmp_path / "work-alive"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "lock").touch()
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workspace = Workspace(tmp_path, 1)
        assert workspace.folder.is_dir() and alive.is_dir() and not dead.exists()
        workspace.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "work-alive"]
