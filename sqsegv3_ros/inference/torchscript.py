# SPDX-License-Identifier: Apache-2.0
"""TorchScript, the exported form of the network: the one place that traces, writes and reads it.

torch deprecates TorchScript, and warns at every call on Python 3.14. The warnings are not shown, because a user can do
nothing about them; docs/distributions.md says what happens when TorchScript is gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.jit import ScriptModule


@contextmanager
def no_deprecation_warnings() -> Iterator[None]:
    """Hide torch's deprecation warnings about TorchScript."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit", category=category)
        yield


@contextmanager
def as_recorded() -> Iterator[None]:
    """Run networks operator by operator: on a CPU, TorchScript's optimiser costs more than it saves.

    It finds little to fuse, takes seconds and memory in the first runs, and minutes with a torch that was built with
    LLVM, such as Debian's and Ubuntu's.
    """
    import torch

    with torch.jit.optimized_execution(False):
        yield


def trace(network: nn.Module, image: Tensor) -> ScriptModule:
    """Record what a network computes for an image."""
    import torch

    with no_deprecation_warnings(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the exported form is compared after the trace
        return cast("ScriptModule", torch.jit.trace(network, image, check_trace=False))


def save(network: ScriptModule, file: BytesIO, extra: Mapping[str, bytes] | None = None) -> None:
    """Write a network, with further files by name."""
    import torch

    with no_deprecation_warnings():
        torch.jit.save(network, file, _extra_files=dict(extra or {}))


def load(file: BinaryIO) -> ScriptModule:
    """Read a network onto the CPU. Raises RuntimeError or ValueError if the file holds none."""
    import torch

    source: str | BinaryIO = file
    if not isinstance(file, BytesIO):
        file.flush()
        source = f"/proc/self/fd/{file.fileno()}"  # torch reads a path tensor by tensor, a file object thrice at once
    with no_deprecation_warnings():
        return cast("ScriptModule", torch.jit.load(source, map_location="cpu"))
