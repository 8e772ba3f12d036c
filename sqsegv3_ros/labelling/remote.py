# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs on remote storage (`s3://`, `sftp://`), by fsspec: listing, fetching and verified upload."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sqsegv3_ros.errors import UserError, install_command

_BLOCK_BYTES = 1 << 20


def is_remote(path: str) -> bool:
    """Whether a path is a URL of remote storage."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Join a folder, a path or URL, and a name below it."""
    if is_remote(folder):
        return f"{folder.rstrip('/')}/{name}" if name else folder.rstrip("/")
    return str(Path(folder) / name)


def list_files(url: str) -> dict[str, int]:
    """List the files below a URL, without hidden ones, which may be incomplete.

    Returns:
        Bytes by path below the URL; the path is empty if the URL is a file itself. Nothing if nothing is there.

    Raises:
        UserError: The storage cannot be reached.
    """
    with _errors_name(url, "cannot be listed"):
        storage, path = _open_storage(url)
        storage.invalidate_cache()
        if storage.isfile(path):
            return {"": int(storage.info(path)["size"])}
        found = storage.find(path, detail=True)
        path = storage._strip_protocol(path).rstrip("/")
        files = {name[len(path) :].strip("/"): int(info["size"]) for name, info in sorted(found.items())}
    return {name: size for name, size in files.items() if not any(p.startswith(".") for p in name.split("/"))}


def fetch_file(url: str, target: Path) -> None:
    """Copy a remote file to a local one, with the size checked.

    Raises:
        UserError: The file cannot be fetched.
    """
    with _errors_name(url, "cannot be fetched"):
        storage, path = _open_storage(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(path, str(target))
        expected = int(storage.info(path)["size"])
    found = target.stat().st_size
    if found != expected:
        raise UserError(f"{url} cannot be fetched: {found} of {expected} bytes arrived")


def upload_file(source: Path, url: str) -> None:
    """Copy a local file to remote storage: under a hidden name, read back, compared, then renamed.

    Raises:
        UserError: The file cannot be written, or its content differs.
    """
    folder, _, name = url.rpartition("/")
    with _errors_name(url, "cannot be written"):
        storage, path = _open_storage(url)
        _, draft = _open_storage(f"{folder}/.{name}.{uuid.uuid4().hex[:8]}")
        storage.makedirs(storage._parent(path), exist_ok=True)
        try:
            storage.put_file(str(source), draft)
            with source.open("rb") as before, storage.open(draft, "rb") as after:
                if _sha256(before) != _sha256(after):
                    raise UserError(f"{url} cannot be written: the uploaded file differs from the local one")
            storage.mv(draft, path)
        except BaseException:
            with suppress(Exception):
                storage.rm_file(draft)
            raise


def digest(files: list[Path]) -> str:
    """sha256 of a file; of several, the sha256 of what `sha256sum` prints for their names."""
    sums = []
    for path in files:
        try:
            with path.open("rb") as file:
                sums.append(_sha256(file))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(sums) == 1:
        return sums[0]
    lines = (f"{value}  {path.name}\n" for value, path in zip(sums, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _open_storage(url: str) -> tuple[Any, str]:
    import fsspec

    storage, path = fsspec.core.url_to_fs(url)
    return storage, path


def _sha256(file: IO[bytes]) -> str:
    value = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        value.update(block)
    return value.hexdigest()


@contextmanager
def _errors_name(url: str, what: str) -> Iterator[None]:
    """Attribute any error to the URL: every storage raises errors of its own."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        command = install_command("fsspec", "sqsegv3_ros[remote]")
        raise UserError(f"{url} {what}: {error}; {command}") from error
    except Exception as error:
        raise UserError(f"{url} {what}: {type(error).__name__}: {error}") from error
