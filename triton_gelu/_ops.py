"""The operator, its autograd, and which road a call takes.

Three roads compute the same function: kernels (`_fused`), blocked PyTorch on a CPU, and plain PyTorch (`_reference`).
A plain eager call takes one of the first two. Whatever wants to look inside (a compiler, a transform, a mode, a tensor
subclass, a derivative of a derivative) is given the plain maths, which PyTorch can trace and differentiate to any order.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from triton_gelu import _fused, _reference, _seam


def bias_gelu(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) by the fastest road that is right for this call. Arguments are checked; `dim` is not negative."""
    road = _road(x) if _seam.ordinary(x, bias) else None
    if road is None:
        return plain(x, bias, dim, approximate)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        y: Tensor = _BiasGELU.apply(x, bias, dim, approximate, road)
        return y
    forward: Tensor = road.forward(x, bias, dim, approximate)
    return forward


def _road(x: Tensor) -> ModuleType | None:
    if x.dtype is not torch.float64 and _seam.triton_drives(x.device.type):
        return _fused
    return _reference if x.device.type == "cpu" else None


class _BiasGELU(Function):
    """gelu(x + bias) by a road that PyTorch can't look into; saves x and bias, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dim: int, approximate: str, road: ModuleType) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.dim, ctx.approximate, ctx.road = dim, approximate, road
        y: Tensor = road.forward(x, bias, dim, approximate)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, bias = ctx.saved_tensors
        needs_x, needs_bias = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or not _seam.ordinary(dy, x, bias):
            dx, dbias = plain_backward(dy, x, bias, ctx.dim, ctx.approximate)
        else:
            dx, dbias = ctx.road.backward(dy, x, bias, ctx.dim, ctx.approximate, needs_x, needs_bias)
        return dx if needs_x else None, dbias if needs_bias else None, None, None, None


def plain(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in PyTorch operators."""
    return _derivative(_sum(x, bias, dim), approximate, 0).to(x.dtype)


def plain_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str
) -> tuple[Tensor, Tensor | None]:
    """dx and dbias in PyTorch operators."""
    du = dy * _derivative(_sum(x, bias, dim), approximate, 1)
    if bias is None:
        return du.to(x.dtype), None
    others = [d for d in range(x.ndim) if d != dim]
    return du.to(x.dtype), (du.sum(others) if others else du).to(bias.dtype)


def _sum(x: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    """x + bias, in fp32 (fp64 for fp64 x)."""
    accumulate = torch.float64 if x.dtype is torch.float64 else torch.float32
    if bias is None:
        return x.to(accumulate)
    return x.to(accumulate) + bias.to(accumulate).view(-1, *[1] * (x.ndim - dim - 1))


def _derivative(u: Tensor, approximate: str, order: int) -> Tensor:
    """The derivative of gelu of some order, differentiated by the next one rather than through its formula."""
    if order == 2:  # smooth as it is written
        return _reference.d2gelu(u, approximate)
    function = _Derivative if torch.compiler.is_compiling() else _ForwardDerivative
    y: Tensor = function.apply(u, approximate, order)
    return y


class _Derivative(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, approximate: str, order: int) -> Tensor:
        return (_reference.gelu, _reference.dgelu)[order](u, approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:
        u, ctx.approximate, ctx.order = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return dy * _derivative(u, ctx.approximate, ctx.order + 1), None, None


class _ForwardDerivative(_Derivative):
    """The same with a forward mode, which Dynamo refuses."""

    @staticmethod
    def jvp(ctx: Any, du: Tensor, *_: None) -> Tensor:
        (u,) = ctx.saved_tensors
        return du * _derivative(u, ctx.approximate, ctx.order + 1)
