"""The command `analyse`: compile kernels for GPUs that are not here, and count what they will do there.

Each case is compiled exactly as a call would compile it. The machine code is then followed, loops and predicates
included, and counted: instructions by kind, registers, widths of accesses, bytes; and, from a table of GPU data
(perf/static/gpus.py), which resource binds. `headroom` is the time at memory bandwidth over the time of the next
resource: below 1 a kernel is not memory-bound. Backward includes the sum that finishes the bias gradient.

With TRITON_DEFAULT_FP_FUSION=0 in the environment Triton fuses no multiplication with an addition by itself, which is
the default from Triton 3.10 on.

  python -m perf analyse --gpu h200 b200 --approximate tanh --dtype bf16
  python -m perf analyse --shape 8,1280,1500 --dim 1 --direction backward --dump /tmp/kernels
  python -m perf analyse --set baseline --provider triton_gelu --output rows.jsonl
"""

from __future__ import annotations

import argparse
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton

from perf import argument_types, cases
from perf.cases import Case, product
from perf.compat_tqdm import progress
from perf.library import FORMULAS, call_by_kernels
from perf.rows import OFFLINE, Row, UserError, append_row, context, make_writable
from perf.show.table_static import render
from perf.static import comparisons, goals
from perf.static.count import Counted, count
from perf.static.gpus import GPUS, SHOWN
from perf.static.machine.code import Untraceable
from perf.static.metrics import LIBRARY, call_metrics
from perf.static.offline import Call, launches

DIRECTIONS = ("forward", "backward")
ASKABLE = (*DIRECTIONS, "double_backward")
HALVES, ALL = ("bfloat16", "float16"), tuple(cases.DTYPES.values())
WIDE = Case("width 4096", (16384, 4096))
FRAMES = tuple(Case(f"{frames} frames", (32, 1280, frames), dim=1) for frames in (3000, 1500))
GATED = (
    Case("gated, width 4096", (16384, 4096), gated="second"),
    Case("gated, width 1500", (16384, 1500), gated="second"),
    Case("gated, two tensors", (16384, 4096), dim=None, gated=cases.TWO),
)
STEM = replace(FRAMES[1], name="stem, 1500 frames", transposed=True)
IMAGE = Case("56 x 56 image", (32, 256, 56, 56), dim=1)
ODD = (
    Case("width 1500", (16384, 1500)),
    Case("width 1501", (16384, 1501)),
    Case("1501 frames", (32, 1280, 1501), dim=1),
)


def budget() -> tuple[Case, ...]:
    """Every formula and dtype at one width, and the shapes that are hard to go through."""
    return (
        *product((WIDE,), dtypes=ALL, approximates=FORMULAS, directions=DIRECTIONS),
        *product((*FRAMES, STEM, IMAGE, *ODD), dtypes=HALVES[:1], directions=DIRECTIONS),
    )


def baseline() -> tuple[Case, ...]:
    """A handful, for a test of every change."""
    return (
        *product((WIDE,), dtypes=HALVES[:1], approximates=FORMULAS, directions=DIRECTIONS),
        *product(FRAMES[1:], dtypes=HALVES[:1], directions=DIRECTIONS[1:]),
    )


def with_goals() -> tuple[Case, ...]:
    """What `goals` has goals of its own for: whole rows and parts of rows, long and short ones."""
    widths = (WIDE, Case("width 5120", (16384, 5120)), ODD[0])
    shapes = (*widths, replace(FRAMES[0], shape=(8, 1280, 3000)), FRAMES[1])
    return product(shapes, dtypes=HALVES[:1], approximates=("tanh", "none"), directions=DIRECTIONS)


SETS = {"budget": budget, "baseline": baseline, "goals": with_goals}


BLANK = Row("static", "", (), None, "", "", "forward", "", "", "", None, status="skipped", backend=OFFLINE)


