"""Seconds a call takes and bytes it allocates, on a CPU and on a GPU."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from perf.providers import Thunk

BLOCK_S = 2e-3  # a timed block lasts so long at least: far above the clock's resolution
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
TIMER_WARMUPS = 2
SILENT = "99"
Samples = dict[str, list[float]]

# On a GPU.
GPU_S = 0.4  # what a case is given
FILLER_BYTES, FILLER_S = 2**29, 3e-4  # more than any cache holds, and about what reading them takes
WARM_S, MOST_REPEATS = 2e-4, 50  # calls in a row of a warm figure: so long, or so many
WARMUPS = 3
RESOLUTION_S = 5e-7  # of a GPU's clock


def interleaved(thunks: Mapping[str, Thunk], *, threads: int, budget_s: float) -> dict[str, list[float]]:
    """Seconds per call of each thunk on the CPU, one figure a round; every round times them all, one after another.

    What disturbs the machine disturbs neighbours alike, so figures of one round may be divided by each other. The
    order rotates from round to round. `Timer` warms each block up by calls that do not count.
    """
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in thunks.items()}
    once = {name: timer.timeit(1).mean for name, timer in timers.items()}
    blocks = {name: max(1, math.ceil(BLOCK_S / seconds)) for name, seconds in once.items()}
    rounds = int(budget_s / sum(once[name] * (blocks[name] + TIMER_WARMUPS) for name in timers))
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS)):
        for name in rotated(tuple(timers), turn):
            samples[name].append(timers[name].timeit(blocks[name]).mean)
    return samples


def rotated(names: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """The names from the turn-th on, and then those before it."""
    start = turn % len(names)
    return names[start:] + names[:start]


def benched(thunks: Mapping[str, Thunk], device: torch.device, *, budget_s: float = GPU_S) -> tuple[Samples, Samples]:
    """Seconds per call of each thunk on a GPU by its own clock, a figure a round: with a cold cache, then a warm one.

    Each is recorded as a CUDA graph, so that the host's time is not counted; warm calls follow one another in one. What
    can't be recorded is called by the host, and has no warm figure. Rounds time all, in rotating order, as on a CPU.
    The cache is made cold by reading: what is written would still be on its way to memory in the next call's time.
    """
    stream = side_stream(device)
    with torch.cuda.device(device), on_side_stream(device):
        filler = torch.zeros(FILLER_BYTES // 8, dtype=torch.int64, device=device)
        singles = {name: recorded(thunk, stream) for name, thunk in thunks.items()}
        calls = {name: thunks[name] if single is None else single for name, single in singles.items()}
        once = {name: max(min(seconds(each)), RESOLUTION_S) for name, each in turns(calls, 2, filler).items()}
        often = {name: min(max(1, math.ceil(WARM_S / once[name])), MOST_REPEATS) for name in calls}
        warm = {
            name: single if often[name] == 1 else recorded(thunks[name], stream, often[name])
            for name, single in singles.items()
            if single is not None
        }
        rounds = int(budget_s / sum(each + FILLER_S + each * often[name] for name, each in once.items()))
        rounds = min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS)
        cold_events = turns(calls, rounds, filler)
        warm_events = turns({name: call for name, call in warm.items() if call is not None}, rounds, None)
        cold = {name: seconds(each) for name, each in cold_events.items()}
        return cold, {name: [s / often[name] for s in seconds(each)] for name, each in warm_events.items()}


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are recorded on, of a GPU."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """In here a GPU's work goes to the stream that graphs are recorded on; on a CPU nothing changes.

    All that a recorded call differentiates has to be made here: autograd waits for the stream on which a tensor that
    wants a gradient was first used, and a recorded stream can't wait for one that is not recorded.
    """
    if device.type != "cuda":
        yield
        return
    stream = side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def recorded(thunk: Thunk, stream: torch.cuda.Stream, repeats: int = 1) -> Callable[[], object] | None:
    """What replays so many calls of the thunk as one CUDA graph; None where they can't be recorded."""
    for _ in range(WARMUPS):
        thunk()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                thunk()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # it waits for the GPU, or asks for what a graph can't have
        return None
    return graph.replay


def turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, filler: torch.Tensor | None
) -> dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]]:
    """The events before and after every call of so many rounds; with a filler, it is read before each."""
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for turn in range(rounds if calls else 0):
        for name in rotated(tuple(calls), turn):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if filler is not None:
                filler.max()
            start.record()
            calls[name]()
            end.record()
            events[name].append((start, end))
    return events


def seconds(events: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> list[float]:
    """The time between each two events, once the GPU is there."""
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def peak_memory(thunk: Thunk, device: torch.device) -> int:
    """Most bytes held at once during one call, above what was held before it (its inputs)."""
    if device.type != "cuda":
        return max(0, *accumulate(_cpu_allocations(thunk)))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    thunk()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_allocations(thunk: Thunk) -> Iterator[int]:
    """What torch's CPU allocator hands out (+) and takes back (-), in order, compiled code included."""
    os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = thunk()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: float(event["ts"])):
        yield event["args"]["Bytes"]


def available_memory(device: torch.device) -> float:
    """Bytes that may still be asked for on the device; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(_available_on_host(), _available_in_container())


def _available_on_host() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return math.inf if found is None else int(found.split()[1]) * 1024


def _available_in_container() -> float:
    control = Path("/sys/fs/cgroup")
    try:
        return int((control / "memory.max").read_text()) - int((control / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return math.inf
