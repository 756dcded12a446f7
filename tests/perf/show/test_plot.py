"""Pictures are drawn from rows, and say what ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from example_rows import ROW, measured_rows

from perf import __main__ as command_line
from perf.rows import Row, append_row

plot = pytest.importorskip("perf.show.plot")


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


@pytest.mark.filterwarnings("error")
def test_of_one_size_the_copy_is_a_line_and_nothing_is_warned_of(tmp_path: Path) -> None:
    rows = [row for row in measured_rows() if row.case == "small"]
    ((_, figure),) = plot_of(rows)
    figure.savefig(tmp_path / "one.png")
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert low < 6 * 32 < high
        (copy,) = (line for line in axis.lines if line.get_linestyle() == ":")
        assert len(copy.get_xdata()) == 2  # from end to end, not a point
        bottom, top = axis.get_ylim()
        assert bottom < copy.get_ydata()[0] < top


def test_pictures_have_an_ending_that_can_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in measured_rows():
        append_row(tmp_path / "rows.jsonl", row)
    words = ["plot", str(tmp_path / "rows.jsonl"), "--output"]
    assert command_line.main([*words, str(tmp_path / "picture.xyz")]) == 2
    assert "pictures end with one of " in capsys.readouterr().err
    assert command_line.main([*words, str(tmp_path / "picture")]) == 0
    assert capsys.readouterr().out == f"picture: {tmp_path / 'picture.png'}\n"
    assert (tmp_path / "picture.png").exists()
