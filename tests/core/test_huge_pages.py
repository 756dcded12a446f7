"""Large results ask for huge pages, and nothing else about them changes."""

import mmap
from unittest import mock

import pytest
import torch

from triton_gelu.core import huge_pages as _pages

LARGE = _pages.LARGE // 4  # float32 elements


def advice(x: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """What empty_like returns, and what it told the system of its memory."""
    told = mock.Mock()
    with mock.patch.object(_pages, "_madvise", return_value=told):
        y = _pages.empty_like(x)
    return y, [call.args for call in told.call_args_list]


def test_only_whole_pages_inside_a_large_result_are_advised() -> None:
    y, [(first, length, what)] = advice(torch.empty(LARGE + 1001))
    assert what == mmap.MADV_HUGEPAGE
    assert first % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert y.data_ptr() <= first < y.data_ptr() + mmap.PAGESIZE
    assert y.data_ptr() + y.nbytes - mmap.PAGESIZE < first + length <= y.data_ptr() + y.nbytes


def test_a_small_result_is_left_alone() -> None:
    assert advice(torch.empty(LARGE - 1))[1] == []


@pytest.mark.parametrize("shape", [(4, LARGE // 4), (LARGE, 4)])
def test_the_memory_format_is_that_of_empty_like(shape: tuple[int, int]) -> None:
    x = torch.empty(shape).t()
    y = _pages.empty_like(x)
    assert (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)


def test_where_the_system_has_no_such_advice_nothing_is_said() -> None:
    _pages._madvise.cache_clear()
    with mock.patch.object(_pages, "mmap", spec=[]):
        assert _pages._madvise() is None
    _pages._madvise.cache_clear()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for")
def test_the_system_takes_the_advice_without_complaint() -> None:
    madvise = _pages._madvise()
    assert madvise is not None
    y = torch.empty(LARGE)
    first = -(-y.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    assert madvise(first, mmap.PAGESIZE, mmap.MADV_HUGEPAGE) == 0
