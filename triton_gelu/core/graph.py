"""The kernels as a compiler's graph holds them: planned like eager launches, but sizes may be symbols.

Where a compiler knows a size only as a symbol it is asked for as little as the plan needs, so that one graph serves all
sizes; partial sums are left to the compiler, which fuses the last of them with whatever comes next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.library import wrap_triton

from ..ops import bias_gelu_plan as _plan
from . import compat_torch as _seam
from .launch import Launch
from .matrices import Matrices, matrices_with_result
from .run import dense, target


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias)."""
    y = torch.empty_like(x)
    if x.numel():
        (x,), walk = _walk(y, bias, dim, x)
        launch = _plan.forward(walk, x.itemsize, approximate, target(x.device))
        _run(launch, x, bias if bias is None else bias.contiguous(), y)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias, each if it is needed."""
    dx = torch.empty_like(x)
    needs_bias = needs_bias and bias is not None
    if not x.numel():
        return dx if needs_x else None, torch.zeros_like(bias) if needs_bias and bias is not None else None
    (dy, x), walk = _walk(dx, bias, dim, dy, x)
    plan = _plan.backward(
        Symbolic(walk.batch, walk.rows, walk.cols, walk.bias, (walk.strides[0], *walk.strides)),
        x.itemsize, approximate, target(x.device), needs_dy=False, needs_x=needs_x, needs_bias=needs_bias,
    )  # fmt: skip
    partial = x.new_empty((plan.partials, walk.bias_size), dtype=torch.float32) if needs_bias else None
    _run(plan.main, dy, None, None, x, bias if bias is None else bias.contiguous(), None, dx, partial)
    dbias = None if partial is None or bias is None else partial.sum(0).to(bias.dtype)
    return dx if needs_x else None, dbias


@dataclass(frozen=True)
class Symbolic(Matrices):
    """Matrices whose sizes may be symbols."""

    def alignment(self, widest: int) -> int:
        """The largest power of two that divides the width and every stride, whatever the symbols stand for."""
        sizes = [self.cols, *(stride for pair in self.strides for stride in pair)]
        while not all(statically_known_true(size % widest == 0) for size in sizes):
            widest //= 2
        return widest


def _walk(like: Tensor, bias: Tensor | None, dim: int, *tensors: Tensor) -> tuple[tuple[Tensor, ...], Symbolic]:
    """The tensors, copied where they have no matrices in common with `like`, which is dense, and their matrices."""
    along = None if bias is None else dim
    walk, copies = matrices_with_result(like.stride(), like.shape, along, *(t.stride() for t in tensors))
    if copies:
        tensors = tuple(dense(t, like) for t in tensors)
    return tensors, Symbolic(**vars(walk))


def _run(launch: Launch, *tensors: Tensor | None) -> None:
    kernel: Any = wrap_triton(getattr(_seam.kernels, launch.kernel))
    kernel[launch.grid](*tensors, *launch.integers, **dict(launch.constants), num_warps=launch.num_warps)
