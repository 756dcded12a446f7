"""Whether memory that a call allocates was touched before.

The first touch of a page costs more than a GELU of the numbers in it. A training loop pays for that once: its allocator
keeps what is freed. The C library's malloc gives blocks from 32 MiB on back to the system, so that each call would get
fresh ones; here it is told to keep them, or, for a case that asks for it, not to.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from perf.cases import FRESH
from perf.providers import Thunk

# malloc.h of glibc: what mallopt is told, and what malloc settles on by itself.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
GIVE_BACK = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
REUSED, UNKNOWN = "memory reused", "memory as the system's allocator has it"


@contextlib.contextmanager
def memory(device: torch.device, *, fresh: bool) -> Iterator[str]:
    """In here CPU tensors get memory that was used before, or fresh one; yields in words which.

    PyTorch's own allocator keeps a GPU's memory. Where malloc is not glibc's nothing is changed, and that is said.
    """
    libc = _glibc()
    if device.type != "cpu":
        yield REUSED
    elif libc is None:
        yield UNKNOWN
    else:
        _tell(libc, GIVE_BACK if fresh else KEEP)
        try:
            yield FRESH if fresh else REUSED
        finally:
            _tell(libc, GIVE_BACK)
            libc.malloc_trim(0)


def on_fresh_memory(thunk: Thunk) -> Thunk:
    """The same call on memory that was given back to the system before, all that is free: part of what is timed.

    Telling malloc to give back large blocks is not enough: it serves a call from what is free in its heap first.
    """
    libc = _glibc()
    if libc is None:
        return thunk

    def call() -> Tensor | tuple[Tensor, ...]:
        libc.malloc_trim(0)
        return thunk()

    return call


def _tell(libc: ctypes.CDLL, settings: dict[int, int]) -> None:
    for name, value in settings.items():
        if not libc.mallopt(name, value):
            raise OSError(f"mallopt({name}, {value}) was refused")


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
