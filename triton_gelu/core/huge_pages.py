"""Large results in huge pages, where the system offers them.

The first touch of a fresh 4 KiB page takes the system longer than GELU takes for the numbers in it. Linux hands out
pages of 2 MiB where it is asked to (madvise(2)), and that is all that happens here: an advice, which changes no value.
"""

from __future__ import annotations

import ctypes
import functools
import mmap

import torch
from torch import Tensor

LARGE = 4 * 2**20
"""Bytes: at least one huge page fits in whatever way it lies; smaller memory has mostly been touched before."""


def empty_like(x: Tensor) -> Tensor:
    """torch.empty_like(x) of a CPU tensor."""
    y = torch.empty_like(x)
    if y.nbytes >= LARGE and (advise := _madvise()) is not None:
        first = -(-y.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(first, (y.data_ptr() + y.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    return y


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    """The C library's madvise; it says no where huge pages are turned off, and nothing is lost."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
