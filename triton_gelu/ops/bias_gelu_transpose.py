"""bias_gelu of [N, C, L], transposed to [N, L, C], plus a position [L, C]: from a convolution to a transformer.

A kernel reads x once and writes y once; its backward pass reads dy and x once and writes dx once. They serve plain
eager calls on devices that Triton drives. All else and the derivative of a derivative are made of `bias_gelu` and
PyTorch's own operations: right, and a pass more. Not so in a compiler's graph of an encoder, where Inductor fuses
transposition and position with the LayerNorm behind them: there a kernel of our own was tried, and saved nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..core import compat_torch as _seam
from ..core import dispatch as _ops
from ..core import operators as _operators
from ..core import run as _fused
from ..core.checks import check_transposed
from ..core.matrices import Ints
from ..core.run import Launcher, Run, on
from . import bias_gelu_transpose_plan as _plan

Types = tuple[Any, ...]  # of x, bias, ...; None where there is no such tensor


def bias_gelu_transpose(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
    """gelu(x + bias).transpose(1, 2) + position by the fastest road that is right for this call."""
    check_transposed(x, bias, position, approximate)
    inputs = x, bias, position
    if not (_seam.ordinary(*inputs) and _operators.road(x) is _fused and x.stride(2) == 1 and x.numel()):
        return composed(*inputs, approximate)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        y: Tensor = _record(*inputs, approximate)
        return y
    return forward(*inputs, approximate)


def composed(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
    """The same as operations that can be traced, transformed and differentiated to any order."""
    y = _ops.bias_gelu(x, bias, 1, approximate).transpose(1, 2)
    if position is not None:
        y = (position + y).to(x.dtype)  # position first: eager PyTorch then writes the sum as it is wanted
    return y.contiguous()


def forward(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
    """The same in one launch."""
    y = x.new_empty((x.shape[0], x.shape[2], x.shape[1]))
    run = _plan_forward(x.shape, x.stride(), _types(x, bias, position), x.device, _seam.driver(), approximate)
    run((x, _contiguous(bias), _contiguous(position), y))
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias, each if it is needed, in one launch and, at most, one small sum."""
    dy = dy if dy.stride(2) == 1 else dy.contiguous()
    types = _types(x, bias, dy)
    run, slabs, finish = _plan_backward(
        x.shape, x.stride(), dy.stride(), types, x.device, _seam.driver(), approximate, needs_x, needs_bias
    )
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
    dbias = torch.empty_like(bias, memory_format=torch.contiguous_format) if bias is not None and needs_bias else None
    partial = x.new_empty((slabs, x.shape[1]), dtype=torch.float32) if finish else dbias
    run((dy, x, _contiguous(bias), dx, partial))
    if finish:
        finish((partial, dbias))
    return dx, dbias


class _BiasGELUTranspose(Function):
    """Saves x, bias and position, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias, position)
        ctx.approximate = approximate
        return forward(x, bias, position, approximate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, position = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not _seam.ordinary(dy, x, bias, position):
            return *_composed_backward(dy, x, bias, position, ctx.approximate, needs), None
        needs_x, needs_bias, needs_position = needs
        dx = dbias = None
        if needs_x or needs_bias:
            dx, dbias = backward(dy, x, bias, ctx.approximate, needs_x, needs_bias)
        return dx, dbias, _sum(dy, position) if needs_position else None, None


_record = _seam.recorder(_BiasGELUTranspose)


def _composed_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients of `composed`, which can be differentiated, batched and transformed themselves."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = composed(x, bias, position, approximate)
    wanted = [t for t, needed in zip((x, bias, position), needs, strict=True) if t is not None and needed]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    return [next(gradients) if needed else None for needed in needs]


def _sum(dy: Tensor, position: Tensor) -> Tensor:
    return dy.sum(0, dtype=torch.promote_types(dy.dtype, position.dtype)).to(position.dtype)


def _types(*tensors: Tensor | None) -> Types:
    return tuple([None if t is None else t.dtype for t in tensors])


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@functools.lru_cache(maxsize=1024)
def _plan_forward(
    shape: torch.Size, x: Ints, types: Types, device: torch.device, driver: object, approximate: str
) -> Launcher:
    """What to launch for tensors like these; the kernels compiled for them are kept with it."""
    return on(device, Run(_plan.forward(shape, x, approximate, _fused.target(device)), device, _seam.transpose_kernels))


@functools.lru_cache(maxsize=1024)
def _plan_backward(
    shape: torch.Size,
    x: Ints,
    dy: Ints,
    types: Types,
    device: torch.device,
    driver: object,
    approximate: str,
    needs_x: bool,
    needs_bias: bool,
) -> tuple[Launcher, int, Launcher | None]:
    """The same; the number of slabs of partial sums, and what adds them up, if there is something to add."""
    plan = _plan.backward(
        shape, x, dy, approximate, _fused.target(device), needs_bias=needs_bias and types[1] is not None
    )
    finish = None if plan.reduce is None else on(device, Run(plan.reduce, device, _seam.transpose_kernels))
    return on(device, Run(plan.main, device, _seam.transpose_kernels)), plan.partials, finish
