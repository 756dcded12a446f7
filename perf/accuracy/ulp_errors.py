"""Errors of GELU and its derivative against the truth: ours on each backend, PyTorch's, and the textbook's.

Every float16 and bfloat16 number is tried, and float32 numbers over the whole range. Errors are in ulp of the result;
those of the derivative in ulp of the largest term of the sum that it is, since what cancels there can't be had back.
Results below 2^-120 may be flushed to zero and do not count.

The kernel's columns are computed in Triton's interpreter; "high" and "low" have its approximate instructions off by
the most that is documented, which stands for a GPU.

examples:
  python -m perf accuracy
  python -m perf accuracy --dtype bf16 --approximate none
  python -m perf accuracy --output mine.jsonl && python -m perf plot mine.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perf.accuracy import instruction_errors, truth
from perf.libraries import LIBRARIES, Library
from perf.library import DTYPES, FORMULAS, is_interpreted
from perf.rows import (
    CPU_BACKEND,
    KERNEL_BACKEND,
    RESULTS,
    Row,
    UserError,
    append_row,
    context,
    latest_rows,
    make_writable,
    read_rows,
)
from perf.show.table import as_text
from triton_gelu.formulas import SIGMOID, TANH

Function = Callable[[Tensor, str], Tensor]

DIRECTIONS = ("forward", "backward")
FLUSHED = 2.0**-120
CPU = torch.device("cpu")
INTERPRETED = is_interpreted()
KERNEL = "triton_gelu kernel"
SIGNS = {KERNEL: 0, f"{KERNEL}, high": 1, f"{KERNEL}, low": -1}
MAXIMUM, NEARLY_ALL, ROUNDED, CURVE = "largest error", "error of 99.9 %", "correctly rounded", "error curve"
WORST = 1e38  # stands for infinity and beyond, which a row can't hold
EDGES = torch.linspace(-14.0, 6.0, 81).tolist()


def ours(x: Tensor, approximate: str) -> Tensor:
    """The public function, by whatever backend this process has."""
    import triton_gelu

    return triton_gelu.gelu(x, approximate=approximate)  # type: ignore[arg-type]


def eager(x: Tensor, approximate: str) -> Tensor:
    """PyTorch's own."""
    return FORMULAS[approximate].standard(x)


def textbook(x: Tensor, approximate: str) -> Tensor:
    """The formula as papers print it, in fp32."""
    return TEXTBOOK[approximate](x.float()).to(x.dtype)


def tanh_approx(x: Tensor, approximate: str) -> Tensor:
    """The textbook's tanh form on the instruction tanh.approx.f32, whose relative error is 2^-11 (PTX ISA)."""
    u = x.float()
    return (0.5 * u * (1 + torch.tanh(_argument(u)) * (1 - 2.0**-11))).to(x.dtype)


def _argument(u: Tensor) -> Tensor:
    return TANH.linear / 2 * (u + TANH.bend * u**3)


TEXTBOOK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda u: 0.5 * u * (1 + torch.tanh(_argument(u))),
    "none": lambda u: 0.5 * u * (1 + torch.erf(u / math.sqrt(2))),
    "sigmoid": lambda u: u / (1 + torch.exp(-SIGMOID.linear * u)),
}


def functions(approximate: str, direction: str, device: torch.device) -> dict[str, Function]:
    """The columns that this process can compute on a device."""
    if device.type != "cpu":
        found: dict[str, Function] = {"triton_gelu": ours, "torch": eager}
        found["torch.compile"] = torch.compile(eager, dynamic=True)
        for name, library in LIBRARIES.items():
            if (library.formula, direction, library.missing(device)) == (approximate, "forward", ""):
                found[name] = functools.partial(_alone, library)
        return found
    if INTERPRETED:
        return dict.fromkeys(SIGNS, ours)
    columns: dict[str, Function] = {
        "triton_gelu, CPU": ours,
        "triton_gelu compiled, CPU": torch.compile(ours, dynamic=True),
        "torch": eager,
        "torch.compile": torch.compile(eager, dynamic=True),
    }
    if approximate in TEXTBOOK:
        columns["textbook"] = textbook
    if approximate == "tanh":
        columns["tanh.approx"] = tanh_approx
    return columns


def _alone(library: Library, x: Tensor, approximate: str) -> Tensor:
    assert approximate == library.formula
    return library.alone(x)


