# SPDX-License-Identifier: Apache-2.0
"""Python child processes of a test, with their output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from conftest import ROOT

# For tests that talk to nodes over DDS: on a busy machine a peer may be discovered after the message it should get.
# A second try is no cure for anything else.
depends_on_discovery = pytest.mark.flaky(reruns=1)


def wait_until(condition: Callable[[], Any], timeout_s: float, explain: Callable[[], Any] = lambda: "") -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {explain()}")
        time.sleep(0.01)


class Program:
    """A child process and its output. It leads a process group, so that its own children end with `kill`."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for_log(self, text: str, timeout_s: float = 60.0) -> None:
        wait_until(lambda: text in self.log or not self.is_running, timeout_s, lambda: self.log)
        if not self.is_running:
            self._reader.join(5)
        assert text in self.log, self.log

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self, timeout_s: float = 60.0) -> int:
        """The exit code, once the process has ended by itself."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 20.0) -> int:
        """The exit code after a signal."""
        if self.is_running:
            self.send(number)
        return self.exit_code(timeout_s)

    def end(self) -> None:
        """Ask it to end; kill it after 10 s.

        A node that is killed leaves its participant behind: until its lease ends, 20 s later, others take it for alive.
        """
        try:
            self.stop(timeout_s=10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # all of the group have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)


class PythonProcess(Program):
    """`python` with arguments, which may import the package and the modules of test/."""

    def __init__(self, *arguments: object) -> None:
        paths = [str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]
        super().__init__([sys.executable, *map(str, arguments)], {"PYTHONPATH": os.pathsep.join(filter(None, paths))})


@contextmanager
def running(*arguments: object) -> Iterator[PythonProcess]:
    """`python` with arguments; it is ended when the context is left."""
    process = PythonProcess(*arguments)
    try:
        yield process
    finally:
        process.end()


def module(name: str) -> tuple[str, str]:
    """Arguments that run a module of the package."""
    return "-m", f"sqsegv3_ros.{name}"


def parameters(**values: Any) -> list[str]:
    """ROS arguments that set parameters; a double underscore stands for a dot."""
    arguments = ["--ros-args"]
    for name, value in values.items():
        arguments += ["-p", f"{name.replace('__', '.')}:={value}"]
    return arguments


def running_node(*ros_arguments: str, **values: Any) -> Any:
    """A running `segment_node` with parameters and further ROS arguments."""
    return running(*module("ros.segment_node"), *parameters(**values), *ros_arguments)
