# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 label --ray ADDRESS` without a cluster at the address: one line, within seconds."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray: pip install 'sqsegv3_ros[cluster]'")

from archives import call

from sqsegv3_ros.labelling import ray_driver


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_named_with_what_to_do(
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], free_port: int, scheme: str
) -> None:
    (tmp_path / "scan.bin").write_bytes(bytes(160))
    address = f"{scheme}127.0.0.1:{free_port}"
    begin = time.monotonic()
    arguments = ("label", tmp_path / "scan.bin", "--model", small_model, "--output", tmp_path / "out")
    assert call(*arguments, "--ray", address) == 2
    assert time.monotonic() - begin < 30  # Ray itself tries for 90 s
    assert capfd.readouterr().err.strip().splitlines()[-1] == (
        f"sqsegv3 label: no Ray cluster at {address} (TCP connection, 5 s: Connection refused): start it there with "
        "`ray start --head`, or pass the address that it printed"
    )
    assert not list((tmp_path / "out").rglob("*.label"))


@pytest.mark.parametrize("address", ["head", "head:ray", ":6379", ""])
def test_an_address_without_host_or_port_is_refused(
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    (tmp_path / "scan.bin").write_bytes(bytes(160))
    arguments = ("label", tmp_path / "scan.bin", "--model", small_model, "--output", tmp_path / "out")
    assert call(*arguments, "--ray", address) == 2
    assert f"--ray must be HOST:PORT, such as head:6379, or auto, found '{address}'" in capfd.readouterr().err


def test_auto_means_the_address_in_the_environment(
    small_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    (tmp_path / "scan.bin").write_bytes(bytes(160))
    arguments = ("label", tmp_path / "scan.bin", "--model", small_model, "--output", tmp_path / "out")
    assert call(*arguments, "--ray", "auto") == 2
    assert f"no Ray cluster at 127.0.0.1:{free_port}" in capfd.readouterr().err


def test_a_host_that_does_not_answer_is_given_up(
    small_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_driver, "PROBE_S", 0.2)
    (tmp_path / "scan.bin").write_bytes(bytes(160))
    arguments = ("label", tmp_path / "scan.bin", "--model", small_model, "--output", tmp_path / "out")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        host, port = server.getsockname()
        waiting = [socket.socket() for _ in range(3)]  # more than the backlog: the next connection gets no answer
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((host, port))
        assert call(*arguments, "--ray", f"{host}:{port}") == 2
        assert f"no Ray cluster at {host}:{port} (TCP connection, 0.2 s: timed out)" in capfd.readouterr().err
        for one in waiting:
            one.close()
