"""What a timed call allocates was used before, as in a training loop, unless the case asks for fresh memory."""

from __future__ import annotations

import resource
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from example_rows import CPU, HERE, SMALL

from perf import providers
from perf.rows import RATIO, TIME, read_rows
from perf.time import allocator, measure

LARGE = 10 * 2**20  # elements: more than the 32 MiB up to which malloc keeps memory by itself


def faults(*, fresh: bool, calls: int = 11) -> float:
    """First touches of a page in a call that allocates a large tensor, the median of several calls, as times are.

    Calls before them find out what they reuse. Even then a small block that is put into one which is free may send a
    single call to fresh memory.
    """
    x = torch.ones(LARGE)
    call = allocator.on_fresh_memory(lambda: x * 2) if fresh else lambda: x * 2
    for _ in range(10):
        y = call()
    touched = []
    for _ in range(calls):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        y = call()
        touched.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert isinstance(y, torch.Tensor)
    assert y[0] == 2
    return statistics.median(touched)


@pytest.mark.alone
@pytest.mark.skipif(allocator._glibc() is None, reason="malloc is not glibc's, and stays as it is")
def test_memory_is_touched_for_the_first_time_only_where_fresh_memory_is_asked_for() -> None:
    for _ in range(2):  # each way again: one does not stay behind
        with allocator.memory(CPU, fresh=False) as kind:
            assert kind == "memory reused"
            assert faults(fresh=False) < 10
            kept = [torch.ones(1000) for _ in range(1000)]  # lies in the heap above what the calls left free
        with allocator.memory(CPU, fresh=True) as kind:
            assert kind == "fresh memory"
            assert faults(fresh=True) >= LARGE * 4 / 2**21  # pages of 2 MiB at most
        assert len(kept) == 1000


def test_where_malloc_is_not_glibcs_nothing_is_changed_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with allocator.memory(CPU, fresh=False) as kind:
        assert kind == "memory as the system's allocator has it"


def test_rows_say_which_memory_was_measured(tmp_path: Path) -> None:
    mine: dict[str, providers.Provider] = {"eager": providers.eager, "triton_gelu": providers.eager}
    cases = [SMALL, replace(SMALL, name="small, fresh memory", fresh_memory=True)]
    measure.sweep(cases, mine, HERE, tmp_path / "rows.jsonl")
    for row in read_rows(tmp_path / "rows.jsonl"):
        if row.metric in (TIME, RATIO.format("eager")):
            assert row.note.endswith("fresh memory" if "fresh" in row.case else "memory reused"), row
