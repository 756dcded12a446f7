"""Comparing two files of rows finds what got worse, and says what can't be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from example_rows import ROW

from perf import __main__ as command_line
from perf.rows import COPY, Row, append_row
from perf.show import compare


def compared(tmp_path: Path, before: Sequence[Row], after: Sequence[Row], *words: str) -> int:
    files = []
    for name, rows in (("before.jsonl", before), ("after.jsonl", after)):
        (tmp_path / name).unlink(missing_ok=True)
        for row in rows:
            append_row(tmp_path / name, row)
        files.append(str(tmp_path / name))
    return command_line.main(["compare", *files, *words])


def test_compare_catches_a_planted_slow_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = replace(ROW, value=20.0, low=18.0, high=22.0)
    assert compared(tmp_path, [ROW], [slower]) == 1
    assert "+100.0%" in capsys.readouterr().out
    assert compared(tmp_path, [slower], [ROW]) == 0
    assert compared(tmp_path, [slower], [ROW], "--exact") == 1
    within = replace(ROW, value=10.9, low=10.5, high=13.0)
    assert compared(tmp_path, [ROW], [within], "--exact") == 0
    wrong = replace(ROW, value=None, low=None, high=None, status="failed", note="y is wrong")
    assert compared(tmp_path, [ROW], [wrong]) == 1


def test_compare_takes_static_rows_exactly_and_only_of_one_triton(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    static = replace(
        ROW,
        kind="static",
        metric="instructions",
        low=None,
        high=None,
        backend="compiled offline",
        versions={"triton": "3.9"},
    )
    assert compared(tmp_path, [static], [replace(static, value=10.01)]) == 1
    assert (
        compared(tmp_path, [replace(static, metric="headroom")], [replace(static, metric="headroom", value=9.9)]) == 1
    )
    assert compared(tmp_path, [replace(static, metric="fma")], [replace(static, metric="fma", value=11.0)]) == 0
    capsys.readouterr()
    assert compared(tmp_path, [static], [replace(static, value=99.0, versions={"triton": "3.7"})]) == 0
    assert "different Triton versions are not compared: 3.7 and 3.9" in capsys.readouterr().out


def test_compare_refuses_files_that_have_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(tmp_path, [ROW], [replace(ROW, device="another")]) == 2
    assert "after.jsonl has measured rows of another" in capsys.readouterr().err


def test_compare_says_when_the_machine_itself_was_in_another_state() -> None:
    copy = replace(ROW, provider=COPY)
    found = list(compare.changes([copy], [replace(copy, value=20.0, low=19.0, high=21.0)]))
    assert [each.verdict for each in found] == [compare.CHANGED]
    assert "+100%" in next(compare.caveats(found))
