# SPDX-License-Identifier: Apache-2.0
"""Folder of an adaptation: locked by the process that works in it, and cleared only of what `sqsegv3 adapt` writes."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sqsegv3_ros.errors import UserError

LOCK_NAME = "adapt.lock"  # also tells the folder from others
RECORDING, SIMULATED, RUN = "recording", "simulated", "run"
DRAFT_SUFFIX = ".draft"
FACTS_NAME, PLAN_NAME, SETTINGS_NAME, REPORT_NAME = "recording.json", "plan.json", "train.yaml", "report.html"
_FOLDERS = (RECORDING, f"{RECORDING}{DRAFT_SUFFIX}", SIMULATED, f"{SIMULATED}{DRAFT_SUFFIX}", RUN)
_FORCED = "--force"  # what the lock file then says
_FILES = (FACTS_NAME, PLAN_NAME, SETTINGS_NAME, REPORT_NAME)


def refuse_inputs_inside(workspace: Path, inputs: Iterable[str | Path]) -> None:
    """Raise UserError if an input is in the workspace, where it could be deleted."""
    inside = next((path for path in inputs if Path(path).resolve().is_relative_to(workspace.resolve())), None)
    if inside is not None:
        raise UserError(f"{inside} is in {workspace}, where adapt keeps its own files; choose another --output")


def may_replace_model(workspace: Path) -> bool:
    """Whether a folder has an unfinished adaptation that was begun with --force."""
    lock = workspace / LOCK_NAME
    return lock.is_file() and lock.read_text() == _FORCED and not (workspace / REPORT_NAME).exists()


@contextmanager
def locked(workspace: Path, *, fresh: bool) -> Iterator[None]:
    """Create the workspace, or lock an existing one, until the block ends.

    Args:
        workspace: The folder.
        fresh: Delete an earlier adaptation in it; other files stay.

    Raises:
        UserError: The folder has other files and no adaptation, another process uses it, or it cannot be written.
    """
    try:
        lock = _lock(workspace)
    except OSError as error:
        raise UserError(f"cannot write {workspace}: {error.strerror or error}") from error
    with lock:
        if fresh:
            delete(workspace, *_FOLDERS, *_FILES)
            lock.truncate(0)
            lock.write(_FORCED)
            lock.flush()
        yield


def _lock(workspace: Path) -> IO[str]:
    path = workspace / LOCK_NAME
    if workspace.exists() and not path.exists() and any(workspace.iterdir()):
        raise UserError(f"{workspace} exists and has no adaptation: choose another --output, or move it away")
    workspace.mkdir(parents=True, exist_ok=True)
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UserError(f"another adaptation uses {workspace}: wait for it, or choose another --output") from error
    return lock


def delete(workspace: Path, *names: str) -> None:
    """Delete files and folders of a workspace. Raises UserError if one cannot be deleted."""
    for name in names:
        path = workspace / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot delete {path}: {error.strerror or error}") from error
