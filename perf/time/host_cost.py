"""What a call costs the host on a machine with a GPU: calls are made one after another, and nobody waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from perf import providers
from perf.cases import Case
from perf.rows import HOST_TIME, Row
from perf.time import measure, measured_rows
from perf.time.measure import Machine

CALLS, ROUNDS, WARMUPS = 50, 20, 10  # in a row: fewer than a GPU's queue holds
SMALL = Case("small", (1, 64))
PROVIDERS = ("eager", "triton_gelu")


def rows(case: Case, machine: Machine) -> Iterator[Row]:
    """The host's time of a call, ours and PyTorch's."""
    inputs = case.inputs(machine.device)
    thunks = {name: providers.thunk(case, providers.PROVIDERS[name](case), inputs) for name in PROVIDERS}
    blank = measure.blank_row(case, machine)
    samples: dict[str, list[float]] = {name: [] for name in thunks}
    for turn in range(-1, ROUNDS):
        for name, thunk in thunks.items():
            wait(machine.device)
            count = WARMUPS if turn < 0 else CALLS
            since = time.perf_counter()
            for _ in range(count):
                thunk()
            if turn >= 0:
                samples[name].append((time.perf_counter() - since) / count)
    for name, seconds in samples.items():
        row = replace(blank, provider=name, status="ok", value=0.0)
        yield replace(measured_rows.time(row, seconds, f"{CALLS} calls in a row, not waited for"), metric=HOST_TIME)


def wait(device: torch.device) -> None:
    """Let the device finish what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
