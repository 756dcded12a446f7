"""A Markdown report of rows, and its pictures in the same folder: for a pull request, or to read.

On GitHub drag each picture onto its line.

examples:
  python -m perf report                                   the newest file in perf/results
  python -m perf report mine.jsonl --dtype bf16 --output report.md
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from perf.accuracy import ulp_errors
from perf.rows import DATA, Row, UserError, latest_rows, read_rows
from perf.show import beside, chosen_rows, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf report`."""
    chosen_rows.add_arguments(parser, "Markdown")


def run(args: argparse.Namespace) -> int:
    """Read, keep what is asked for, write, name the files."""
    first, rows = chosen_rows.select(args)
    if not rows:
        raise UserError("no rows to report; python -m perf measure makes some")
    path = (args.output or first).with_suffix(".md")
    pictures = write(rows, path)
    print(f"report:  {path}", *(f"picture: {picture}" for picture in pictures), sep="\n")
    return 0


def write(rows: Iterable[Row], path: Path, remarks: Sequence[str] = ()) -> list[Path]:
    """Write the report, and its pictures into the same folder; these. It says so if there is nothing to draw with."""
    newest = latest_rows(rows)
    pictures = []
    if unable := cannot_draw():
        remarks = [*remarks, f"Pictures are left out: {unable}."]
    else:
        from perf.show import plot

        pictures = plot.write(newest, path.with_suffix(".png"))
    parts = [*remarks, *(f"![{picture.stem}]({picture.name})" for picture in pictures)]
    for kind, mine in table.grouped(newest, lambda row: row.kind).items():
        parts.append(TABLES[kind](mine))
    parts += filter(None, [beside.render(newest)])
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return pictures


def cannot_draw() -> str:
    """Why no picture can be drawn here; empty if one can."""
    if importlib.util.find_spec("matplotlib"):
        return ""
    return "matplotlib is not installed (pip install -e '.[perf]')"


def measured(rows: Sequence[Row]) -> str:
    """Times, one table a formula, dtype and direction; then those of kernels that were counted, next to the counts."""
    from perf.show import predicted  # which asks for Triton

    return "\n\n".join(filter(None, (table.render(rows, markdown=True), predicted.render(rows, counts()))))


def counts() -> list[Row]:
    """The committed counts of kernels; none where perf is not in its repository."""
    path = DATA / "static.jsonl"
    return read_rows(path) if path.exists() else []


def checked(rows: Sequence[Row]) -> str:
    """What was held against float64, a line an operator, dtype and formula."""
    parts = []
    for device, mine in table.grouped(rows, lambda row: row.device).items():
        body = []
        for key, some in table.grouped(mine, lambda row: (row.provider, row.dtype, row.approximate)).items():
            right = [row for row in some if row.status == "ok"]
            worst = max(right, key=lambda row: row.value or 0.0, default=None)
            largest = "" if worst is None or worst.value is None else f"{worst.value:.2g}, {worst.case}"
            body.append([*key, f"{len(right)} of {len(some)}", largest])
        head = ["operator", "dtype", "formula", "right", "error over what is allowed, at most"]
        parts.append(table.as_markdown(f"Held against float64, {device}", head, body))
        parts += [f"{row.status}: {row.case}, {row.provider}: {row.note}" for row in mine if row.status != "ok"]
    return "\n\n".join(parts)


def static(rows: Sequence[Row]) -> str:
    """Counts of kernels that never ran, of single calls and of whole models."""
    from perf.show import table_static  # which ask for Triton
    from perf.static import saved

    models = [row for row in rows if row.case in saved.NAMES]
    calls = [row for row in rows if row.case not in saved.NAMES]
    tables = (render(mine) for render, mine in ((table_static.render, calls), (saved.render, models)) if mine)
    return "\n\n".join(f"```text\n{text}\n```" for text in tables)


def errors(rows: Sequence[Row]) -> str:
    """Errors in ulp."""
    parts = [
        f"Errors in ulp, {device}:\n\n```text\n{ulp_errors.table(mine)}\n```"
        for device, mine in table.grouped(rows, lambda row: row.device).items()
    ]
    return "\n\n".join(parts)


TABLES = {"checked": checked, "measured": measured, "static": static, "accuracy": errors}
