"""What a launch ought to have on each GPU: bytes in flight, headroom, programs. Every figure of that kind is here.

How many bytes a processor should have asked for at a time is what NVIDIA found by measuring: the tuning of CUB's
element-wise kernels. For other GPUs it is derived from those by bandwidth (Little's law).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from perf.cases import Case
from perf.library import Datum
from perf.static.gpus import GPU

KIB = 1024
CUB = "min_bytes_in_flight in CUB's tuning_transform.cuh, https://github.com/NVIDIA/cccl/pull/4790"
PUBLISHED: Mapping[str, Datum] = {
    "a100": Datum(16 * KIB, CUB),
    "a100-40gb": Datum(16 * KIB, f"A100 in {CUB}", "derived"),
    "h100": Datum(32 * KIB, CUB),
    "h100-pcie": Datum(32 * KIB, f"H100 in {CUB}", "assumed"),
    "h200": Datum(48 * KIB, CUB),
    "b200": Datum(64 * KIB, CUB),
    **dict.fromkeys(("gb200", "b300", "gb300"), Datum(64 * KIB, f"B200 in {CUB}", "derived")),
}
LATENCY = Datum(1.3e-6, "what CUB's figures for H100, H200 and B200 come to: 1.26 to 1.35 us", "derived")

FORWARD_KIB = {"a100": 48, "h100": 64, "h200": 96, "b200": 96}  # more than CUB has: a forward pass can
HEADROOM: Mapping[tuple[str, str, str], float] = {
    ("h200", "forward", "tanh"): 1.45, ("h200", "forward", "none"): 1.35,
    ("h200", "backward", "tanh"): 1.5, ("h200", "backward", "none"): 1.35,
    ("b200", "forward", "tanh"): 1.4, ("b200", "forward", "none"): 1.4,
    ("b200", "backward", "tanh"): 1.35, ("b200", "backward", "none"): 1.35,
}  # fmt: skip
WIDE, FRAMES = "width 4096", "1500 frames"
WIDE_EXACT_HEADROOM = {"h200": 1.5}  # backward, where rows are long
FRAMES_TANH_KIB = dict.fromkeys(("b200", "gb200", "b300", "gb300"), 56)  # backward: 64 takes spills
SMALL_BYTES = 2**24  # of x: where launches are too short for a GPU, if programs are few
LEAST_PROGRAMS = 4.0  # a processor, there
FILLED = 0.9  # of the bytes in flight that are the goal, on average over all processors


@dataclass(frozen=True)
class Goal:
    """The least that a launch should have: bytes in flight a processor, and headroom, None where nothing was set."""

    in_flight: float
    headroom: float | None = None


def published(gpu: GPU) -> Datum:
    """Bytes that a processor should have asked for at a time, as others measured it."""
    found = PUBLISHED.get(gpu.target.key)
    if found is not None:
        return found
    least = gpu.bandwidth / gpu.processors * LATENCY.value
    return Datum(least, f"bandwidth a processor x {LATENCY.value * 1e6:g} us: {LATENCY.source}", "derived")


def small(case: Case) -> Case:
    """The same layout with `SMALL_BYTES` in x, as nearly as its first dimension allows, but none along the bias."""
    _, *others = case.shape
    if not others or (case.dim is not None and case.dim % len(case.shape) == 0):
        return case
    least = math.prod(others) * case.torch_dtype.itemsize
    return replace(case, shape=(max(round(SMALL_BYTES / least), 1), *others))


def goal(gpu: GPU, case: Case) -> Goal:
    """The goals of a case; those of headroom, and of more bytes than published, are for 16-bit tensors."""
    key, direction, formula = gpu.target.key, case.direction, case.approximate
    least = published(gpu).value
    if case.torch_dtype.itemsize != 2 or case.transposed or case.gated or case.dim is None:
        return Goal(least)
    headroom = HEADROOM.get((key, direction, formula))
    if direction == "forward":
        return Goal(FORWARD_KIB[key] * KIB if key in FORWARD_KIB else least, headroom)
    if direction == "backward" and (case.name, formula) == (WIDE, "none"):
        return Goal(least, WIDE_EXACT_HEADROOM.get(key, headroom))
    if direction == "backward" and (case.name, formula) == (FRAMES, "tanh") and key in FRAMES_TANH_KIB:
        return Goal(FRAMES_TANH_KIB[key] * KIB, headroom)
    return Goal(least, headroom)
