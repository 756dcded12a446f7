"""What the owner of a GPU runs: it packs what others can read, and says what is missing."""

from pathlib import Path

import pytest
import torch

from perf import __main__ as command_line
from perf.cases import Case
from perf.rows import read_rows
from perf.time import gpu, measure


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["gpu"]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.library, "triton_drives", lambda device_type: False)
    assert command_line.main(["gpu"]) == 2
    assert "does not drive this GPU" in capsys.readouterr().err


def test_rows_and_a_report_are_packed_and_time_is_kept(tmp_path: Path) -> None:
    machine = measure.Machine(torch.device("cpu"), threads=1, seconds=0.0)
    output = tmp_path / "rows.jsonl"
    case = Case("small", (4, 8))
    assert gpu.pack(machine, [case], {"eager": gpu.providers.eager}, (), output, float("inf"), "3 passed")
    assert {row.provider for row in read_rows(output)} == {"eager", "copy"}
    assert "3 passed" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").exists()
    late = Case("late", (5, 8))
    assert gpu.pack(machine, [case, late], {"eager": gpu.providers.eager}, (), output, 0.0, "3 passed")
    assert {row.case for row in read_rows(output)} == {"small"}
