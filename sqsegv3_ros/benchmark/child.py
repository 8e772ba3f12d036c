# SPDX-License-Identifier: Apache-2.0
"""Child processes that measure: one JSON command per line on stdin, one JSON answer per line on stdout.

Run as `python -m sqsegv3_ros.benchmark.child CLASS SETTINGS`: the class by its name below sqsegv3_ros, its arguments as
JSON. A command names a method and its arguments. Whatever runs in one process shares memory, threads and the state of
the C library, so each variant gets a process of its own. Each answers one command at a time, so that variants can take
turns. `Child` is the parent's side.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sqsegv3_ros import process
from sqsegv3_ros.errors import OperationError, UserError


class Child:
    """A child process with an object of one class; use it in a `with` block.

    Every method raises OperationError, with the last line of its standard error, if the child failed.
    """

    def __init__(self, kind: str, settings: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "sqsegv3_ros.benchmark.child", kind, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=child_environment(environment or {}),
        )

    def ask(self, do: str = "run", **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        if "wrong_use" in answer:
            raise UserError(answer["wrong_use"])
        return answer

    def _failure(self) -> OperationError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return OperationError(
            f"the process that measures '{self.kind}' ended ({code}): {said[-1] if said else 'silent'}"
        )

    def __enter__(self) -> Child:
        try:
            self.answer()  # ready
        except BaseException:
            self.close(1)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(10 if error is None else 1)

    def close(self, patience_s: float) -> None:
        """Close its stdin, which ends it; kill it if that takes longer than `patience_s`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(patience_s)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the `with` statements, so that no process started inside them stays behind."""
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment this process was started with, plus changes (empty: unset) and the path of this package."""
    changed = {**process.untouched_environment(), **changes}
    paths = [str(Path(__file__).resolve().parents[2]), changed.get("PYTHONPATH", "")]
    changed["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return {name: value for name, value in changed.items() if value or name not in changes}


def main(arguments: list[str]) -> int:
    """Answer commands until the input ends."""
    kind, settings = arguments[0], json.loads(arguments[1])
    out, sys.stdout = sys.stdout, sys.stderr  # a library's prints must not look like answers

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=out, flush=True)

    module, _, name = kind.rpartition(".")
    try:
        variant = getattr(importlib.import_module(f"sqsegv3_ros.{module}"), name)(**settings)
        answer({"ready": True})
        for line in sys.stdin:
            command = json.loads(line)
            answer(getattr(variant, command.pop("do"))(**command))
    except UserError as error:
        answer({"wrong_use": str(error)})
        return 2
    getattr(variant, "close", lambda: None)()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
