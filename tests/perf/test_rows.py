"""A row can be read alone, and a file of rows is only ever added to."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from example_rows import ROW

from perf.rows import UserError, append_row, context, latest_rows, read_rows


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    row = replace(ROW, dim=None, **context())
    append_row(tmp_path / "deep" / "rows.jsonl", row)
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == [row]
    assert row.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]  # wheels may leave the build out
    assert row.commit
    assert row.run


def test_a_line_torn_by_a_crash_is_dropped_and_written_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_row(file, ROW)
    with file.open("a") as torn:
        torn.write('{"kind": "measu')
    assert read_rows(file) == [ROW]
    append_row(file, ROW)
    assert read_rows(file) == [ROW, ROW]


def test_a_whole_last_row_without_its_newline_counts_and_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_row(file, ROW)
    append_row(file, ROW)
    file.write_text(file.read_text().rstrip("\n"))
    assert read_rows(file) == [ROW, ROW]
    append_row(file, ROW)
    assert read_rows(file) == [ROW, ROW, ROW]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "10"), ("value", math.nan), ("low", True), ("shape", "6,32"), ("shape", [6, 1.5]), ("dim", "last"),
        ("case", 5), ("note", None), ("versions", "2.13"),
    ],
)  # fmt: skip
def test_a_row_with_a_value_of_another_type_is_refused_by_the_name_of_its_field(
    field: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**asdict(ROW), field: value}) + "\n")
    with pytest.raises(UserError, match=rf"rows.jsonl:1: not a result row \({field}: expected"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("line", ["5", "[]", '"row"', "null"])
def test_json_that_is_no_object_is_no_row(line: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1: not a result row"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_file_that_is_not_utf8_is_refused_with_advice(tmp_path: Path) -> None:
    append_row(tmp_path / "rows.jsonl", ROW)
    (tmp_path / "utf16.jsonl").write_text((tmp_path / "rows.jsonl").read_text(), encoding="utf-16")
    with pytest.raises(UserError, match="PowerShell's > writes UTF-16"):
        read_rows(tmp_path / "utf16.jsonl")


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"kind": "measured"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:1: not a result row"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="perf measure"):
        read_rows(tmp_path / "missing.jsonl")


def test_a_row_says_what_it_is_or_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of measured, static, accuracy, checked; got 'guessed'"):
        replace(ROW, kind="guessed")
    with pytest.raises(ValueError, match="has a value exactly when"):
        replace(ROW, value=None)


def test_a_row_from_before_backend_was_the_name_is_understood(tmp_path: Path) -> None:
    append_row(tmp_path / "rows.jsonl", ROW)
    line = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(line.replace('"backend": "CPU"', '"path": "CPU path"'))
    assert "backend" not in (tmp_path / "rows.jsonl").read_text()
    assert read_rows(tmp_path / "rows.jsonl") == [ROW]


def test_only_the_newest_answer_to_a_question_counts() -> None:
    newer, other = replace(ROW, value=8.0), replace(ROW, provider="triton_gelu")
    assert latest_rows([ROW, other, newer]) == [newer, other]