def points(dtype: torch.dtype, count: int = 400_000) -> Tensor:
    """Every number of a 16-bit type; of float32 log-spaced ones over the range and uniform ones where GELU bends."""
    if dtype != torch.float32:
        return truth.every(dtype)
    uniform = torch.rand(2, count // 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positive = torch.cat([torch.exp2(uniform[0] * 253.9 - 126), uniform[1] * 14])
    ends = torch.tensor([0.0, math.inf, -math.inf, math.nan])
    return torch.cat([-positive, positive, ends]).float()


def errors(function: Function, x: Tensor, approximate: str, direction: str) -> tuple[Tensor, Tensor]:
    """Errors in ulp at every x, and which of them count."""
    u = x.cpu().double()
    if direction == "forward":
        true = truth.gelu(u, approximate)
        scale = true.abs()
        got = function(x, approximate)
    else:
        true = truth.gelu(u, approximate, 1)
        scale = truth.largest_term(u, approximate, 1)
        leaf = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(function(leaf, approximate).sum(), leaf)
    return truth.ulps(got.cpu(), true, scale), ~(scale < FLUSHED)


def empty_row(x: Tensor, approximate: str, direction: str) -> Row:
    """A row about errors at the numbers x, without provider and value."""
    name, backend = ("Triton interpreter", "interpreter") if INTERPRETED else ("CPU", CPU_BACKEND)
    if x.device.type != "cpu":
        name, backend = torch.cuda.get_device_name(x.device), KERNEL_BACKEND
    return Row(
        kind="accuracy",
        case="every number" if x.dtype.itemsize == 2 else "float32 numbers",
        shape=tuple(x.shape),
        dim=None,
        dtype=str(x.dtype).removeprefix("torch."),
        approximate=approximate,
        direction=direction,
        provider="",
        metric=MAXIMUM,
        unit="ulp",
        value=None,
        status="failed",
        device=name,
        backend=backend,
        **context(),
    )


def rows(dtype_name: str, approximate: str, direction: str, device: torch.device = CPU) -> Iterator[Row]:
    """The rows of one dtype, formula and direction, from the columns that this process can compute on a device."""
    dtype = DTYPES[dtype_name]
    x = points(dtype).to(device)
    u = x.cpu().double()
    blank = empty_row(x, approximate, direction)
    for provider, function in functions(approximate, direction, device).items():
        try:
            with (
                instruction_errors.approximate(SIGNS.get(provider, 0)),
                warnings.catch_warnings(),
                np.errstate(all="ignore"),
            ):
                warnings.simplefilter("ignore")
                error, counts = errors(function, x, approximate, direction)
        except RuntimeError as problem:  # another library's, or a compiler that is not complete here
            if function is ours:
                raise
            yield replace(blank, provider=provider, note=next(iter(str(problem).splitlines()), ""))
            continue
        yield from summary(replace(blank, provider=provider), u, error, counts)


def summary(blank: Row, u: Tensor, error: Tensor, counts: Tensor) -> Iterator[Row]:
    """The rows of one column, of its errors in ulp at every u, and of which of them count."""
    wrong = u[~u.isfinite() & (error > 0)].unique().tolist()
    note = f"wrong at {', '.join(map(str, wrong))}" if wrong else ""
    counts = counts & u.isfinite()
    worst = error[counts].clamp_max(WORST)
    curve = [worst[(low <= u[counts]) & (u[counts] < high)].tolist() for low, high in pairwise(EDGES)]
    for metric, unit, value, remark in (
        (MAXIMUM, "ulp", worst.max(), note),
        (NEARLY_ALL, "ulp", worst.quantile(0.999), ""),
        (ROUNDED, "share", (worst <= 0.5).double().mean(), ""),
        (CURVE, "ulp", worst.max(), json.dumps([float(f"{max(part):.3g}") if part else None for part in curve])),
    ):
        yield replace(blank, metric=metric, unit=unit, value=float(value), note=remark, status="ok")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf accuracy`."""
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated (default: all)")
    parser.add_argument("--approximate", action="append", choices=FORMULAS, help="may be repeated (default: all)")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="the value, or its derivative")
    parser.add_argument("--gated", action="store_true", help="also of gated GELUs: the value, and both gradients")
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.jsonl", help="rows are added to it")


def run(args: argparse.Namespace) -> int:
    """Compute here what runs here, and the kernel's columns in a process that interprets; then print the table."""
    from perf.accuracy import gated_errors

    make_writable(args.output)
    asked = [
        (dtype, approximate, direction)
        for dtype in args.dtype or DTYPES
        for approximate in args.approximate or FORMULAS
        for direction in args.direction or DIRECTIONS
    ]
    for question in asked:
        for row in rows(*question):
            append_row(args.output, row)
    for dtype, approximate, direction in asked if args.gated else ():
        for row in gated_errors.rows(dtype, approximate, direction):
            append_row(args.output, row)
    if INTERPRETED:
        return 0
    again = [sys.executable, "-m", "perf", "accuracy", *sys.argv[2:], "--output", str(args.output)]
    if subprocess.run(again, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode:
        raise UserError("the interpreter's part failed; its message stands above")
    print(table(latest_rows(read_rows(args.output))))
    print(f"rows: {args.output}")
    return 0


def table(found: list[Row]) -> str:
    """Largest error, that of 99.9 %, and the share rounded correctly; a line a column, a part a dtype and direction."""
    parts = []
    groups = {(row.dtype, row.approximate, row.direction, row.case): None for row in found}
    for dtype, approximate, direction, case in groups:
        about = (dtype, approximate, direction, case)
        mine = [row for row in found if (row.dtype, row.approximate, row.direction, row.case) == about]
        lines = []
        for provider in dict.fromkeys(row.provider for row in mine):
            values = {row.metric: row for row in mine if row.provider == provider}
            if values[MAXIMUM].value is None:
                lines.append([provider, "failed", "", "", values[MAXIMUM].note])
                continue
            lines.append([
                provider, f"{values[MAXIMUM].value:.3g}", f"{values[NEARLY_ALL].value:.3g}",
                f"{values[ROUNDED].value:.2%}", values[MAXIMUM].note,
            ])  # fmt: skip
        what = case.partition(": ")[2] or ("value" if direction == "forward" else "derivative")
        parts.append(as_text(f"{dtype}, {approximate}, {what}", ["", "max ulp", "99.9 %", "rounded", ""], lines))
    return "\n".join(parts)
