"""The command line: every command says what it does, and a mistake is answered with advice."""

from __future__ import annotations

import io
import sys

import pytest

from perf import __main__ as command_line
from perf import compat_tqdm


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


@pytest.mark.parametrize("installed", [True, False])
def test_progress_writes_plain_lines_into_a_pipe(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr(compat_tqdm, "tqdm", None)
    assert progress_on(io.StringIO(), monkeypatch) == "1/2  a\n2/2  b\n"


def test_progress_is_a_bar_with_the_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    written = progress_on(terminal, monkeypatch)
    assert "b:  50%" in written
    assert "| 1/2 [00:00<00:00" in written


def test_progress_is_plain_lines_on_a_terminal_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(compat_tqdm, "tqdm", None)
    assert progress_on(terminal, monkeypatch) == "1/2  a\n2/2  b\n"


def progress_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is written to stderr while two items are worked on."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(compat_tqdm.progress("ab", str)) == ["a", "b"]
    return stream.getvalue()
