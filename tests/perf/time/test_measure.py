"""A sweep: what it writes can be read alone, it goes on where it stopped, and says what it left out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_rows import HERE, SMALL

from perf import __main__ as command_line
from perf import providers
from perf.cases import Case
from perf.rows import COPY_SHARE, RATIO, ROOT, THROUGHPUT, TIME, read_rows
from perf.time import measure, timing


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # only PyTorch is timed in this process


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 8,4 --dim 2", "--dim 2 is outside --shape 8,4"),
        ("--device tpu", "expected cpu, cuda or cuda:1"),
        ("--device mps", "only cpu and cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_advice(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["measure", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_times_of_the_interpreter_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command_line.main(["measure"]) == 2
    assert "env -u TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.alone
def test_rows_of_a_case_agree_with_each_other(tmp_path: Path) -> None:
    mine: dict[str, providers.Provider] = {"eager": providers.eager, "triton_gelu": providers.eager}
    measure.sweep([SMALL], mine, HERE, tmp_path / "rows.jsonl")
    found = {(row.provider, row.metric): row for row in read_rows(tmp_path / "rows.jsonl")}
    time, speed = (found["triton_gelu", metric] for metric in (TIME, THROUGHPUT))
    assert speed.value == pytest.approx(SMALL.compulsory_bytes() / time.value / 1e3)  # bytes per us, in GB/s
    assert time.low <= time.value <= time.high
    copy = found["copy", THROUGHPUT]
    assert found["triton_gelu", COPY_SHARE].value == pytest.approx(100 * speed.value / copy.value)
    ratio = found["triton_gelu", RATIO.format("eager")]
    assert 0.2 < ratio.value < 5
    assert ratio.low <= ratio.high
    assert "F.gelu(x + b, approximate='tanh')" in time.note
    assert {row.backend for row in found.values()} == {"CPU"}
    assert all("thread" in row.device for row in found.values())


def counting(calls: list[str]) -> dict[str, providers.Provider]:
    """Eager PyTorch that notes which cases it was asked for."""

    def counted(case: Case) -> providers.Call:
        calls.append(case.name)
        return providers.eager(case)

    return {"eager": counted}


def test_a_finished_case_is_not_measured_again_unless_asked_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = tmp_path / "rows.jsonl", []
    two = [SMALL, replace(SMALL, name="other")]
    measure.sweep(two[:1], counting(calls), HERE, file)
    measure.sweep(two, counting(calls), HERE, file)
    assert calls == ["small", "other"]
    measure.sweep(two, counting(calls), HERE, file, fresh=True)
    assert calls == ["small", "other"] * 2
    monkeypatch.setattr(measure, "commit", lambda: "another")
    measure.sweep(two[:1], counting(calls), HERE, file)
    assert calls[4:] == ["small"]


def test_ctrl_c_keeps_what_is_done_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(case: Case) -> providers.Call:
        if case.shape == (5, 7):
            raise KeyboardInterrupt
        return providers.eager(case)

    file, calls = tmp_path / "rows.jsonl", []
    words = ["measure", "--shape", "6,32", "--shape", "5,7", "--provider", "eager", "--output", str(file)]
    monkeypatch.setattr(providers, "PROVIDERS", {"eager": interrupted})
    assert command_line.main(words) == measure.INTERRUPTED
    assert f"What was measured is in {file}; the same command goes on from there" in capsys.readouterr().out
    assert {row.shape for row in read_rows(file)} == {(6, 32)}
    monkeypatch.setattr(providers, "PROVIDERS", counting(calls))
    assert command_line.main(words) == 0
    assert calls == ["own"]
    assert {row.shape for row in read_rows(file)} == {(6, 32), (5, 7)}


def test_a_case_that_does_not_fit_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available_memory", lambda device: 1e9)
    huge = Case("huge", (100_000, 100_000))
    assert measure.sweep([huge], {"eager": providers.eager}, HERE, tmp_path / "rows.jsonl")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row.status, row.value) == ("skipped", None)
    assert "GiB, 0.9 GiB are free" in row.note


def test_without_a_compiler_compiled_providers_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.shutil, "which", lambda name: None)
    measure.sweep([SMALL], {"torch.compile": providers.PROVIDERS["torch.compile"]}, HERE, tmp_path / "rows.jsonl")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.status == "skipped"
    assert "install g++" in row.note


def test_one_command_measures_prints_a_table_and_names_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "rows.jsonl"
    words = ["--shape", "4,8", "--provider", "triton_gelu", "--output", str(output), "--seconds", "0", "--plot"]
    done = subprocess.run(
        [sys.executable, "-m", "perf", "measure", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"report:  {output.with_suffix('.md')}",
        f"picture: {output.with_suffix('.png')}",
    ]
    assert all(output.with_suffix(suffix).exists() for suffix in (".jsonl", ".md", ".png"))
    assert {row.provider for row in read_rows(output)} == {"eager", "triton_gelu", "copy"}
