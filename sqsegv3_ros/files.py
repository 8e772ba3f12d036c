# SPDX-License-Identifier: Apache-2.0
"""Files: locations of the package's own, YAML, atomic writing, and progress over many files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqsegv3_ros.errors import UserError, missing_package

T = TypeVar("T")

# read once: it can only be read by setting it, which other threads that create files would notice
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def expand_home(path: str | Path) -> Path:
    """Expand a leading ~, as no shell does it in ROS parameters and in configuration files.

    Raises:
        UserError: It names a user that does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


def read_yaml(path: str | Path, kind: str) -> Any:
    """Read a YAML file.

    Args:
        path: The file; a leading ~ is expanded.
        kind: What it is, for messages, such as 'label map'.

    Raises:
        UserError: PyYAML is not installed, or the file cannot be read or is not valid YAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_package("PyYAML", f"reading a {kind}", "tools") from error
    try:
        return yaml.safe_load(expand_home(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {kind} {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{kind} {path} is not valid YAML: {error}") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file beside it, then renamed.

    Args:
        path: File to write; missing folders above it are made.
        data: Its content.

    Raises:
        UserError: The file cannot be written; the temporary file is gone then.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut after the renaming may leave an empty file
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Yield a draft path for a file or folder, and move the draft to `path` if the block succeeds.

    The draft has the name of `path` and is in a hidden folder beside it, which is deleted at the end. An existing
    `path` stays in place until the draft is complete, and is restored if the draft cannot be moved there.

    Args:
        path: File or folder to write; missing parent folders are created.

    Yields:
        The path to write to. It does not exist yet.

    Raises:
        UserError: The folder cannot be written, or the draft cannot be moved to `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        draft, previous = workspace / "new" / path.name, workspace / "previous"
        draft.parent.mkdir()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield draft
        try:
            _replace(path, draft, previous)
        except OSError as error:
            rescue = f"; its previous content is {previous}" if _is_stranded(path, previous) else ""
            raise UserError(f"cannot write {path}: {error.strerror or error}{rescue}") from error
    finally:
        if not _is_stranded(path, previous):
            shutil.rmtree(workspace, ignore_errors=True)


def _is_stranded(path: Path, previous: Path) -> bool:
    return previous.exists() and not path.exists()


def _replace(path: Path, draft: Path, previous: Path) -> None:
    if path.exists() and (path.is_dir() or draft.is_dir()):  # only a file can be replaced in one step, by a file
        path.replace(previous)
        try:
            draft.replace(path)
        except BaseException:
            previous.replace(path)
            raise
    else:
        draft.replace(path)


def refuse_existing(path: str | Path, force: bool) -> None:
    """Raise UserError if an output already exists and may not be overwritten."""
    if Path(path).exists() and not force:
        raise UserError(f"{path} already exists; choose another output, or pass --force to overwrite it")


def progress(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal's standard error if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(items)
    return iter(tqdm(items, total=total, unit=unit, disable=None, dynamic_ncols=True))


def share_folders() -> list[Path]:
    """Candidate folders for the package's launch, config and models folders, the most likely first."""
    package = Path(__file__).resolve().parent
    folders = [package.parent]  # the source tree, also behind an editable or symlinked installation
    for prefix in [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), *_prefixes_of(package), sys.prefix]:
        if prefix:
            folders.append(Path(prefix) / "share" / "sqsegv3_ros")
    return [folder for folder in folders if (folder / "package.xml").is_file()]


def _prefixes_of(package: Path) -> list[str]:
    # .../lib/python3.11/site-packages/sqsegv3_ros lies four levels below its prefix (Debian: local/lib one more)
    return [str(parent) for parent in package.parents[2:6]]
