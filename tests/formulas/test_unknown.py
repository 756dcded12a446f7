"""Unknown formulas, types and axes fail when a kernel is compiled, and the error names them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from triton_gelu.core.tiles import load_vector, store, to_float32
from triton_gelu.formulas import FORMULAS, plain
from triton_gelu.formulas.device import d2gelu, dgelu, gelu
from triton_gelu.ops import bias_gelu_cpu

ROOT = Path(__file__).resolve().parents[2]
ORDERS = {gelu: 0, dgelu: 1, d2gelu: 2}


@triton.jit
def formula_kernel(y_ptr, ORDER: tl.constexpr, FORMULA: tl.constexpr, DTYPE: tl.constexpr):
    u = tl.zeros([2, 512], tl.float32)
    if ORDER == 0:
        y = gelu(u, FORMULA, DTYPE, False, False)
    elif ORDER == 1:
        y = dgelu(u, FORMULA, DTYPE, False, False)
    else:
        y = d2gelu(u, FORMULA, DTYPE, False, False)
    tl.store(y_ptr + tl.arange(0, 2)[:, None] * 512 + tl.arange(0, 512)[None, :], y)


@triton.jit
def load_kernel(x_ptr, y_ptr):
    tl.store(y_ptr + tl.arange(0, 8), to_float32(tl.load(x_ptr + tl.arange(0, 8)), 1, False))


@triton.jit
def store_kernel(x_ptr, y_ptr):
    store(y_ptr + tl.arange(0, 8), tl.load(x_ptr + tl.arange(0, 8)), None, False)


@triton.jit
def vector_kernel(x_ptr, y_ptr):
    at = tl.arange(0, 8)
    vector = load_vector(x_ptr, 0, 0, at, at, 8, 8, "depth", tl.float32, False, True)
    tl.store(y_ptr + at, tl.reshape(vector, (8,)))


def fails(kernel: object, *args: object) -> str:
    """The message that a launch fails with, and the messages of what caused that."""
    with pytest.raises(Exception) as failed:  # noqa: PT011
        kernel[(1,)](*args)  # type: ignore[index]
    error: BaseException | None = failed.value
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(messages)


@pytest.mark.parametrize("order", ORDERS.values(), ids=["value", "first derivative", "second derivative"])
@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32], ids=str)
def test_a_formula_that_the_kernels_do_not_know_is_named(order: int, dtype: tl.dtype, device: str) -> None:
    assert "'swish'" in fails(formula_kernel, torch.empty(1024, device=device), order, "swish", dtype)


@pytest.mark.parametrize("order", ORDERS.values(), ids=["value", "first derivative", "second derivative"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_dtype_that_the_formulas_do_not_know_is_named(order: int, formula: str, device: str) -> None:
    assert "fp64" in fails(formula_kernel, torch.empty(1024, device=device), order, formula, tl.float64)


@pytest.mark.parametrize("kernel", [load_kernel, store_kernel], ids=["load", "store"])
def test_a_dtype_that_tiles_do_not_know_is_named(kernel: object, device: str) -> None:
    tensors = torch.zeros(8, device=device), torch.zeros(8, dtype=torch.int32, device=device)
    assert "int32" in fails(kernel, *(tensors if kernel is store_kernel else tensors[::-1]))


def test_an_axis_that_no_vector_lies_along_is_named(device: str) -> None:
    assert "'depth'" in fails(vector_kernel, torch.zeros(8, device=device), torch.zeros(8, device=device))


OFFLINE = """
import sys, torch, triton
sys.path[:0] = ["tests", "tests/formulas"]
from perf.static import gpus, offline
import test_unknown as kernels
triton.runtime.driver.set_active(offline.Driver(gpus.GPUS[{gpu!r}]))
for kernel in (kernels.formula_kernel, kernels.load_kernel, kernels.store_kernel, kernels.vector_kernel):
    kernel.run = lambda *args, grid, warmup, run=kernel.run, **kwargs: run(*args, grid=grid, warmup=True, **kwargs)
for order in range(3):
    for dtype in (kernels.tl.float16, kernels.tl.bfloat16, kernels.tl.float32):
        kernels.test_a_formula_that_the_kernels_do_not_know_is_named(order, dtype, "meta")
    for formula in kernels.FORMULAS:
        kernels.test_a_dtype_that_the_formulas_do_not_know_is_named(order, formula, "meta")
kernels.test_a_dtype_that_tiles_do_not_know_is_named(kernels.load_kernel, "meta")
kernels.test_a_dtype_that_tiles_do_not_know_is_named(kernels.store_kernel, "meta")
kernels.test_an_axis_that_no_vector_lies_along_is_named("meta")
"""


@pytest.mark.parametrize("gpu", ["b200", "mi300x"])
def test_so_it_is_where_kernels_are_compiled(gpu: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = OFFLINE.format(gpu=gpu)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, cwd=ROOT, check=True)


@pytest.mark.parametrize("function", [plain.gelu, plain.dgelu, plain.d2gelu], ids=lambda function: function.__name__)
def test_a_formula_that_pytorch_code_does_not_know_is_named(function: object) -> None:
    with pytest.raises(ValueError, match=f"approximate must be one of {', '.join(map(repr, FORMULAS))}, got 'swish'"):
        function(torch.zeros(3), "swish")  # type: ignore[operator]


def test_a_formula_that_the_cpu_backend_does_not_know_is_named() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="got 'swish'"):
        bias_gelu_cpu.forward(x, None, 0, "swish")
    with pytest.raises(ValueError, match="got 'swish'"):
        bias_gelu_cpu.backward(x, x, None, 0, "swish", (True, False))
