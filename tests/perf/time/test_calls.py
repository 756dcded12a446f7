"""What a call costs before its kernel runs: timed on the Triton backend, counted as Triton counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf.rows import RATIO, ROOT, Row, read_rows

pytestmark = pytest.mark.alone

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
CHILD = """
import inspect, json
from dataclasses import asdict, replace
from perf.time import calls
from triton_gelu.ops.bias_gelu import BIAS_GELU
short, long = (replace(calls.cases.mlp(calls.BERT), shape=(8, length, 3072)) for length in (128, 512))
rows = [*calls.kernels({"short": [short], "both": [short, long]}), *calls.times(0.0)]
(call,) = [kept for kept in BIAS_GELU.cache.values() if hasattr(kept, "choice")]
run = inspect.getclosurevars(call.forward).nonlocals["launch_0"].__self__
launches = [launch.__name__ for launch in run.kept.values()]
print(json.dumps([list(map(asdict, rows)), launches]))
"""


def test_a_call_is_timed_up_to_its_launch_and_kernels_are_not_compiled_for_each_length() -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120)
    found, launches = json.loads(done.stdout)
    rows = [Row(**row) for row in found]
    assert launches == ["shorter"]  # what users get, not the interpreter and not Triton's slower way
    counts = {row.case: row.value for row in rows if row.kind == "static"}
    assert counts["short"] == counts["both"]
    ratios = [row for row in rows if row.metric == RATIO.format("eager")]
    assert [row.direction for row in ratios] == ["forward", "forward_backward"]
    assert all(row.value for row in ratios)
    assert {row.backend for row in rows if row.kind == "measured"} == {"launch left out"}


@pytest.mark.slow
def test_one_command_times_counts_and_writes_rows(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "perf", "calls", "--seconds", "0", "--starts", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=300)
    rows = read_rows(output)
    assert all(row.metric in done.stdout for row in rows)
    starts = [row.metric for row in rows if row.case == "cold start"]
    assert starts == ["import torch", "import triton_gelu", "first forward", "first backward"]


def test_interpreted_kernels_are_refused_with_advice() -> None:
    command = [sys.executable, "-m", "perf", "calls"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**ENVIRONMENT, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
