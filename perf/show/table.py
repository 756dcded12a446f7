"""The table of measured rows that `perf measure` prints, one line a case; also as Markdown for a pull request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from perf.library import FORMULAS
from perf.providers import PROVIDERS
from perf.rows import CLOCK, COPY, COPY_SHARE, CPU_BACKEND, GRAPH_TIME, HOST_TIME, PEAK_MEMORY, RATIO, TIME, Row

Item = TypeVar("Item")
Key = TypeVar("Key")
Line = list[str]

RATIOS = {  # heading: provider, rival
    "ours / eager": ("triton_gelu", "eager"),
    "ours / compile": ("triton_gelu compiled", "torch.compile"),
}
LEGEND = """\
Times are medians; the share is of the bandwidth that a copy of the same tensor reached. Ratios: our fastest time
over PyTorch's, eager to eager and compiled to compiled. MiB: the most a call allocates, eager -> triton_gelu."""
APART = {  # metric: what a table of it is called
    GRAPH_TIME: "one call after another, recorded as a CUDA graph",
    HOST_TIME: "the host's time of a call",
}
NO_KERNEL = "CPU backend: no Triton kernel ran."


def render(rows: Iterable[Row], *, markdown: bool = False) -> str:
    """The rows as text: a part a device, a table a formula, dtype and direction, a line a case."""
    layout = as_markdown if markdown else as_text
    parts: list[str] = []
    for (device, backend), mine in grouped(rows, lambda row: (row.device, row.backend)).items():
        heading = f"{NO_KERNEL} {device}" if backend == CPU_BACKEND else f"{backend}. {device}"
        parts += [f"**{heading}** " if markdown else heading, f"{provenance(mine)}\n", f"{LEGEND}\n"]
        for (formula, dtype, direction), group in grouped(mine, _topic).items():
            topic = titled(formula, dtype, direction)
            apart = [(name, [row for row in group if row.metric == metric]) for metric, name in APART.items()]
            rest = [row for row in group if row.metric not in (*APART, CLOCK)]
            parts += [layout(topic, *lines(rest))] if rest else []
            parts += [layout(f"{topic}, {name}", *lines_apart(some)) for name, some in apart if some]
        parts += [f"{row.case}: {row.value:.0f} {row.unit}" for row in mine if row.metric == CLOCK and row.value]
        parts += [f"{row.status}: {row.case}, {row.provider}: {row.note}" for row in mine if row.status != "ok"]
    return "\n".join(parts) + "\n"


def title(formula: str) -> str:
    """What people call a formula; a row may have one that the library no longer knows."""
    return FORMULAS[formula].title if formula in FORMULAS else formula


def titled(formula: str, dtype: str, direction: str) -> str:
    """What a group of rows has in common, in words."""
    name = title(formula)
    name += f" ({formula})" if name != formula else ""
    return f"{name}, {dtype}, {direction.replace('_', ' + ')}"


def provenance(rows: Sequence[Row]) -> str:
    """The versions and the commit of the newest row."""
    newest = max(rows, key=lambda row: row.time)
    named = ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    return f"{named}; commit {newest.commit}; {newest.time}"


def lines(rows: Sequence[Row]) -> tuple[Line, list[Line]]:
    """The head and the lines of one table."""
    names = sorted({row.provider for row in rows} - {COPY}, key=_place)
    ratios = {head: pair for head, pair in RATIOS.items() if set(pair) <= set(names)}
    head = ["case", "shape", *names, *ratios, "MiB"]
    return head, [_line(case, names, ratios) for case in grouped(rows, _case).values()]


def lines_apart(rows: Sequence[Row]) -> tuple[Line, list[Line]]:
    """The head and the lines of a table of times alone, all of one metric."""
    names = sorted({row.provider for row in rows}, key=_place)
    body = []
    for mine in grouped(rows, _case).values():
        found = {row.provider: row.value for row in mine}
        times = ("" if (value := found.get(name)) is None else duration(value) for name in names)
        body.append([mine[0].case, "x".join(map(str, mine[0].shape)), *times])
    return ["case", "shape", *names], body


def _line(rows: Sequence[Row], names: Sequence[str], ratios: Mapping[str, tuple[str, str]]) -> Line:
    found = {(row.provider, row.metric): row for row in rows}

    def value(provider: str, metric: str, show: Callable[[float], str]) -> str:
        row = found.get((provider, metric))
        return "" if row is None else row.status if row.value is None else show(row.value)

    def both(provider: str) -> str:
        share = value(provider, COPY_SHARE, lambda percent: f" {percent:3.0f}%")
        return value(provider, TIME, duration) + share

    first = rows[0]
    sizes = "x".join(map(str, first.shape))
    memory = (value(name, PEAK_MEMORY, lambda mib: f"{mib:.3g}") for name in ("eager", "triton_gelu"))
    return [
        first.case,
        sizes,
        *map(both, names),
        *(value(mine, RATIO.format(rival), lambda ratio: f"{ratio:.2f}") for mine, rival in ratios.values()),
        " -> ".join(filter(None, memory)),
    ]


def duration(microseconds: float) -> str:
    """A time in the unit a person would choose."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def as_text(title: str, head: Line, body: Sequence[Line]) -> str:
    """A table for the terminal: names to the left, numbers to the right."""
    upper, lower = zip(*map(_halves, head), strict=True)
    lines = [upper, lower, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in cells).rstrip()
        for cells in (enumerate(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = "-" * max(map(len, aligned))
    return "\n".join([title, rule, *filter(None, aligned[:2]), rule, *aligned[2:], ""])


def _halves(heading: str) -> tuple[str, str]:
    """A heading on two lines, broken at its last space."""
    upper, _, lower = heading.rpartition(" ")
    return upper, lower


def as_markdown(title: str, head: Line, body: Sequence[Line]) -> str:
    """A table in Markdown."""
    rule = ["---" if place < 2 else "---:" for place in range(len(head))]
    drawn = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
    return "\n".join([f"#### {title}", "", *drawn, ""])


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, in the order in which the keys first appear."""
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _topic(row: Row) -> tuple[str, str, str]:
    return row.approximate, row.dtype, row.direction


def _case(row: Row) -> tuple[object, ...]:
    return row.case, row.shape, row.dim


def _place(provider: str) -> tuple[int, str]:
    known = list(PROVIDERS)
    return (known.index(provider) if provider in known else len(known), provider)
