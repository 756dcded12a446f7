"""What is done on a GPU that is lent for some minutes: steps of some seconds each, those worth most first.

A step says which questions its rows answer, so that a second run leaves out what the first has done. Whether results
are right comes before how long they take, the common shapes before the others, and one new kernel before its variants.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from perf import cases, library
from perf.accuracy import ulp_errors
from perf.cases import Case
from perf.libraries import LIBRARIES
from perf.operators import OPERATORS
from perf.providers import PROVIDERS, Provider, fused
from perf.rows import CLOCK, COPY, HOST_TIME, ROOT, TIME, Row
from perf.static import analyse, comparisons
from perf.time import correct, host_cost, measure, provenance
from perf.time.measure import Machine

Answer = tuple[Any, ...]
QUESTION = ("kind", "case", "shape", "dim", "dtype", "approximate", "direction", "provider", "metric")
BF16, TWO = "bfloat16", ("tanh", "none")
WAYS = ("forward", "backward", "forward_backward")
EAGER, ALL = ("eager", "triton_gelu"), tuple(PROVIDERS)
CHUNK = 4  # classes of layout of one step
CHECK_S, ERRORS_S, TESTS_S = 6.0, 12.0, 240.0
TIME_S, COMPILED_S, LARGE_S, HOST_S, PLAN_S = 2.5, 8.0, 5.0, 2.0, 5.0
SANITIZER = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else a block of memory is larger than the tensor in it
TESTS, PASSED = Case("tests", (), dim=None), "tests passed"
PLANS = (  # forward or backward, and what is other there
    "forward.unroll=4,forward.warps=4,forward.loads=free",
    "forward.loads=volatile",
    "forward.unroll=4",
    "backward.unroll=1,backward.loads=free",
    "backward.loads=volatile",
    "backward.registers=0",
    "backward.share=0.02",
)
TOKENS, FEATURES = 8192, (384, 768, 1024, 1280, 1600)  # of the layers before a GELU
WIDTH, SIZES = 4096, (20, 22, 24, 26, 28)  # log2 of elements


@dataclass(frozen=True)
class Step:
    """Some seconds of work: its rows, and the questions that they answer.

    It runs in a process with this environment, started by the words of `prefix`. Where it is not `alone`, others may
    run at the same time.
    """

    name: str
    seconds: float
    rows: Callable[[Machine], Iterable[Row]]
    answers: frozenset[Answer]
    alone: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    prefix: tuple[str, ...] = ()


def answer(row: Row) -> Answer:
    """The question that a row answers, but for the device."""
    return tuple(getattr(row, name) for name in QUESTION)


def asks(case: Case, provider: str, metric: str = TIME, kind: str = "measured") -> Answer:
    """The question that the last row of a provider's answers."""
    asked = (case.name, case.shape, case.dim, case.dtype, case.approximate, case.direction)
    return (kind, *asked, provider, metric)


def unanswered(wanted: Answer, machine: Machine, status: str, note: str) -> Row:
    """A row that says why a question has no answer."""
    found = dict(zip(QUESTION, wanted, strict=True))
    case = Case(found["case"], found["shape"], found["dim"], found["dtype"], found["approximate"], found["direction"])
    blank = measure.blank_row(case, machine)
    return replace(
        blank, kind=found["kind"], provider=found["provider"], metric=found["metric"], status=status, note=note
    )