@dataclass(frozen=True)
class Question:
    """One case by one provider on one GPU, named by its key."""

    case: Case
    provider: str
    gpu: str

    def __str__(self) -> str:
        return f"{self.gpu}, {self.case}, {self.provider}"

    def fields(self) -> dict[str, Any]:
        """What rows say of it."""
        case = self.case
        return {
            "case": case.name, "shape": case.shape, "dim": case.dim, "dtype": case.dtype, "direction": case.direction,
            "approximate": case.approximate, "provider": self.provider, "device": self.gpu,
        }  # fmt: skip

    def folder(self) -> str:
        """A place among the dumped files."""
        case = self.case
        sizes = "x".join(map(str, case.shape))
        words = (self.gpu, case.name, sizes, case.direction, case.approximate, case.dtype, self.provider)
        return re.sub(r"[^\w.]+", "-", "_".join(words))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `analyse`."""
    cases.add_arguments(parser, sets=SETS, directions=ASKABLE)
    argument_types.add_gpus(parser, SHOWN)
    parser.add_argument("--provider", action="append", help="triton_gelu or a comparison kernel (default: all)")
    parser.add_argument(
        "--dump", type=Path, metavar="DIR", help="write ttgir, PTX, SASS, cubin... of each kernel there"
    )
    parser.add_argument("--output", type=Path, metavar="ROWS.jsonl", help="append the rows to this file")
    parser.add_argument(
        "--jobs",
        type=argument_types.positive,
        default=os.cpu_count(),
        help="kernels compiled at a time (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Compile, count, print; append rows where asked. 1 if some kernel could not be compiled or followed."""
    questions = [
        Question(case, provider, gpu)
        for gpu in args.gpus
        for case in cases.select(args, SETS)
        for provider in subjects(case)
    ]
    asked = [each for each in questions if each.provider in (args.provider or (each.provider,))]
    if not asked:
        known = ", ".join(dict.fromkeys(each.provider for each in questions))
        raise UserError(f"no such provider for these cases; there are: {known}")
    if args.output:
        make_writable(args.output)
    rows: list[Row] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        answers = pool.map(answer, asked, [args.dump] * len(asked))
        for _, found in zip(progress(asked, str), answers, strict=True):
            rows += found
            for row in found if args.output else ():
                append_row(args.output, row)
    print(render(rows))
    return int(any(row.status == "failed" for row in rows))


def subjects(case: Case) -> dict[str, Call]:
    """What can be compiled for a case: the library's call and the comparison kernels."""
    return {LIBRARY: call_by_kernels(case), **comparisons.rivals(case)}


def answer(question: Question, dump: Path | None = None) -> list[Row]:
    """The rows of one question; a single failed one, with the reason, where a kernel can't be compiled or followed."""
    gpu = GPUS[question.gpu]
    blank = replace(BLANK, **question.fields(), **context())
    try:
        calls = [subjects(case)[question.provider] for case in (question.case, goals.small(question.case))]
        launched, small = (launches(gpu, call) for call in calls)
        counted = [count(each, gpu) for each in launched]
    except (Untraceable, triton.CompilationError) as problem:
        return [replace(blank, status="failed", note=str(problem))]
    if dump:
        for each in counted:
            write(each, dump / question.folder())
    fp_fusion = "on" if counted[0].launched.fp_fusion else "off"
    blank = replace(blank, versions={**blank.versions, "fp_fusion": fp_fusion})
    return [
        replace(blank, metric=each.metric, unit=each.unit, value=each.value, note=each.note, status="ok")
        for each in call_metrics(question.case, counted, gpu, small)
    ]


def write(counted: Counted, folder: Path) -> None:
    """All stages of one kernel as files, for a person to open."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = {} if "amdgcn" in counted.launched.asm else {"sass": counted.code.listing}
    for stage, content in {**counted.launched.asm, **listing}.items():
        path = folder / f"{counted.launched.name}.{stage}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
