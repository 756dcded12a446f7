"""Pictures are drawn from rows, and say what ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from example_rows import ROW, measured_rows

from perf import __main__ as command_line
from perf.rows import Row, append_row
from perf.show import plot


def test_pictures_are_drawn_from_rows_and_say_what_ran(tmp_path: Path) -> None:
    for row in measured_rows():
        append_row(tmp_path / "rows.jsonl", row)
    assert command_line.main(["plot", str(tmp_path / "rows.jsonl")]) == 0
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    plot.write(measured_rows(), tmp_path / "rows.svg")
    ((name, figure),) = plot_of(measured_rows())
    assert name == "throughput"
    assert "CPU backend (no Triton kernel ran)" in figure.get_suptitle()
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "tanh, float32, forward",
        "exact (none), float32, forward",
    ]


def plot_of(rows: Sequence[Row]) -> list[tuple[str, plot.Figure]]:
    from perf.show import plot_throughput

    return list(plot_throughput.draw(rows))


def test_two_devices_never_share_a_picture() -> None:
    rows = measured_rows()
    assert len(plot_of([*rows, *(replace(row, device="another") for row in rows)])) == 2


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_row(tmp_path / "rows.jsonl", ROW)
    assert command_line.main(["plot", str(tmp_path / "rows.jsonl")]) == 2
    assert "no rows to draw" in capsys.readouterr().err
