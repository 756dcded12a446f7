"""What calls are given that are not just computed: a compiler, a mode or a sharded tensor an operator (`_operators`),
what wants to look inside, such as torch.func, plain PyTorch (`_transforms`), and autograd a function it records.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from triton_gelu import _fused, _operators, _seam, _transforms
from triton_gelu._checks import check


def unusual(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) where somebody looks on, or where a tensor is no numbers in memory."""
    dim = check(x, bias, dim, approximate)
    if torch.compiler.is_exporting():
        return _transforms.standard(x, bias, dim, approximate)
    if not _seam.operable(x, bias):
        return _transforms.forward(x, bias, dim, approximate)
    _reveal()
    if _seam.sharded(x):
        _register_sharding()
    y: Tensor = torch.ops.triton_gelu.forward(x, bias, dim, approximate)
    return y


@_seam.constant
def _reveal() -> None:
    _operators.reveal()


@_seam.constant
def _register_sharding() -> None:
    from triton_gelu import _sharding

    _sharding.register()


class _BiasGELU(Function):
    """gelu(x + bias) by a road that PyTorch can't look into; saves x and bias, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, call: _operators.Call) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.call = call
        return call.forward(x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        needs_x, needs_bias, _ = ctx.needs_input_grad
        if not _seam.ordinary(dy, x, bias):
            backward = _transforms.backward
        elif torch.is_grad_enabled():
            backward = _Backward.apply
        else:
            backward = ctx.call.road.backward
        return *backward(dy, x, bias, ctx.call.dim, ctx.call.approximate, needs_x, needs_bias), None


recorded = _seam.recorder(_BiasGELU)


class _Backward(Function):
    """The backward pass, to be differentiated itself; a third derivative is left to plain PyTorch."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        bias: Tensor | None,
        dim: int,
        approximate: str,
        needs_x: bool,
        needs_bias: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(dy, x, bias)
        ctx.set_materialize_grads(False)
        ctx.dim, ctx.approximate = dim, approximate
        road: Any = _operators.road(x)
        gradients: tuple[Tensor | None, Tensor | None] = road.backward(
            dy, x, bias, dim, approximate, needs_x, needs_bias
        )
        return gradients

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, vbias: Tensor | None) -> tuple[Tensor | None, ...]:
        if v is None and vbias is None:
            return (None,) * 7
        dy, x, bias = ctx.saved_tensors
        plain = torch.is_grad_enabled() or not _seam.ordinary(v, vbias, dy, x, bias)
        road = _transforms if plain or _operators.road(x) is not _fused else _fused
        gradients = road.double_backward(v, vbias, dy, x, bias, ctx.dim, ctx.approximate, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None
