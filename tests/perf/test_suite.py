"""Which versions the suite passed on: rows of what pytest wrote, and the table of them."""

from pathlib import Path

import pytest

from perf import __main__ as command_line
from perf import suite
from perf.rows import append_row, read_rows

readme = pytest.importorskip("perf.show.readme")
PASSED = '<testsuites><testsuite tests="10" failures="0" errors="0" skipped="2"/></testsuites>'
FAILED = '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="0"/></testsuites>'


def written(folder: Path, *texts: str) -> list[str]:
    files = []
    for number, text in enumerate(texts):
        (folder / f"{number}.xml").write_text(text)
        files.append(str(folder / f"{number}.xml"))
    return files


def test_what_passed_is_added_up_over_files_and_is_a_row_of_its_versions(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    assert command_line.main(["suite", *written(tmp_path, PASSED, PASSED), "--output", str(output)]) == 0
    (row,) = read_rows(output)
    assert (row.value, row.status, row.note) == (16.0, "ok", "0 failed, 4 skipped")
    assert {"python", "torch"} <= set(row.versions)


def test_a_suite_that_failed_is_recorded_as_such_and_does_not_get_into_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / readme.RECORDED
    assert command_line.main(["suite", *written(tmp_path, PASSED, FAILED), "--output", str(output)]) == 1
    assert read_rows(output)[0].note == "2 failed, 2 skipped"
    monkeypatch.setattr(readme, "DATA", tmp_path)
    assert len(list(readme.versions())) == 2  # the head
    for value in (7.0, 8.0):
        append_row(output, suite.Row(**{**vars(read_rows(output)[0]), "status": "ok", "value": value}))
    assert [line.split("|")[5].strip() for line in readme.versions()][2:] == ["8"]


def test_a_file_that_pytest_did_not_write_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["suite", *written(tmp_path, "12 passed")]) == command_line.MISUSED
    assert "is not what pytest --junitxml writes" in capsys.readouterr().err
