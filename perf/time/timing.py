"""Seconds a call takes and bytes it allocates, on a CPU and on a GPU."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from perf.providers import Thunk

BLOCK_S = 2e-3  # a timed block lasts so long at least: far above the clock's resolution
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
TIMER_WARMUPS = 2
SILENT = "99"


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


def benched(thunks: Mapping[str, Thunk], device: torch.device) -> dict[str, list[float]]:
    """Seconds per call of each thunk on a GPU, by its own clock, the L2 cache flushed before every call."""
    from triton.testing import do_bench

    with torch.cuda.device(device):
        times = {name: do_bench(thunk, return_mode="all") for name, thunk in thunks.items()}
    return {name: [milliseconds / 1e3 for milliseconds in each] for name, each in times.items()}


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
