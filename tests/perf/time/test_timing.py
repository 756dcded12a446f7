"""Times are of interleaved rounds, and memory is what a call allocates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from example_rows import CPU, HERE, SMALL

from perf import providers
from perf.cases import Case
from perf.providers import Thunk
from perf.rows import GRAPH_TIME, KERNEL_BACKEND, TIME
from perf.time import measure, measured_rows, timing


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


class FakeGpu:
    """As much of torch.cuda as timing asks for: a clock that goes on by a second for what is called or replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> None:
        self.now, self.refuses, self.recording = 0.0, refuses, False
        self.calls: list[str] = []
        gpu = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.time = gpu.now

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.time - self.time)

        class Graph:
            def __init__(self) -> None:
                self.calls: list[tuple[str, float]] = []

            def replay(self) -> None:
                for name, took in self.calls:
                    gpu.calls.append(name)
                    gpu.now += took

        @contextlib.contextmanager
        def recorded(graph: Graph, *, stream: object) -> Iterator[None]:
            gpu.recording = True
            self.graph = graph
            yield
            gpu.recording = False

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event, "CUDAGraph": Graph, "graph": recorded, "Stream": lambda device: stream,
            "current_stream": lambda device: stream, "stream": contextlib.nullcontext, "device": contextlib.nullcontext,
            "synchronize": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(timing, "FILLER_BYTES", 64)
        timing.side_stream.cache_clear()

    def kernel(self, name: str, took: float) -> Thunk:
        def call() -> torch.Tensor:
            if self.recording and name == self.refuses:
                self.recording = False
                raise RuntimeError("operation not permitted when stream is capturing")
            if self.recording:
                self.graph.calls.append((name, took))
            else:
                self.calls.append(name)
                self.now += took
            return torch.empty(0)

        return call


def test_calls_on_a_gpu_are_graphs_timed_in_turn_cold_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    thunks = {"short": gpu.kernel("short", 1e-5), "long": gpu.kernel("long", 1e-3)}
    cold, warm = timing.benched(thunks, CPU)
    assert [*cold] == [*warm] == ["short", "long"]
    for name, took in (("short", 1e-5), ("long", 1e-3)):
        assert cold[name] == pytest.approx([took] * len(cold[name]))
        assert warm[name] == pytest.approx([took] * len(warm[name]))
    assert timing.FEWEST_ROUNDS <= len(cold["short"]) == len(cold["long"]) <= timing.MOST_ROUNDS
    assert 20 * "short" in "".join(gpu.calls)  # warm calls follow one another


def test_what_can_not_be_recorded_is_called_and_has_no_warm_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, refuses="waits")
    cold, warm = timing.benched({"waits": gpu.kernel("waits", 1e-4), "other": gpu.kernel("other", 1e-4)}, CPU)
    assert cold["waits"] == pytest.approx([1e-4] * len(cold["waits"]))
    assert [*warm] == ["other"]
    blank = replace(measure.blank_row(SMALL, HERE), device="a GPU", backend=KERNEL_BACKEND)
    rows = {(row.provider, row.metric): row for row in measured_rows.rows(SMALL, blank, cold, {}, warm)}
    assert "the host's time is counted" in rows["waits", TIME].note
    assert ("waits", GRAPH_TIME) not in rows
    assert rows["other", GRAPH_TIME].value == pytest.approx(100)
    assert list(rows) == [("waits", TIME), ("other", GRAPH_TIME), ("other", TIME)]


def test_a_device_without_memory_is_not_taken_for_one_that_can_not_record(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    calls: list[int] = []

    def too_large() -> torch.Tensor:
        calls.append(0)
        if len(calls) > timing.WARMUPS:
            raise torch.OutOfMemoryError
        return torch.empty(0)

    with pytest.raises(torch.OutOfMemoryError):
        timing.benched({"too large": too_large}, CPU)
