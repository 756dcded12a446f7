"""Other libraries next to this one: time and largest error of each, since one is often bought with the other."""

from __future__ import annotations

from collections.abc import Sequence

from perf.accuracy import ulp_errors
from perf.libraries import LIBRARIES
from perf.rows import TIME, Row
from perf.show.table import Line, as_markdown, duration, grouped, title

ERRORS_OF = {"eager": "torch"}  # a provider whose rows of errors have another name


def render(rows: Sequence[Row]) -> str:
    """A table a device in Markdown, of the cases that another library has a time of; empty where none has."""
    parts = []
    for device, mine in grouped(rows, lambda row: row.device).items():
        times = [row for row in mine if row.metric == TIME and row.kind == "measured"]
        timed = {_case(row) for row in times if row.provider in LIBRARIES and row.value is not None}
        body = [line(row, mine) for row in times if _case(row) in timed]
        if body:
            head = ["case", "shape", "formula", "direction", "provider", "time", "largest error, ulp"]
            parts.append(as_markdown(f"Other libraries, {device}", head, body))
    return "\n".join(parts)


def _case(row: Row) -> tuple[object, ...]:
    return row.case, row.shape, row.dtype, row.approximate, row.direction


def line(row: Row, rows: Sequence[Row]) -> Line:
    """A line of the table."""
    sizes = "x".join(map(str, row.shape))
    time = row.status if row.value is None else duration(row.value)
    return [row.case, sizes, title(row.approximate), row.direction, row.provider, time, _error(rows, row)]


def _error(rows: Sequence[Row], timed: Row) -> str:
    """The largest error of a provider's GELU alone, in the dtype and formula of a timed row."""
    name = ERRORS_OF.get(timed.provider, timed.provider)
    asked = (ulp_errors.MAXIMUM, name, timed.dtype, timed.approximate, "forward")
    found = [row for row in rows if (row.metric, row.provider, row.dtype, row.approximate, row.direction) == asked]
    return f"{found[-1].value:.3g}" if found and found[-1].value is not None else ""
