"""What a call costs before its kernel runs: Python's time, a cold start, and how many kernels a model compiles.

No GPU is needed, and none is timed. The time of a call is that of `F.gelu(x + b)` on CPU tensors against ours on the
Triton backend, whose last step, Triton's `run`, does nothing: it is our share of a call, plus what Triton does in
Python. A cold start is timed in new processes whose Triton cache is empty; its kernels are compiled for an H100.
Kernels are counted as Triton's own cache tells them apart.

examples:
  python -m perf calls
  python -m perf calls --seconds 20 --output rows.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from perf import argument_types, cases, library, providers
from perf.cases import Case
from perf.rows import OFFLINE, ROOT, Row, append_row, make_writable
from perf.show.table import as_text
from perf.static import analyse
from perf.static.gpus import GPU, GPUS
from perf.static.offline import DeviceModule, Driver, launches
from perf.time import measure, measured_rows, timing
from triton_gelu import fuse

SMALL = Case("small", (1, 64))
COMPILED_FOR = "h100"
FEW, WIDTHS = 8, (64, 1024)  # features into and out of a small layer
MICRO = 1e-6
BATCHES, LENGTHS = (1, 8, 32), (16, 37, 128, 200, 512)
BASE, BERT = cases.WHISPER[1], cases.OTHERS[1]
MODELS: Mapping[str, Sequence[Case]] = {
    f"{BASE.name}, batches {', '.join(map(str, BATCHES))}": [
        case for batch in BATCHES for case in (*cases.conv_stem(BASE, batch), cases.mlp(BASE, batch))
    ],
    f"{BERT.name}, lengths {', '.join(map(str, LENGTHS))}": [
        replace(cases.mlp(BERT), shape=(8, length, cases.MLP_RATIO * BERT.width)) for length in LENGTHS
    ],
}
COLD_START = """
import json, time
laps = {}
def lap(name, since):
    laps[name] = time.perf_counter() - since
since = time.perf_counter(); import torch; lap("import torch", since)
since = time.perf_counter(); import triton_gelu; lap("import triton_gelu", since)
from perf.time import calls
x, bias = torch.randn(calls.SMALL.shape, requires_grad=True), torch.randn(calls.SMALL.bias_length, requires_grad=True)
with calls.unlaunched(calls.GPUS[calls.COMPILED_FOR]):
    since = time.perf_counter(); y = triton_gelu.bias_gelu(x, bias); lap("first forward", since)
    since = time.perf_counter(); y.sum().backward(); lap("first backward", since)