def all_steps(*, sanitize: bool = False) -> list[Step]:
    """The steps in the order of their worth."""
    wide = Case("width 4096", (2**26 // WIDTH, WIDTH), dtype=BF16)
    plain = replace(wide, name="width 4096, no bias", dim=None)
    stems = cases.conv_stem(cases.LARGE, batch=8)[0], cases.stem(cases.LARGE, batch=8)
    common = (cases.SMALLEST, cases.mlp(cases.LARGE, batch=8), cases.mlp(cases.OTHERS[1], batch=8), *stems)
    sizes = [replace(wide, name=f"2^{each} elements", shape=(2**each // WIDTH, WIDTH)) for each in SIZES]
    layers = [Case(f"fc1 + gelu, K = {k}", (TOKENS, 4 * k), in_features=k) for k in FEATURES]
    first, *others = dtypes()
    return [
        *checks([first]),
        *(checks([first], SANITIZER) if sanitize else ()),
        clock("at the beginning"),
        *timed(expanded((wide,), TWO), EAGER),
        *timed(expanded(common, TWO), EAGER),
        *checks(others),
        *errors("bf16"),
        *timed(expanded((plain,), TWO, ways=cases.DIRECTIONS), EAGER),
        *timed(expanded((wide, *common[:3]), TWO, ways=cases.DIRECTIONS), ALL, COMPILED_S),
        *timed(expanded(sizes, ("tanh",)), EAGER, LARGE_S),
        *plans(expanded((wide, sizes[2]), TWO, ways=WAYS[:2])),
        *textbook(wide),
        *host(),
        *timed(expanded(layers, ("tanh",), ways=("forward",)), (*EAGER, "torch.compile", *LIBRARIES), COMPILED_S),
        *errors("fp16"),
        *errors("fp32"),
        *timed(expanded(sizes, ("none",)), EAGER, LARGE_S),
        *timed(counted(), EAGER),
        *timed(models(), EAGER, LARGE_S),
        *timed(expanded((wide,), TWO, dtypes=("float16", "float32")), EAGER),
        *timed(expanded((wide,), cases.but(*TWO)), EAGER),
        clock("at the end"),
        tests(),
    ]


def checks(dtypes: Sequence[str], prefix: Sequence[str] = ()) -> Iterator[Step]:
    """Every operator in these dtypes and every formula, one of them in every layout; with a prefix under its tool."""
    suffix, environment = (f", {prefix[0]}", tuple(UNCACHED.items())) if prefix else ("", ())
    for (dtype, formula), name in product(product(dtypes, library.FORMULAS), OPERATORS):
        layouts = correct.layouts(OPERATORS[name])
        first = (dtype, formula) == (BF16, "tanh")
        if prefix and not first:
            continue
        for start in range(0, len(layouts) if first else CHUNK, CHUNK):
            chunk = layouts[start : start + CHUNK] if first else [*layouts[:2], *layouts[-1:]]
            yield Step(
                f"{name}, {dtype}, {formula}, {chunk[0]}{suffix}",
                CHECK_S,
                partial(_checked, name, chunk, dtype, formula, suffix),
                frozenset(
                    asks(correct.case(layout, dtype, formula), f"{name}{suffix}", correct.EXCESS, "checked")
                    for layout in chunk
                ),
                alone=bool(prefix),
                environment=environment,
                prefix=tuple(prefix),
            )


def _checked(
    name: str, layouts: Sequence[str], dtype: str, formula: str, suffix: str, machine: Machine
) -> Iterator[Row]:
    for row in correct.rows(name, layouts, dtype, formula, machine):
        yield replace(row, provider=f"{name}{suffix}")


def dtypes() -> list[str]:
    """The long names, bfloat16 first."""
    return sorted(cases.DTYPES.values(), key=lambda name: name != BF16)


def expanded(
    chosen: Iterable[Case], formulas: Sequence[str], *, ways: Sequence[str] = WAYS, dtypes: Sequence[str] = (BF16,)
) -> tuple[Case, ...]:
    """The cases in each formula, dtype and direction."""
    return cases.product(chosen, dtypes=dtypes, approximates=formulas, directions=ways)


def timed(chosen: Iterable[Case], names: Sequence[str], seconds: float = TIME_S) -> Iterator[Step]:
    """A step a case: what some providers take, beside a copy."""
    for case in chosen:
        wanted = {name: provider(name) for name in names}
        yield Step(
            f"{case}: {', '.join(names)}",
            seconds,
            partial(_measured, case, wanted),
            frozenset(asks(case, name) for name in names),
        )


def _measured(case: Case, wanted: Mapping[str, Provider], machine: Machine) -> list[Row]:
    return measure.measured(case, wanted, machine)


def provider(name: str) -> Provider:
    """The provider of that name: one of PyTorch's and ours, or another library's."""
    return PROVIDERS[name] if name in PROVIDERS else LIBRARIES[name].provider


def plans(chosen: Sequence[Case]) -> Iterator[Step]:
    """The cases by other plans than the library's own, each plan in a process of its own."""
    for variant, case in product(PLANS, chosen):
        if not variant.startswith(case.direction):
            continue
        name = f"triton_gelu, plan {variant}"
        yield Step(
            f"{case}: {name}",
            PLAN_S,
            partial(_measured, case, {name: fused}),
            frozenset({asks(case, name)}),
            environment=((library.PLAN_VARIABLE, variant),),
        )


def textbook(case: Case) -> Iterator[Step]:
    """Kernels of the textbook formulas, whose counts are far from ours: the static model has to tell them apart."""
    for formula in comparisons.FUNCTIONS:
        asked = replace(case, approximate=formula)
        wanted: dict[str, Provider] = {
            name: partial(_textbook, call) for name, call in comparisons.forward_calls(asked).items()
        }
        yield Step(
            f"{asked}: textbook kernels",
            TIME_S,
            partial(_measured, asked, wanted),
            frozenset(asks(asked, name) for name in wanted),
        )


def _textbook(call: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
    return call


def clock(when: str) -> Step:
    """The clock of a GPU that has work: lower than the highest where power or heat limit it."""
    case = Case(f"clock {when}", (), dim=None)
    return Step(case.name, HOST_S, partial(_clock, case), frozenset({asks(case, COPY, CLOCK)}))


def _clock(case: Case, machine: Machine) -> Iterator[Row]:
    blank = replace(measure.blank_row(case, machine), provider=COPY, metric=CLOCK, unit="MHz")
    found = provenance.clock_under_load(machine.device)
    if found is None:
        yield replace(blank, note="nvidia-smi does not tell")
    else:
        yield replace(blank, status="ok", value=found)


def host() -> Iterator[Step]:
    """What a small call costs the host."""
    for case in expanded((host_cost.SMALL,), ("tanh",), ways=cases.DIRECTIONS):
        answers = frozenset(asks(case, name, HOST_TIME) for name in host_cost.PROVIDERS)
        yield Step(f"{case}: the host's time", HOST_S, partial(host_cost.rows, case), answers)


def errors(dtype: str) -> Iterator[Step]:
    """The errors of a dtype's numbers, all of them where it has 16 bit."""
    count = len(ulp_errors.points(library.DTYPES[dtype]))
    name = "every number" if library.DTYPES[dtype].itemsize == 2 else "float32 numbers"
    for formula, way in product(library.FORMULAS, ulp_errors.DIRECTIONS):
        case = Case(name, (count,), None, cases.DTYPES[dtype], formula, way)
        yield Step(
            f"errors, {case}",
            ERRORS_S,
            partial(_errors, dtype, formula, way),
            frozenset({asks(case, "triton_gelu", ulp_errors.CURVE, "accuracy")}),
            alone=False,
        )


def _errors(dtype: str, formula: str, way: str, machine: Machine) -> Iterator[Row]:
    return ulp_errors.rows(dtype, formula, way, machine.device)


def counted() -> tuple[Case, ...]:
    """The cases whose kernels are counted, as far as they are not among the others."""
    chosen = (case for case in analyse.budget() if case.dtype == BF16 and case.name != analyse.WIDE.name)
    return tuple(chosen)


def models() -> tuple[Case, ...]:
    """Whole models at their own size."""
    whole = [replace(cases.whole(name, cases.TINY.tokens), dtype=BF16) for name in ("encoder", "mlps")]
    return cases.product(whole, dtypes=(BF16,), approximates=("none",), directions=cases.DIRECTIONS)


def tests() -> Step:
    """The tests, where there is something to run them with."""
    answers = frozenset({asks(TESTS, "pytest", PASSED, "checked")})
    return Step("tests", TESTS_S, _tests, answers)


def _tests(machine: Machine) -> Iterator[Row]:
    blank = replace(measure.blank_row(TESTS, machine), kind="checked", provider="pytest", metric=PASSED, unit="tests")
    if importlib.util.find_spec("pytest") is None:
        yield replace(blank, note="pytest is not installed")
        return
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not alone", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
    passed = re.search(r"(\d+) passed", last)
    if done.returncode or passed is None:
        yield replace(blank, status="failed", note=last)
    else:
        yield replace(blank, status="ok", value=float(passed[1]), note=last)
