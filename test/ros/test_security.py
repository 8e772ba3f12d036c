# SPDX-License-Identifier: Apache-2.0
"""Untrusted model files, and the SROS2 policy."""

from __future__ import annotations

import inspect
import io
import json
import os
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT
from programs import depends_on_discovery, running, running_node, wait_until

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference import model_file
from sqsegv3_ros.inference.model_file import load_model, read_info

pytestmark = depends_on_discovery

POLICY = ROOT / "config" / "sros2_policy.xml"


def policy(group: str, access: str) -> set[str]:
    tree = ElementTree.parse(POLICY)
    profiles = tree.findall("enclaves/enclave/profiles/profile")
    assert [profile.attrib for profile in profiles] == [{"ns": "/", "node": "sqsegv3"}]
    return {
        (entry.text or "").strip()
        for found in profiles[0].findall(group)
        if found.attrib == {access: "ALLOW"}
        for entry in found
    }


def test_the_policy_permits_exactly_what_the_running_node_uses(small_model: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")
    from live import Client

    client = Client()
    try:
        with running_node(model=small_model, use_sim_time=True) as node:
            node.wait_for_log("labelling clouds of")
            graph, name = client.node, ("sqsegv3", "/")
            wait_until(lambda: graph.get_subscriber_names_and_types_by_node(*name), 20)

            def names(kind: str) -> set[str]:
                return {n for n, _ in getattr(graph, f"get_{kind}_names_and_types_by_node")(*name)}

            # not used here: /tf needs base_frame, label_info needs vision_msgs
            wait_until(
                lambda: policy("topics", "subscribe") == names("subscriber") | {"/tf", "/tf_static"},
                20,
                lambda: names("subscriber"),
            )
            optional = {"/sqsegv3/output/label_info"}
            wait_until(lambda: policy("topics", "publish") - names("publisher") <= optional, 20)
            assert names("publisher") <= policy("topics", "publish")
            younger = {"/sqsegv3/get_type_description"}  # not in Humble
            wait_until(lambda: policy("services", "reply") - names("service") <= younger, 20)
            assert names("service") <= policy("services", "reply")
            assert names("client") == set() == policy("services", "request")
    finally:
        client.close()


def rewritten(source: Path, target: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a model file with entries replaced, selected by the end of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new_content = next((data for name, data in change.items() if entry.filename.endswith(name)), None)
            new.writestr(entry.filename, old.read(entry) if new_content is None else new_content)
    return target


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = small_model.stat().st_size
    bomb = rewritten(small_model, tmp_path / "bomb.pt", {"/data/0": bytes(20 * size)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < size
    monkeypatch.setattr(model_file, "MAX_FILE_BYTES", 2 * size)
    for use in (read_info, load_model):
        with pytest.raises(UserError, match=r"bomb.pt cannot be used: it unpacks to \d+ bytes"):
            use(bomb)


def test_malformed_metadata_is_refused(small_model: Path, tmp_path: Path) -> None:
    for number, text in enumerate((b"[" * 500_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"1" * 5000, b"null")):
        file = rewritten(small_model, tmp_path / f"{number}.pt", {"sqsegv3.json": text})
        with pytest.raises(UserError, match=f"{number}.pt"):
            read_info(file)


def test_pipes_folders_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", tmp_path, Path("/dev/zero")):
        for use in (read_info, load_model):
            with pytest.raises(UserError, match="is not a file"):
                use(path)


def damaged(whole: bytes, seed: int) -> bytes:
    """The file truncated, or with some bytes changed, mostly in the structure of the archive."""
    rng = np.random.default_rng(seed)
    data = bytearray(whole)
    if seed % 5 == 0:
        return bytes(data[: int(rng.integers(len(data)))])
    ends = [0, len(data) - 4000] if seed % 2 else [int(rng.integers(len(data) - 4000))]
    for begin in ends:
        for at in rng.integers(begin, begin + 4000, 4):
            data[at] = int(rng.integers(256))
    return bytes(data)


def test_a_damaged_file_is_refused_with_a_message_or_has_complete_metadata(small_model: Path, tmp_path: Path) -> None:
    whole, file = small_model.read_bytes(), tmp_path / "damaged.pt"
    refused = 0
    for seed in range(200):
        file.write_bytes(damaged(whole, seed))
        try:
            json.dumps(read_info(file).to_dict())
        except UserError as error:
            assert "damaged.pt" in str(error)
            refused += 1
    assert refused > 80


LOAD = """
import sys
from sqsegv3_ros.inference.model_file import load_model
from sqsegv3_ros.errors import UserError
whole, file = open(sys.argv[1], "rb").read(), sys.argv[2]
for seed in range(int(sys.argv[3])):
    open(file, "wb").write(damaged(whole, seed))
    try:
        load_model(file)
    except UserError:
        print("refused", seed, flush=True)
    else:
        print("loaded", seed, flush=True)
"""


@pytest.mark.long
def test_no_damaged_file_crashes_the_loader(small_model: Path, tmp_path: Path) -> None:
    program = f"import numpy as np\n{inspect.getsource(damaged)}\n{LOAD}"
    with running("-c", program, small_model, tmp_path / "damaged.pt", 300) as loader:
        assert loader.exit_code(280) == 0, loader.log[-2000:]
    refused, loaded = (sum(line.startswith(word) for line in loader.lines) for word in ("refused", "loaded"))
    assert refused > 100 and refused + loaded == 300, loader.log[-2000:]


def test_a_pickle_that_is_not_torchscript_is_not_unpickled(tmp_path: Path) -> None:
    """The code in a pickled checkpoint must not run."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harmed",))

    file = tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps(Evil()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    for content in (pickle.dumps(Evil()), buffer.getvalue()):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"evil\.pt"):
            load_model(file)
    assert not (tmp_path / "harmed").exists()
