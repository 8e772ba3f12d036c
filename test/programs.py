"""The package's programs as child processes, what they print kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conftest import ROOT
from live import wait_until


class Program:
    """`python -m sqsegv3_ros.<module>` with arguments."""

    def __init__(self, module: str, *arguments: object) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment["PYTHONUNBUFFERED"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"sqsegv3_ros.{module}", *(str(a) for a in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
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

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None, timeout_s, lambda: self.log)
        assert text in self.log, self.log

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def result(self, timeout_s: float = 60) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code


@contextmanager
def running(module: str, *arguments: object) -> Iterator[Program]:
    program = Program(module, *arguments)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


def parameters(**values: Any) -> list[str]:
    """ROS arguments that set parameters."""
    found = ["--ros-args"]
    for name, value in values.items():
        found += ["-p", f"{name}:={value}"]
    return found
