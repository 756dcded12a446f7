"""Whether u sigmoid(slope u) is right under some name on one backend: `check_formula.py NAME SLOPE BACKEND`.

A process of its own, since it runs with another copy of the package than the tests. The truth is float64, written out
here once more. Inputs are such that x + bias is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import triton_gelu
from triton_gelu.ops.bias_gelu import BIAS_GELU

NAME, SLOPE, BACKEND = sys.argv[1], float(sys.argv[2]), sys.argv[3]
ON_GPU = BACKEND == "Triton kernels" and torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ROWS, COLS = 24, 256
KEPT = 2.0**-120  # smaller results may be flushed to zero
FLOAT32 = {"Triton kernels": 2.0**-20}  # relative error allowed in float32; PyTorch's exponentials err more in the tail


def main() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        if dtype == torch.float64 and BACKEND != "plain PyTorch":
            continue
        x, bias, dy, ddx = tensors(dtype)
        y = call()(x, bias)
        u = x.double() + bias.double()
        rising, falling = torch.sigmoid(SLOPE * u), torch.sigmoid(-SLOPE * u)
        first = SLOPE * rising * falling
        second = SLOPE * first * (falling - rising)
        check("value", y, u * rising, (u * rising).abs())
        slope, size = rising + u * first, rising + (u * first).abs()
        if BACKEND == "torch.compile":  # AOTAutograd differentiates once
            dx, dbias = torch.autograd.grad(y, (x, bias), dy)
        else:
            dx, dbias = torch.autograd.grad(y, (x, bias), dy, create_graph=True)
        check("dx", dx, dy * slope, dy.abs() * size)
        check("dbias", dbias, (dy * slope).sum(0), (dy.abs() * size).sum(0))
        if BACKEND != "torch.compile":
            ddy, d2x = torch.autograd.grad(dx, (dy, x), ddx)
            check("ddy", ddy, ddx * slope, ddx.abs() * size)
            bend, size = 2 * first + u * second, 2 * first + (u * second).abs()
            check("d2x", d2x, ddx * dy * bend, (ddx * dy).abs() * size)


def tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, bias, dy and the gradient of dx; x reaches into the far tail, and on the other side beyond it."""
    torch.manual_seed(0)
    x = torch.where(torch.rand(ROWS, COLS) < 0.5, torch.randn(ROWS, COLS) * 2, torch.rand(ROWS, COLS) * 100 - 60)
    bias = torch.randint(-8, 9, (COLS,)) / 8
    made = ((x * 8).round() / 8, bias, torch.randn(ROWS, COLS), torch.randn(ROWS, COLS))
    x, bias, dy, ddx = (each.to(DEVICE, dtype) for each in made)
    return x.requires_grad_(), bias.requires_grad_(), dy.requires_grad_(), ddx


def call() -> Callable[[Tensor, Tensor], Tensor]:
    """The function on trial, by the backend that was asked for."""
    if BACKEND == "torch.compile":
        return torch.compile(lambda x, bias: triton_gelu.bias_gelu(x, bias, approximate=NAME), fullgraph=True)
    if BACKEND == "plain PyTorch":
        return lambda x, bias: BIAS_GELU.plain.forward(x, bias, 1, NAME)
    chosen = BIAS_GELU.choose(torch.empty(1, device=DEVICE)).backend.name
    assert chosen == BACKEND, chosen
    return lambda x, bias: triton_gelu.bias_gelu(x, bias, approximate=NAME)


def check(what: str, result: Tensor, truth: Tensor, size: Tensor) -> None:
    """`size` is what rounding errors scale with: the sum of the absolute terms."""
    info = torch.finfo(result.dtype)
    relative = {torch.float32: FLOAT32.get(BACKEND, 2.0**-15), torch.float64: 2.0**-40}.get(result.dtype, info.eps)
    error = (result.double() - truth).abs()
    allowed = relative * size + max(KEPT, info.smallest_normal * info.eps if info.bits == 16 else 0)
    worst = (error / allowed).max().item()
    assert worst <= 1, f"{what} in {result.dtype} by {BACKEND}: {worst:.3g} times the error allowed"


print(triton_gelu.__file__)
main()
print("right")
