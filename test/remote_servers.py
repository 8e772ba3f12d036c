# SPDX-License-Identifier: Apache-2.0
"""Storage servers on loopback: S3 by moto, SFTP by asyncssh."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, PASSWORD, BUCKET = "robot", "secret", "fleet"


@dataclass
class Server(ABC):
    """A storage server: its root as a URL, the options of fsspec, and its content as the server itself sees it.

    Attributes:
        damages_writes: Whether the server changes a byte of what it is sent, if it can.
    """

    url: str
    protocol: str
    options: dict[str, Any]
    damages_writes: bool = False

    @abstractmethod
    def put(self, folder: Path) -> None:
        """Store all files below a folder."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Content by path below the root."""


class S3(Server):
    client: Any

    def put(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(Bucket=BUCKET, Key=str(path.relative_to(folder)), Body=path.read_bytes())

    def files(self) -> dict[str, bytes]:
        keys = [entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
        return {key: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


class Sftp(Server):
    root: Path

    def put(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = self.root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def files(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@contextmanager
def s3_server() -> Iterator[S3]:
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    found = S3(f"s3://{BUCKET}", "s3", {"endpoint_url": endpoint, "key": USER, "secret": PASSWORD})
    found.client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=USER, aws_secret_access_key=PASSWORD, region_name="us-east-1"
    )
    found.client.create_bucket(Bucket=BUCKET)
    try:
        yield found
    finally:
        server.stop()


@contextmanager
def sftp_server(root: Path) -> Iterator[Sftp]:
    import asyncssh

    class Login(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

    class Files(asyncssh.SFTPServer):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, chroot=str(root).encode())

        def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
            if found.damages_writes:
                data = bytes([data[0] ^ 1]) + data[1:]
            return super().write(file_obj, offset, data)

    async def listen() -> Any:
        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.listen("127.0.0.1", 0, server_factory=Login, server_host_keys=[key], sftp_factory=Files)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
    url = f"sftp://127.0.0.1:{server.get_port()}"
    found = Sftp(url, "sftp", {"username": USER, "password": PASSWORD, "known_hosts": None})
    found.root = root
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
