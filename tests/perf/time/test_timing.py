"""Times are of interleaved rounds, and memory is what a call allocates."""

from __future__ import annotations

from example_rows import CPU

from perf import providers
from perf.cases import Case
from perf.time import timing


def test_peak_memory_counts_what_a_call_allocates() -> None:
    case = Case("", (256, 256))
    size = case.elements * 4
    inputs = case.inputs(CPU)
    assert timing.peak_memory(providers.thunk(case, providers.eager(case), inputs), CPU) == 2 * size  # x + b, and y
    assert timing.peak_memory(lambda: inputs.x.abs().neg_(), CPU) == size


def test_timing_interleaves_providers_and_pairs_their_rounds() -> None:
    order: list[str] = []
    thunks = {name: (lambda name=name: order.append(name)) for name in "ab"}
    samples = timing.interleaved(thunks, threads=1, budget_s=0.0)
    assert len(samples["a"]) == len(samples["b"]) == timing.FEWEST_ROUNDS
    assert timing.rotated(("a", "b", "c"), 4) == ("b", "c", "a")
