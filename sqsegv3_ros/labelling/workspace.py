# SPDX-License-Identifier: Apache-2.0
"""Workspace of a process: its copies of a remote input and output, in a cache of bounded size."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from functools import cached_property
from pathlib import Path

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.labelling.plan import Job
from sqsegv3_ros.labelling.remote import fetch_file, is_remote, join, upload_file


def default_cache() -> Path:
    """Folder for copies of remote files: $XDG_CACHE_HOME/sqsegv3_ros/labelling."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqsegv3_ros" / "labelling"


class Workspace:
    """A process's own folder in the cache, for one job at a time; created when a job is remote.

    Folders of processes that were killed are removed when a new one is created.

    Args:
        cache: Folder of all workspaces of the machine.
        limit_bytes: Largest input that is fetched.
    """

    def __init__(self, cache: Path, limit_bytes: int) -> None:
        self._cache, self._limit = cache, limit_bytes

    @cached_property
    def folder(self) -> Path:
        """The folder."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with (self._cache / "lock").open("w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                for old in self._cache.glob("work-*"):
                    if _is_abandoned(old):
                        shutil.rmtree(old, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(prefix="work-", dir=self._cache))
                self._lock = (folder / "lock").open("w")  # held until the process ends
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"cannot write the cache {self._cache}: {error.strerror or error}") from error
        return folder

    def source(self, job: Job) -> Path:
        """The job's bag or folder of scans on this machine, fetched if it is remote.

        Raises:
            UserError: The input is larger than the cache, or cannot be fetched.
        """
        if not is_remote(job.source):
            return Path(job.source)
        if job.size > self._limit:
            raise UserError(
                f"{job.input} has {job.size / 1e9:.1f} GB, more than the cache holds ({self._limit / 1e9:.1f} GB); "
                "raise --cache-gb"
            )
        local = self.folder / "in" / job.source.rpartition("/")[2]
        for file in job.files or ("",):
            fetch_file(join(job.source, file), local / file)
        return local

    def target(self, job: Job) -> Path:
        """The local path of the job's output."""
        return self.folder / "out" / job.target.rpartition("/")[2] if is_remote(job.target) else Path(job.target)

    def deliver(self, job: Job) -> None:
        """Upload the job's output if its target is remote.

        Raises:
            UserError: It cannot be written.
        """
        if not is_remote(job.target):
            return
        local = self.target(job)
        files = sorted(local.rglob("*")) if local.is_dir() else [local]
        files.sort(key=lambda path: path.name == "metadata.yaml")  # last: with it the folder is a bag
        for path in files:
            if path.is_file():
                upload_file(path, job.target if path == local else join(job.target, str(path.relative_to(local))))

    def clear(self) -> None:
        """Remove the copies of the last job."""
        if "folder" in self.__dict__:
            for name in ("in", "out"):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        if "folder" in self.__dict__:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that created a workspace has ended."""
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
