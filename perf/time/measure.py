"""Time the cases on this machine: checked against float64 first, one row a result, interrupted or not.

On a CPU the providers of a case are timed in turn, round by round in one process, and ratios are those of their
fastest rounds; on a GPU calls are timed as CUDA graphs, cold (no cache has the tensors) and warm, one after another.
GB/s counts the bytes that cannot be avoided; its share is that of a copy of the same tensor in the same run.

examples:
  python -m perf measure                                  the quick set; again: go on, or print what is there
  python -m perf measure --set targets --threads 1        the cases the CPU backend's goals are stated for
  python -m perf measure --shape 8,1500,5120 --dtype bf16 --approximate none
  python -m perf measure --shape 8,384,3000 --dim 1 --direction forward_backward --provider triton_gelu
  python -m perf measure --set full --approximate tanh --output mine.jsonl --plot
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from perf import argument_types, cases, providers
from perf.cases import Case
from perf.compat_tqdm import progress
from perf.libraries import LIBRARIES
from perf.library import is_interpreted
from perf.providers import COMPILED, Provider, Thunk
from perf.rows import (
    COPY,
    CPU_BACKEND,
    KERNEL_BACKEND,
    RESULTS,
    TIME,
    Row,
    UserError,
    append_row,
    commit,
    context,
    latest_rows,
    make_writable,
    read_rows,
    versions,
)
from perf.show import report, table
from perf.time import allocator, check, measured_rows, timing

INTERRUPTED = 130  # what a shell reports after Ctrl-C
GIB = 2**30

# What a case holds at its peak, in tensors of its shape: inputs and those of a call in the case's dtype, and those of
# the float64 check.
CALL_TENSORS = 10
CHECK_TENSORS = 15


@dataclass(frozen=True)
class Machine:
    """Where a sweep runs. `threads` counts on a CPU only."""

    device: torch.device
    threads: int
    seconds: float

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU: {cpu_name()}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def backend(self) -> str:
        return KERNEL_BACKEND if self.device.type == "cuda" else CPU_BACKEND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf measure`."""
    cases.add_arguments(parser)
    providers.add_arguments(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU if there is one)")
    parser.add_argument(
        "--threads", type=argument_types.positive, default=1, help="CPU threads (default: 1, comparable anywhere)"
    )
    parser.add_argument(
        "--seconds", type=argument_types.seconds, default=0.8, help="CPU time a case is given (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSONL that rows are added to (default: in perf/results)")
    parser.add_argument("--fresh", action="store_true", help="measure again what the output already has")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--plot", action="store_true", help="write a report and a picture next to the output")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, name the files."""
    refuse_interpreter()
    chosen, wanted = cases.select(args), providers.select(args)
    if args.list:
        print("\n".join(map(str, chosen)))
        return 0
    if args.plot and (unable := report.cannot_draw()):
        raise UserError(f"--plot: {unable}")
    machine = Machine(chosen_device(args.device), args.threads, args.seconds)
    output = args.output or RESULTS / f"{slug(machine.name)}-{date.today()}.jsonl"
    make_writable(output)
    whole = sweep(chosen, wanted, machine, output, fresh=args.fresh)
    rows = about(chosen, machine, output)
    if rows:
        print(table.render(rows, markdown=args.markdown))
    if not whole:
        print(f"Interrupted. What was measured is in {output}; the same command goes on from there.")
        return INTERRUPTED
    print(f"rows:    {output}")
    if args.plot:
        markdown = output.with_suffix(".md")
        pictures = report.write(rows, markdown)
        print(f"report:  {markdown}", *(f"picture: {picture}" for picture in pictures), sep="\n")
    return int(any(row.status == "failed" for row in rows))


def sweep(
    chosen: Sequence[Case],
    wanted: Mapping[str, Provider],
    machine: Machine,
    output: Path,
    *,
    fresh: bool = False,
    until: float = math.inf,
) -> bool:
    """Append the rows of every case that the output does not have yet; False where Ctrl-C cut it short.

    No case begins after `until`, on the clock of `time.monotonic`.
    """
    done = set() if fresh or not output.exists() else answered(read_rows(output), machine)
    missing = [case for case in chosen if not all((asked(case), name) in done for name in wanted)]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers would disturb the timing
    threads_before = torch.get_num_threads()
    torch.set_num_threads(machine.threads)
    try:
        for case in progress(missing, str):
            if time.monotonic() > until:
                break
            for row in measured(case, wanted, machine):
                append_row(output, row)
    except KeyboardInterrupt:
        return False
    finally:
        torch.set_num_threads(threads_before)
    return True


def measured(case: Case, wanted: Mapping[str, Provider], machine: Machine) -> list[Row]:
    """The rows of one case: what is right is timed; what is wrong, or does not fit, says so."""
    blank = blank_row(case, machine)
    needed, available = memory_needed(case), timing.available_memory(machine.device)
    if needed > available:
        note = f"needs about {needed / GIB:.1f} GiB, {available / GIB:.1f} GiB are free"
        return [replace(blank, provider=name, note=note) for name in wanted]
    if any(name in COMPILED for name in wanted):
        torch.compiler.reset()
    try:
        memory = allocator.memory(machine.device, fresh=case.fresh_memory)
        with memory as kind, timing.on_side_stream(machine.device):
            return timed(case, wanted, machine, replace(blank, note=kind))
    except torch.OutOfMemoryError:  # the estimate was wrong, or another process took what was free
        return [replace(blank, provider=name, note="out of memory") for name in wanted]