print(json.dumps(laps))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf calls`."""
    parser.add_argument(
        "--seconds",
        type=argument_types.seconds,
        default=4.0,
        help="CPU time for the timed calls (default: %(default)s)",
    )
    parser.add_argument("--starts", type=argument_types.positive, default=3, help="cold starts (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="ROWS.jsonl", help="append the rows to this file")


def run(args: argparse.Namespace) -> int:
    """Time, count, print; append rows where asked."""
    measure.refuse_interpreter()
    if args.output:
        make_writable(args.output)
    torch.set_num_threads(1)
    rows = [*cold_starts(args.starts), *kernels(MODELS), *times(args.seconds / 2), *fused(args.seconds / 2)]
    for row in rows if args.output else ():
        append_row(args.output, row)
    lines = [
        [row.kind, row.case, row.direction.replace("_", " + "), row.provider, row.metric, f"{row.value:.3g} {row.unit}"]
        for row in rows
    ]
    head = ["kind", "case", "direction", "provider", "metric", "value"]
    print(as_text(f"CPU: {measure.cpu_name()}; no kernel ran", head, lines))
    return 0


def times(seconds: float) -> Iterator[Row]:
    """Microseconds of a small call, forward and with its backward pass, and their ratio to PyTorch's."""
    for case in cases.product((SMALL,), directions=cases.DIRECTIONS):
        inputs = case.inputs(torch.device("cpu"))
        with unlaunched(GPUS[COMPILED_FOR]):
            thunks: dict[str, providers.Thunk] = {
                name: providers.thunk(case, providers.PROVIDERS[name](case), inputs)
                for name in ("eager", "triton_gelu")
            }
            for thunk in thunks.values():
                for _ in range(3):  # a kernel is compiled, loaded and launched
                    thunk()
            samples = timing.interleaved(thunks, threads=1, budget_s=seconds / len(cases.DIRECTIONS))
        yield from measured_rows.rows(case, blank(case, "measured"), samples, {})


def fused(seconds: float) -> Iterator[Row]:
    """Microseconds that fusing adds to a layer and its GELU at batch 1, with PyTorch's own GELU counted as ours.

    That is the time of the fused pair over that of the plain one, plus the time that GELU's own operators take in the
    latter: the kernels that are in their place are left out here.
    """
    pairs = {  # what calls GELU
        "Linear, GELU module": lambda width: nn.Sequential(nn.Linear(FEW, width), nn.GELU("tanh")),
        "Linear, F.gelu": lambda width: _Pair(width),
    }
    asked = [(name, width, way) for name in pairs for width in WIDTHS for way in cases.DIRECTIONS]
    for name, width, direction in asked:
        case = Case(f"fused {name}", (1, width), direction=direction)
        with unlaunched(GPUS[COMPILED_FOR]):
            plain = pairs[name](width)
            ours = copy.deepcopy(plain)
            fuse(ours, torch.randn(1, FEW))
            x = torch.randn(1, FEW)
            thunks: dict[str, providers.Thunk] = {
                "eager": _pass(plain, [x, *plain.parameters()], direction),
                "triton_gelu": _pass(ours, [x, *ours.parameters()], direction),
                "GELU alone": functools.partial(_gelu_alone, torch.randn(1, width), direction),
            }
            for thunk in thunks.values():
                for _ in range(3):
                    thunk()
            samples = timing.interleaved(thunks, threads=1, budget_s=seconds / len(asked))
        least = {provider: min(each) / MICRO for provider, each in samples.items()}
        note = f"fused {least['triton_gelu']:.1f}, plain {least['eager']:.1f}, GELU alone {least['GELU alone']:.1f}"
        added = least["triton_gelu"] - least["eager"] + least["GELU alone"]
        row = blank(case, "measured")
        yield replace(row, metric="host time added", unit="us", value=added, status="ok", note=note)


@torch.no_grad()
def _gelu_alone(h: Tensor, direction: str) -> Tensor:
    """GELU's own operators, without autograd's."""
    y = torch.ops.aten.gelu(h, approximate="tanh")
    dx: Tensor = y if direction == "forward" else torch.ops.aten.gelu_backward(y, h, approximate="tanh")
    return dx


class _Pair(nn.Module):
    """A Linear whose GELU is a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(FEW, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.linear(x), approximate="tanh")


def _pass(
    function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor], direction: str
) -> Callable[[], Tensor | tuple[Tensor, ...]]:
    """A forward pass of a function of the first tensor, or one and a backward pass to those that want a gradient."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(tensors[0])

    def both() -> tuple[Tensor, ...]:
        y = function(tensors[0])
        return torch.autograd.grad(y, wanted, torch.ones_like(y))

    return forward if direction == "forward" else both


def cold_starts(count: int) -> Iterator[Row]:
    """Seconds until the first result in a new process, the fastest of several: imports, then plan and compilation."""
    found = [cold_start() for _ in range(count)]
    for name in found[0]:
        row = blank(replace(SMALL, direction="backward" if "backward" in name else "forward"), "measured")
        note = f"fastest of {count}; Triton's cache was empty"
        value = min(each[name] for each in found)
        yield replace(row, case="cold start", metric=name, unit="s", value=value, status="ok", note=note)


def cold_start() -> dict[str, float]:
    """Seconds of each step."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        command = [sys.executable, "-W", "ignore", "-c", COLD_START]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    laps: dict[str, float] = json.loads(done.stdout)
    return laps


def kernels(models: Mapping[str, Sequence[Case]]) -> Iterator[Row]:
    """How many kernels Triton compiles for all shapes of a model, forward and backward, in bf16."""
    for name, shapes in models.items():
        asked = cases.product(shapes, dtypes=("bfloat16",), directions=analyse.DIRECTIONS)
        launched = [each for case in asked for each in launches(GPUS[COMPILED_FOR], library.call_by_kernels(case))]
        distinct = len({id(each.asm) for each in launched})  # one object a compiled kernel
        row = replace(blank(asked[0], "static"), case=name, direction="forward_backward", device=COMPILED_FOR)
        note = f"for {len(launched)} launches"
        yield replace(row, metric="kernels compiled", unit="kernels", value=distinct, status="ok", note=note)


@contextlib.contextmanager
def unlaunched(gpu: GPU) -> Iterator[None]:
    """CPU tensors take the Triton backend, compiled for `gpu`; but what should launch a kernel does nothing."""
    run = JITFunction.run

    def compile_only(kernel: object, *args: object, grid: object, warmup: bool, **kwargs: object) -> object:
        return run(kernel, *args, grid=grid, warmup=True, **kwargs)

    triton.runtime.driver.set_active(_Driver(gpu))
    library.forget_drivers()
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(CompiledKernel, "_init_handles"),
        mock.patch.object(CompiledKernel, "run", staticmethod(_nothing)),
        mock.patch.object(torch, "get_device_module", return_value=DeviceModule(gpu)),
    ):
        yield


def _nothing(*args: object) -> None:
    """What a launch comes to."""


class _Driver(Driver):
    """A driver of CPU tensors."""

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def blank(case: Case, kind: str) -> Row:
    """A row about the case that has no provider and no answer yet."""
    machine = measure.Machine(torch.device("cpu"), threads=1, seconds=0.0)
    backend = "launch left out" if kind == "measured" else OFFLINE
    return replace(measure.blank_row(case, machine), kind=kind, backend=backend, provider="triton_gelu")
