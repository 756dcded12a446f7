"""The command line: every command says what it does, and a mistake is answered with advice."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from perf import __main__ as command_line
from perf import compat_tqdm
from perf.rows import ROOT


def test_every_command_shows_its_options_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("measure", "plot", "compare", "gpu"):
        if name == "plot" and importlib.util.find_spec("matplotlib") is None:
            continue
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


@pytest.mark.parametrize(
    "words",
    ["measure --shape 4,8", "accuracy --dtype fp16", "saved", "calls", "analyse --shape 4,8"],
)
def test_an_output_that_cannot_be_written_is_found_before_anything_is_measured(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "file").touch()
    assert command_line.main([*words.split(), "--output", str(tmp_path / "file" / "rows.jsonl")]) == 2
    said = capsys.readouterr()
    assert "can't be written: " in said.err
    assert said.out == ""


@pytest.mark.parametrize("word", ["nan", "-1", "inf", "soon"])
def test_seconds_are_a_time(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("measure", "calls"):
        with pytest.raises(SystemExit) as end:
            command_line.main([command, "--seconds", word])
        assert end.value.code == 2
        assert f"expected seconds, 0 or more, got '{word}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["measure", "analyse"])
def test_a_shape_that_nobody_can_address_is_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert command_line.main([command, "--shape", "99999999999,99999999999"]) == 2
    assert "--shape 99999999999,99999999999 has more elements than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "is_refused"), [("true", True), ("ON", True), ("false", False), ("0", False), ("", False)]
)
def test_the_switch_of_the_interpreter_is_read_as_triton_reads_it(
    value: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert command_line.main(["measure", "--list"]) == (2 if is_refused else 0)
    assert ("TRITON_INTERPRET is set" in capsys.readouterr().err) == is_refused


def piped(words: str, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "perf", *words.split()]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE)


def said_by(process: subprocess.Popen[bytes]) -> str:
    """What it writes to stderr, but for what PyTorch says where CUDA's compiler is installed, and no GPU."""
    lines = process.communicate()[1].decode().splitlines(keepends=True)
    return "".join(line for line in lines if "No CUDA runtime is found" not in line)


def test_a_closed_pipe_ends_a_command_in_silence() -> None:
    read, write = os.pipe()
    os.close(read)
    with piped("measure --set full --list", write) as process:
        os.close(write)
        assert said_by(process) == ""
    assert process.returncode == command_line.CLOSED_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full, piped("measure --set full --list", full) as process:
        said = said_by(process)
    assert process.returncode == 2
    assert said == "python -m perf measure: the output can't be read or written: No space left on device\n"
