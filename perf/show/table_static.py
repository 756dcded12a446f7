"""Static rows as a table for the terminal: one a GPU and direction, one line a case and provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perf.rows import Row
from perf.show.table import as_text, grouped
from perf.static.goals import KIB, LEAST_PROGRAMS
from perf.static.gpus import GPUS
from perf.static.metrics import (
    BYTES,
    HEADROOM,
    IN_FLIGHT,
    INSTRUCTIONS,
    LEAST_TIME,
    LIBRARY,
    PARTED,
    PEAK_IN_FLIGHT,
    PROGRAMS,
    REGISTERS,
    ROUNDS,
    SMALL_PROGRAMS,
    SPILLS,
    VECTOR,
    WIDTH,
)  # fmt: skip

LEGEND = """\
Static: compiled offline, never run. Counts are per element, the sum that finishes a bias gradient included.
  vector    instructions that compute, for each thread, a number (AMD: VALU); not memory, uniform and control
  regs      ! marks spills, / a branch at which the threads of a warp part
  in flight KiB that a full processor has asked memory for at a time, of those that are the goal (perf/static/goals.py),
            ! if fewer; at most as much as peak; rounds are waits a step. A bias, which caches serve, is not counted
  programs  that a processor has, of those that fit, at this size and, ! if under 4, where x has 16 MB
  headroom  time at memory bandwidth / time of the next busiest resource, which is the one named
  bound     time below which the launches cannot stay, in times of the library's
"""
HEAD = [
    "case", "provider", "formula", "dtype",
    "instr", "vector", "MUFU", "regs", "bit", "B",
    "in flight", "peak", "rounds", "programs", "16 MB", "next", "headroom", "bound",
]  # fmt: skip


def render(rows: Sequence[Row]) -> str:
    """The tables, and why some line has no numbers."""
    parts = [LEGEND]
    for (device, direction), group in grouped(rows, lambda row: (row.device, row.direction)).items():
        library = {_case(row): row.value for row in group if row.provider == LIBRARY and row.metric == LEAST_TIME}
        lines = grouped(group, lambda row: (_case(row), row.provider))
        body = [_line(mine, library.get(case)) for (case, _), mine in lines.items()]
        parts.append(as_text(f"{GPUS[device].name} ({GPUS[device].target.architecture}), {direction}", HEAD, body))
    failed = [row for row in rows if row.status == "failed"]
    return "\n".join([*parts, *(f"failed: {row.case}, {row.provider}, {row.device}: {row.note}" for row in failed)])


def _case(row: Row) -> tuple[object, ...]:
    return row.case, row.shape, row.dim, row.approximate, row.dtype


def _line(rows: Sequence[Row], library: float | None) -> list[str]:
    first = rows[0]
    found = {row.metric: row for row in rows if row.value is not None}
    name = [first.case, first.provider, first.approximate, first.dtype]
    if not found:
        return [*name, "failed", *[""] * (len(HEAD) - len(name) - 1)]

    def value(metric: str, show: Callable[[float], str] = "{:.0f}".format) -> str:
        return show(found[metric].value or 0.0) if metric in found else "-"  # rows may be older than a metric

    marks = ("!" if found[SPILLS].value else "") + ("/" if found[PARTED].value else "")
    bound = found[LEAST_TIME].value
    return [
        *name,
        value(INSTRUCTIONS, "{:.1f}".format),
        value(VECTOR, "{:.1f}".format),
        value("mufu", "{:.2f}".format),
        value(REGISTERS) + marks,
        value(WIDTH),
        value(BYTES, "{:.2f}".format),
        held_of_goal(found[IN_FLIGHT]),
        value(PEAK_IN_FLIGHT, lambda most: f"{most / KIB:.0f}"),
        value(ROUNDS, "{:.3g}".format),
        _programs(found.get(PROGRAMS)),
        value(SMALL_PROGRAMS, lambda few: f"{few:.1f}{'!' * (few < LEAST_PROGRAMS)}"),
        found[HEADROOM].note.partition(" ")[0],
        value(HEADROOM, "{:.2f}".format),
        f"{bound / library:.2f}" if bound and library else "",
    ]


def held_of_goal(row: Row) -> str:
    """KiB, and those that are the goal, which its note begins with."""
    held, needed = (row.value or 0.0) / KIB, float(row.note.partition(" ")[0]) / KIB
    return f"{held:.0f}/{needed:.0f}{'!' * (held < needed)}"


def _programs(row: Row | None) -> str:
    """How many a processor has, and how many fit, which the note begins with."""
    if row is None:
        return "-"
    fit = int(row.note.partition(" ")[0])
    return f"{min(row.value or 0.0, fit):.3g}/{fit}"
