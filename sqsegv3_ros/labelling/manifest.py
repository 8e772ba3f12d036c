# SPDX-License-Identifier: Apache-2.0
"""The manifest of a labelling run: the outcome of every job, from which a later run resumes.

JSON lines in the output folder, one file per shard. The first line holds the settings, a line with `outputs` what a run
is about to write, and every other line a `Record`. Only the driver writes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.labelling.plan import Job
from sqsegv3_ros.labelling.remote import fetch_file, is_remote, join, list_files, upload_file
from sqsegv3_ros.labelling.workspace import Workspace

FORMAT = "sqsegv3-labelling"
FORMAT_VERSION = 1
DONE, FAILED, QUARANTINED = "done", "failed", "quarantined"
PREFIX = "manifest"
SYNC_PERIOD_S = 1.0
UPLOAD_PERIOD_S = 60.0


@dataclass(frozen=True)
class Record:
    """The outcome of a job.

    Attributes:
        name: Name of the output, below the output folder.
        input: Path or URL of the input.
        size: Bytes of the input.
        status: 'done', 'failed' (the next run tries again) or 'quarantined' (it does not).
        reason: Kind of the failure, to count by; empty if done.
        error: The failure, or the first skipped cloud's, in full.
        sha256: Digest of the input, see `remote.digest`.
        clouds: Labelled clouds.
        skipped_clouds: Clouds that could not be labelled and are missing in the output.
        points: Points of the labelled clouds.
        class_counts: Points by class name, without absent classes.
        mean_confidence: Mean over all usable points; None without any.
        warning: First input warning.
        seconds: Time that the job took, with transfers.
        host: Machine that did it.
        attempts: Workers that have tried, this one included.
        finished: Date and time, UTC.
    """

    name: str
    input: str
    size: int
    status: str
    reason: str = ""
    error: str = ""
    sha256: str = ""
    clouds: int = 0
    skipped_clouds: int = 0
    points: int = 0
    class_counts: dict[str, int] = field(default_factory=dict)
    mean_confidence: float | None = None
    warning: str = ""
    seconds: float = 0.0
    host: str = ""
    attempts: int = 1
    finished: str = ""


@dataclass(frozen=True)
class Content:
    """A manifest that was read: settings, the last record of every job, and the outputs, below the output folder."""

    settings: Mapping[str, Any]
    records: Mapping[str, Record]
    outputs: frozenset[str]


def read_manifest(path: Path) -> Content:
    """Read a manifest. A last line that was cut off by a crash is ignored.

    Raises:
        UserError: The file cannot be read or is not a manifest.
    """
    records: dict[str, Record] = {}
    outputs: set[str] = set()
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
            if header["format"] != FORMAT or header["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {header['format']} {header['format_version']}")
            for number, line in enumerate(file, 2):  # noqa: B007  # for the message
                if not line.endswith("\n"):
                    continue
                entry = json.loads(line)
                if "outputs" in entry:
                    outputs.update(entry["outputs"])
                else:
                    record = Record(**entry)
                    records[record.name] = record
    except OSError as error:
        raise UserError(f"cannot read manifest {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}, line {number or 1}: not a manifest of `sqsegv3 label` ({FORMAT} {FORMAT_VERSION}): {error}"
        ) from error
    return Content(header["settings"], records, frozenset(outputs))


class Manifest:
    """The manifest of a run: read it, then write to it in a `with` block.

    Args:
        output: Output folder, a path or URL.
        shard: Such as '1/4'; empty for a run without shards.
        settings: All that determines the labels.
        fresh: Forget earlier records of this shard.
        workspace: Where the local copy of a remote manifest is kept.

    Raises:
        UserError: The file cannot be written, or another run is writing it.
    """

    def __init__(
        self, output: str, shard: str, settings: Mapping[str, Any], workspace: Workspace, *, fresh: bool = False
    ) -> None:
        name = f"{PREFIX}{'-' if shard else ''}{shard.replace('/', '-of-')}.jsonl"
        self.location = join(output, name)
        self._output = output
        self._folder = workspace.folder / "manifests" if is_remote(output) else Path(output)
        self._url = self.location if is_remote(output) else None
        self._path = self._folder / name
        self._settings, self._fresh = json.loads(json.dumps(settings)), fresh
        self._header = {"format": FORMAT, "format_version": FORMAT_VERSION, "shard": shard, "settings": settings}
        self.records: dict[str, Record] = {}
        self._outputs: set[str] = set()
        self._made: list[Path] = []
        self._synced_at = self._uploaded_at = time.monotonic()

    def read(self) -> None:
        """Read the records of all shards, as a later run may divide the work differently.

        Raises:
            UserError: The folder holds labels of other settings, or a manifest cannot be read.
        """
        if self._url is not None:
            _fetch_manifests(self._url.rpartition("/")[0], self._folder)
        for path in sorted(self._folder.glob(f"{PREFIX}*.jsonl")):
            is_own = path == self._path
            if is_own and (self._fresh or not _length_of_whole_lines(path)):
                continue
            content = read_manifest(path)
            if content.settings == self._settings:
                if not self._fresh:
                    self.records.update(content.records)
                    self._outputs.update(content.outputs)
            elif any(record.status == DONE for record in content.records.values()):
                differences = "; ".join(_differences(content.settings, self._settings))
                raise UserError(
                    f"{path} was written with other settings ({differences}): labels would be mixed. Use the same "
                    "settings or another --output"
                )
            else:
                self._fresh = self._fresh or is_own

    def __enter__(self) -> Manifest:
        try:
            self._open()
        except OSError as error:
            raise UserError(f"cannot write manifest {self._path}: {error.strerror or error}") from error
        self._file.truncate(0 if self._fresh else _length_of_whole_lines(self._path))
        if self._file.seek(0, os.SEEK_END) == 0:
            self._write(self._header)
        self._upload()  # an output that cannot be written is found before anything is labelled
        return self

    def _open(self) -> None:
        """Open and lock the file, again if a run that ended in the meantime has removed it."""
        while True:
            folders = (self._folder, *self._folder.parents)
            self._made += [folder for folder in folders if not folder.exists() and folder not in self._made]
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._file = self._path.open("a+b")
            except FileNotFoundError:
                if self._folder.exists():
                    raise
                continue
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise UserError(f"another run is writing {self._path}; label another shard, or wait for it") from error
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                    return
            self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:  # locked until it is closed
            self._sync()
            if error is not None and self._url is None:
                self._remove_if_unused()
        with suppress(UserError) if error else nullcontext():  # the first error says more
            self._upload()

    def _remove_if_unused(self) -> None:
        """Remove the file and the folders made for it if they hold nothing else that a later run would use."""
        failed = all(record.status == FAILED for record in self.records.values())
        with suppress(OSError):  # another shard may use the folder by now
            if self._made and failed and list(self._folder.iterdir()) == [self._path]:
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()

    def unlisted_outputs(self, jobs: Iterable[Job]) -> list[str]:
        """Select the outputs on this machine that no run so far was about to write, below the output folder."""
        local = (path for job in jobs for path in job.outputs() if not is_remote(path))
        return [name for path in local if (name := os.path.relpath(path, self._output)) not in self._outputs]

    def list_outputs(self, jobs: Iterable[Job]) -> None:
        """Append the outputs of jobs, before the first is written: a run that was killed may leave some unrecorded.

        Raises:
            UserError: The manifest cannot be written.
        """
        outputs = self.unlisted_outputs(jobs)
        if outputs:
            self._outputs.update(outputs)
            self._write({"outputs": outputs})

    def remaining(self, jobs: Iterable[Job], *, retry_quarantined: bool = False) -> list[Job]:
        """Select the jobs that are not done or whose input or output is not what was recorded.

        Args:
            jobs: All jobs.
            retry_quarantined: Also those that were quarantined.
        """
        return [job for job in jobs if not self._is_finished(job, retry_quarantined)]

    def _is_finished(self, job: Job, retry_quarantined: bool) -> bool:
        record = self.records.get(job.name)
        if record is None or record.size != job.size or record.status == FAILED:
            return False
        if record.status == QUARANTINED:
            return not retry_quarantined
        if record.skipped_clouds and not job.is_bag:  # a skipped scan has no output
            return True
        return all(is_remote(path) or Path(path).exists() for path in job.outputs())

    def add(self, record: Record) -> None:
        """Append a record. A crash of the process loses none, a power failure those of the last second.

        Raises:
            UserError: The manifest cannot be written.
        """
        self.records[record.name] = record
        self._write(asdict(record))

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced_at > SYNC_PERIOD_S:
                self._sync()
        except OSError as error:
            raise UserError(f"cannot write manifest {self._path}: {error.strerror or error}") from error
        if time.monotonic() - self._uploaded_at > UPLOAD_PERIOD_S:
            self._upload()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def _upload(self) -> None:
        if self._url is not None:
            upload_file(self._path, self._url)
            self._uploaded_at = time.monotonic()


def _fetch_manifests(url: str, folder: Path) -> None:
    for name in list_files(url):
        if name.startswith(PREFIX) and name.endswith(".jsonl") and "/" not in name:
            fetch_file(join(url, name), folder / name)


def _length_of_whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    length = path.stat().st_size
    with path.open("rb") as file:
        while length:
            start = max(0, length - 65536)
            file.seek(start)
            end = file.read(length - start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            length = start
    return 0


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, by their dotted names."""
    found = []
    for key in sorted({*before, *now}):
        old, new = ("not set" if side.get(key) is None else side[key] for side in (before, now))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: was {old}, now {new}")
    return found
