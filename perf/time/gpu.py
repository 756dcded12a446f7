"""The command `gpu`: tests, errors and times on a machine with a GPU, unattended, and one file to send back.

The file of rows, a report and its pictures are written to perf/data. Send them as a pull request: the table of
measured times is made from them (`python -m perf readme`).

examples:
  python -m perf gpu
  make gpu                 the same, with its environment set up first
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch

from perf import cases, library, providers
from perf.accuracy import ulp_errors
from perf.cases import Case
from perf.compat_tqdm import progress
from perf.providers import Provider
from perf.rows import DATA, ROOT, UserError, append_row, make_writable, read_rows
from perf.show import report
from perf.time import measure
from perf.time.measure import Machine

MINUTE = 60.0
TESTS_NEED = ("pytest", "matplotlib", "mpmath", "PIL", "nbformat")
LEFT_OUT = "left out"  # how the result of tests begins that did not run
ALL_S, TESTS_S, REPORT_S = 15 * MINUTE, 7 * MINUTE, 0.5 * MINUTE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf gpu`."""
    parser.add_argument("--output", type=Path, help="JSONL (default: perf/data/gpu-NAME.jsonl)")


def run(args: argparse.Namespace) -> int:
    """Test, measure, pack; 1 if a test failed or a result was wrong."""
    until = time.monotonic() + ALL_S - REPORT_S
    measure.refuse_interpreter()
    machine = Machine(gpu_here(), threads=1, seconds=0.0)
    output = args.output or DATA / f"gpu-{measure.slug(machine.name)}.jsonl"
    make_writable(output)
    tests = tested()
    whole = pack(machine, cases.SETS["gpu"](), providers.PROVIDERS, tuple(library.DTYPES), output, until, tests)
    print(f"tests:   {tests}\nrows:    {output}\nreport:  {output.with_suffix('.md')}")
    if unable := report.cannot_draw():
        print(f"pictures: left out, {unable}")
    print("To send them back: python -m perf readme; git add README.md docs perf/data; commit; open a pull request.")
    failed = any(row.status == "failed" for row in read_rows(output))
    return int(failed or not whole or not fine(tests))


def fine(tests: str) -> bool:
    """Whether the tests passed, or could not be run here."""
    return tests.startswith(LEFT_OUT) or ("passed" in tests and "failed" not in tests and "error" not in tests)


def gpu_here() -> torch.device:
    """The GPU. Raises `UserError`, saying what is missing, where kernels can't run on one."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        advice = "is its driver installed?" if built else "this build is for CPUs only, install one for your GPU"
        raise UserError(f"PyTorch {torch.__version__} sees no GPU; {advice} (make gpu TORCH=...)")
    if not library.triton_drives("cuda"):
        raise UserError("Triton is not installed, or does not drive this GPU: pip install triton")
    return torch.device("cuda", torch.cuda.current_device())


def tested() -> str:
    """The last line of the test run: the same tests as anywhere, on the GPU."""
    missing = [name for name in TESTS_NEED if not importlib.util.find_spec(name)]
    if missing:
        return f"{LEFT_OUT}, they need {', '.join(missing)} (pip install -e '.[dev]')"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"error: not done after {TESTS_S / MINUTE:.0f} minutes"
    print(done.stdout, file=sys.stderr)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"error: exit code {done.returncode}"


def pack(
    machine: Machine,
    chosen: Sequence[Case],
    wanted: Mapping[str, Provider],
    dtypes: Sequence[str],
    output: Path,
    until: float,
    tests: str,
) -> bool:
    """Append the device's errors and, as far as time goes, its times; write the report. False after Ctrl-C."""
    for dtype, formula, way in progress([*product(dtypes, library.FORMULAS, ulp_errors.DIRECTIONS)], " ".join):
        for row in ulp_errors.rows(dtype, formula, way, machine.device):
            append_row(output, row)
    whole = measure.sweep(chosen, wanted, machine, output, until=until)
    remark = f"Tests on {machine.name}: {tests}"
    report.write(read_rows(output), output.with_suffix(".md"), [remark])
    return whole
