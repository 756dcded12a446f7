"""Predicted and measured times next to each other: does counting kernels rank them rightly?

What is predicted is the least time of the static analysis, memory at its full bandwidth or the busiest other unit, with
nothing ever waiting. So a measured time is above it; the question is by how much, and whether by the same factor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perf.library import gpu_reported_as
from perf.rows import COPY_SHARE, KERNEL_BACKEND, TIME, Row
from perf.show.table import Line, as_markdown, duration, grouped, title
from perf.static.metrics import HEADROOM, IN_FLIGHT, LEAST_TIME

FEWEST = 2**22  # elements: fewer take about as long as a launch
APART = ("stem", "gated", "two tensors", "dropout")  # words in the names of cases whose shape others have, too
PICO, MICRO = 1e-12, 1e-6


@dataclass(frozen=True)
class Pair:
    """A kernel that was counted and timed."""

    row: Row
    static: Mapping[str, float]
    copy_share: float | None

    @property
    def elements(self) -> int:
        return math.prod(self.row.shape)

    @property
    def least(self) -> float:
        """Predicted microseconds."""
        return self.static[LEAST_TIME] * self.elements * PICO / MICRO

    @property
    def excess(self) -> float:
        """Measured time over the predicted one."""
        assert self.row.value is not None
        return self.row.value / self.least


def question(row: Row) -> tuple[Any, ...]:
    """What decides the counts of a kernel an element: all but how many rows or batches there are."""
    dim = None if row.dim is None else row.dim % len(row.shape)
    asked = (row.dtype, row.approximate, row.direction, row.provider)
    return (row.shape[1:], len(row.shape), dim, *asked, *(word in row.case for word in APART))


def pairs(measured: Iterable[Row], static: Iterable[Row]) -> dict[str, list[Pair]]:
    """The kernels, ours and textbook ones, that were counted for the GPU they were timed on, by GPU."""
    counts: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in static:
        if row.value is not None:
            counts.setdefault((row.device, *question(row)), {})[row.metric] = row.value
    mine = [row for row in measured if row.backend == KERNEL_BACKEND and row.value]
    shares = {(row.device, row.case, question(row)): row.value for row in mine if row.metric == COPY_SHARE}
    found: dict[str, list[Pair]] = {}
    for row in mine:
        known = counts.get((gpu_reported_as(row.device), *question(row)))
        if row.metric == TIME and known and LEAST_TIME in known:
            pair = Pair(row, known, shares.get((row.device, row.case, question(row))))
            if pair.elements >= FEWEST:
                found.setdefault(row.device, []).append(pair)
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 where both have the same order, not a number where one has none. Equal values share a rank."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]

    if min(len(set(first)), len(set(second))) < 2:
        return math.nan
    return statistics.correlation(ranks(first), ranks(second))


def render(measured: Iterable[Row], static: Iterable[Row]) -> str:
    """A table a GPU in Markdown, what took longest over its prediction first; empty if none was counted."""
    return "\n".join(part for device, mine in pairs(measured, static).items() for part in _of_gpu(device, mine))


def _of_gpu(device: str, mine: Sequence[Pair]) -> Iterable[str]:
    head = ["case", "shape", "least", "measured", "measured / least", "headroom", "KiB in flight", "of a copy"]
    body = [line(pair) for pair in sorted(mine, key=lambda pair: -pair.excess)]
    yield as_markdown(f"Predicted and measured, {device}", head, body)
    for dtype, some in grouped(mine, lambda pair: pair.row.dtype).items():
        if len(some) > 2:
            least = [pair.least / pair.elements for pair in some]
            took = [(pair.row.value or 0.0) / pair.elements for pair in some]
            agreement = f"{rank_correlation(least, took):.2f} over {len(some)} kernels"
            yield f"{dtype}: rank correlation of the predicted and the measured time of an element {agreement}.\n"


def line(pair: Pair) -> Line:
    """A line of the table."""
    row = pair.row
    return [
        f"{row.case}, {title(row.approximate)} {row.direction}, {row.dtype}, {row.provider}",
        "x".join(map(str, row.shape)),
        duration(pair.least),
        duration(row.value or 0.0),
        f"{pair.excess:.2f}",
        f"{pair.static[HEADROOM]:.2f}",
        f"{pair.static[IN_FLIGHT] / 1024:.0f}",
        "" if pair.copy_share is None else f"{pair.copy_share:.0f}%",
    ]
