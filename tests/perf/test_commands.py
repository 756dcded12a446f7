"""The command line: every command says what it does, and a mistake is answered with advice."""

from __future__ import annotations

import io
import sys

import pytest

from perf import __main__ as command_line
from perf.progress import progress


def test_every_command_shows_its_options_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("measure", "plot", "compare"):
        with pytest.raises(SystemExit) as end:
            command_line.main([name, "--help"])
        assert end.value.code == 0
        assert f"python -m perf {name}" in capsys.readouterr().out.partition("examples:")[2]
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in command_line.COMMANDS)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(["mesure"])
    assert end.value.code == 2
    assert "measure" in capsys.readouterr().err


def test_progress_writes_plain_lines_into_a_pipe_and_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for lively, expected in ((False, "1/2  a\n2/2  b\n"), (True, "━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌ 2/2  b  0:00 left")):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda lively=lively: lively)
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress("ab", str)) == ["a", "b"]
        assert (expected in stream.getvalue()) if lively else (expected == stream.getvalue())
