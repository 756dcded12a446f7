"""Computes rows from seconds and bytes: medians, quantiles, GB/s of the bytes that have to move, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from perf.cases import Case
from perf.providers import RIVALS, expression
from perf.rows import (
    COPY,
    COPY_SHARE,
    CPU_BACKEND,
    GRAPH_TIME,
    KERNEL_BACKEND,
    PEAK_MEMORY,
    RATIO,
    THROUGHPUT,
    TIME,
    Row,
)

MIB = 2**20
MEMORY_SOURCES = {CPU_BACKEND: "torch.profiler", KERNEL_BACKEND: "torch.cuda.max_memory_allocated"}
GIGA, MICRO = 1e9, 1e-6


def rows(
    case: Case,
    blank: Row,
    samples: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int],
    warm: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[Row]:
    """Rows of a case from the seconds per call and the peak bytes of each provider.

    `blank` has what they share, its note which memory a call got; `samples` may have the copy that bandwidth is held
    against, and `warm` has what calls in a CUDA graph take, on a GPU. A provider's time comes last: one that has its
    time has all its rows.
    """
    for name, seconds in samples.items():
        row = replace(blank, provider=name, status="ok", value=0.0)
        if name in peaks:
            note = f"above the inputs; {MEMORY_SOURCES[row.backend]}"
            yield replace(row, metric=PEAK_MEMORY, unit="MiB", value=peaks[name] / MIB, note=note)
        for rival in RIVALS.get(name, ()):
            if rival in samples:
                yield ratio(row, rival, seconds, samples[rival])
        if COPY in samples:
            speed = throughput(row, copied_bytes(case) if name == COPY else case.compulsory_bytes(), seconds)
            yield speed
            if name != COPY:
                yield share(speed, copied_bytes(case) / statistics.median(samples[COPY]) / GIGA)
        if warm and name in warm:
            yield replace(time(row, warm[name], "one call after another, recorded as one graph"), metric=GRAPH_TIME)
        baseline = "" if name == COPY else f"baseline: {expression(case)}"
        host = "" if warm is None or name in warm else "not recorded as a graph: the host's time is counted"
        yield time(row, seconds, together(baseline, blank.note, host))


def copied_bytes(case: Case) -> int:
    """What a copy of the case's tensor reads and writes."""
    return 2 * case.elements * case.torch_dtype.itemsize


def time(row: Row, seconds: Sequence[float], note: str) -> Row:
    """Median time of a call."""
    low, median, high = (each / MICRO for each in spread(seconds))
    return replace(row, metric=TIME, unit="us", value=median, low=low, high=high, note=note)


def throughput(row: Row, moved: int, seconds: Sequence[float]) -> Row:
    """Bytes that have to move over the time it took."""
    low, median, high = (moved / each / GIGA for each in reversed(spread(seconds)))
    note = f"{moved} bytes, each tensor once"
    return replace(row, metric=THROUGHPUT, unit="GB/s", value=median, low=low, high=high, note=note)


def share(speed: Row, copy: float) -> Row:
    """A throughput as a share of the copy's, both medians."""
    assert speed.value is not None
    note = f"of {copy:.4g} GB/s, a copy of the same tensor in the same run"
    value = 100 * speed.value / copy
    return replace(speed, metric=COPY_SHARE, unit="%", value=value, low=None, high=None, note=note)


def ratio(row: Row, rival: str, seconds: Sequence[float], others: Sequence[float]) -> Row:
    """Fastest time over the rival's fastest; the quantiles are those of ratios within a round."""
    low, _, high = spread([mine / other for mine, other in zip(seconds, others, strict=True)])
    fastest, other = min(seconds), min(others)
    note = f"{fastest / MICRO:.4g} us over {other / MICRO:.4g} us, the fastest of {len(seconds)}"
    note = together(note, row.note)
    value = fastest / other
    return replace(row, metric=RATIO.format(rival), unit="1", value=value, low=low, high=high, note=note)


def together(*notes: str) -> str:
    """One note of several, which may be empty."""
    return "; ".join(filter(None, notes))


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20 % quantile, the median and the 80 % quantile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return fifths[0], statistics.median(samples), fifths[-1]
