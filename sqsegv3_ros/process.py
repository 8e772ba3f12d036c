"""Settings of the running process that make torch on the CPU faster and smaller; nothing comes in or goes out."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1


SWITCH = "SQSEGV3_PROCESS_SETTINGS"
_SETTINGS = {"OMP_WAIT_POLICY": "passive"}
_added: set[str] = set()
_BORDER = 16_000_000


def prepare(*, training: bool = False) -> None:
    """Apply the settings of this module, before torch is imported. SQSEGV3_PROCESS_SETTINGS=0 switches them off.

    OpenMP's threads sleep between the layers instead of spinning (unless OMP_WAIT_POLICY says otherwise): on cores that
    other processes want too, spinning makes small layers several times slower. training: what is freed is kept, which
    is fastest; else large tensors are given back, which the deploy form makes few of.
    """
    if os.environ.get(SWITCH) == "0":
        return
    for name, value in _SETTINGS.items():
        if name not in os.environ:
            os.environ[name] = value
            _added.add(name)
    if training:
        keep_freed_memory()
    else:
        return_large_tensors()


def untouched_environment() -> dict[str, str]:
    """The environment as it was before `prepare`, for child processes that are to decide for themselves."""
    return {name: value for name, value in os.environ.items() if name not in _added}


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next allocation instead of handing it back to the kernel.

    Every large temporary tensor is otherwise mapped, faulted in page by page and unmapped again, which takes 30 to 40 %
    of the CPU time of this network in training and in eager inference. Call it before the first tensor is made.
    Returns whether it took effect; False, and harmless, where the C library is not glibc.
    """
    # glibc refuses a mapping threshold above half of its heap's maximum; 1 GiB is accepted on 64-bit machines
    return _mallopt(_M_MMAP_THRESHOLD, 1 << 30) and _mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def return_large_tensors() -> bool:
    """Have the C library keep what is freed, up to 16 MB a piece, and hand larger pieces back to the kernel.

    By default glibc moves that border up to 32 MB as a process goes on, and what is freed below it stays resident in
    pieces that the next tensor does not fit in: 700 MB of them for a 64 x 2048 image and a network without deploy form,
    whose layers do not hand their memory on. Clouds, and the features of networks that keep pace with a sensor, lie
    below the border: to map and fault them in anew for every scan would cost time.
    Returns whether it took effect; False, and harmless, where the C library is not glibc.
    """
    return _mallopt(_M_MMAP_THRESHOLD, _BORDER) and _mallopt(_M_TRIM_THRESHOLD, 4 * _BORDER)


def _mallopt(parameter: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(parameter, value))