def timed(case: Case, wanted: Mapping[str, Provider], machine: Machine, blank: Row) -> list[Row]:
    """Check what the providers give, time those that are right."""
    inputs = case.inputs(machine.device)
    expected = check.expected(case, inputs)
    unfit: list[Row] = []
    thunks: dict[str, Thunk] = {}
    for name, provider in wanted.items():
        if case.model and name in COMPILED:  # fused and not is the question, and a model compiles for a minute
            continue
        if missing := unable(name, case, machine):
            unfit.append(replace(blank, provider=name, note=missing))
            continue
        thunk = providers.thunk(case, provider(case), inputs)
        if objection := first_call(thunk, case, expected):
            unfit.append(replace(blank, provider=name, note=objection, status="failed"))
        else:
            thunks[name] = thunk
    del expected

    if not thunks:
        return unfit
    peaks = {name: timing.peak_memory(thunk, machine.device) for name, thunk in thunks.items()}
    if case.in_features is None and not case.model:
        source = inputs.x.detach()
        thunks[COPY] = functools.partial(torch.empty_like(source).copy_, source)
    if case.fresh_memory and machine.device.type == "cpu":
        thunks = {name: allocator.on_fresh_memory(thunk) for name, thunk in thunks.items()}
    if machine.device.type == "cuda":
        samples, warm = timing.benched(thunks, machine.device)
        return [*measured_rows.rows(case, blank, samples, peaks, warm), *unfit]
    samples = timing.interleaved(thunks, threads=machine.threads, budget_s=machine.seconds)
    return [*measured_rows.rows(case, blank, samples, peaks), *unfit]


def unable(name: str, case: Case, machine: Machine) -> str:
    """Why a provider has no answer for a case here; empty if it has."""
    if name in COMPILED and (missing := missing_compiler(machine)):
        return missing
    library = LIBRARIES.get(name)
    return "" if library is None else library.unable(case, machine.device)


def first_call(thunk: Thunk, case: Case, expected: Sequence[check.Expected]) -> str:
    """Call it once, compiling what there is to compile; why the answer is no good, empty if it is right."""
    try:
        return check.objection(case, thunk(), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # a provider may be anyone's code, and the sweep goes on
        first_line, *_ = [*str(problem).strip().splitlines(), ""]
        return f"{type(problem).__name__}: {first_line}"


def blank_row(case: Case, machine: Machine) -> Row:
    """A row about the case that has no provider and no answer yet."""
    return Row(
        kind="measured",
        case=case.name,
        shape=case.shape,
        dim=case.dim,
        dtype=case.dtype,
        approximate=case.approximate,
        direction=case.direction,
        provider="",
        metric=TIME,
        unit="us",
        value=None,
        status="skipped",
        device=machine.name,
        backend=machine.backend,
        **context(),
    )


def asked(about: Case | Row) -> tuple[Any, ...]:
    """What a case asks, in terms that its rows have too."""
    name = about.name if isinstance(about, Case) else about.case
    return (name, about.shape, about.dim, about.dtype, about.approximate, about.direction)


def answered(rows: Sequence[Row], machine: Machine) -> set[tuple[tuple[Any, ...], str]]:
    """(case, provider) pairs that need no second measurement: same device, commit and versions, and no failure."""
    here = (machine.name, commit(), versions())
    return {
        (asked(row), row.provider)
        for row in rows
        if row.metric == TIME and row.status != "failed" and (row.device, row.commit, row.versions) == here
    }


def about(chosen: Sequence[Case], machine: Machine, output: Path) -> list[Row]:
    """The newest rows that the output has on the chosen cases, from this commit on this machine."""
    if not output.exists():
        return []
    wanted = {asked(case) for case in chosen}
    here = (machine.name, commit())
    rows = [row for row in read_rows(output) if (row.device, row.commit) == here and asked(row) in wanted]
    return latest_rows(rows)


def memory_needed(case: Case) -> int:
    """Bytes a case holds at its peak, estimated from above."""
    held = CALL_TENSORS * case.torch_dtype.itemsize + CHECK_TENSORS * torch.float64.itemsize
    return held * case.elements


def missing_compiler(machine: Machine) -> str:
    """Why torch.compile cannot work here; empty if it can."""
    if machine.device.type != "cpu" or any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return ""
    return "torch.compile needs a C++ compiler on a CPU: install g++, or set CXX to one"


def refuse_interpreter() -> None:
    """Raise `UserError` where kernels would run in Triton's interpreter."""
    if is_interpreted():
        raise UserError(
            "TRITON_INTERPRET is set: kernels would run in Python, and their times say nothing about them. "
            "Unset it: env -u TRITON_INTERPRET python -m perf measure"
        )


def chosen_device(name: str | None) -> torch.device:
    """The device asked for; without a wish the GPU, if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda (ROCm too) can be timed so far")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch sees no GPU; leave --device out to measure the CPU backend")
    return device


def cpu_name() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def slug(name: str) -> str:
    """The name as part of a file's name."""
    plain = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b(?!:)", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")
