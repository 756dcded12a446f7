"""What the owner of a GPU runs: it packs what others can read, and says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perf import __main__ as command_line
from perf.cases import Case
from perf.rows import ROOT, read_rows
from perf.time import gpu, measure

pytestmark = pytest.mark.kernels


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


# Not without mpmath: PyTorch brings it, by way of sympy.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["tqdm", "matplotlib", "PIL", "nbformat", "pytest"]))
from pathlib import Path
import torch
from perf.cases import Case
from perf.time import gpu, measure
machine = measure.Machine(torch.device("cpu"), threads=1, seconds=0.0)
tests, output = gpu.tested(), Path(sys.argv[1])
assert gpu.pack(machine, [Case("small", (4, 8))], {"eager": gpu.providers.eager}, (), output, float("inf"), tests)
assert gpu.fine(tests)
print(tests)
"""


def test_without_optional_packages_it_measures_and_says_what_is_left_out(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", WITHOUT, str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out, they need pytest, matplotlib, PIL, nbformat" in done.stdout
    assert {row.provider for row in read_rows(output)} == {"eager", "copy"}
    assert "Pictures are left out: matplotlib is not installed" in output.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("tests", "fine"),
    [("3 passed in 2s", True), ("1 failed, 2 passed", False), ("1 error", False), ("left out, they need pytest", True)],
)
def test_what_the_tests_came_to_decides_the_exit_code(tests: str, fine: bool) -> None:
    assert gpu.fine(tests) == fine
