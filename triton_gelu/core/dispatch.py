"""Which road a call takes.

Three roads compute the same function: kernels (`_fused`), blocked PyTorch on a CPU (`_reference`), and plain PyTorch
(`_transforms`). An ordinary call takes the fastest, here, at the least cost. A compiler, a mode or a sharded tensor is
given an operator (`_operators`); what wants to look inside, such as torch.func, is given plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops import bias_gelu as _transforms
from . import compat_torch as _seam
from . import operators as _operators
from . import run as _fused
from .checks import check
from .compat_torch import ordinary
from .operators import Call, found


def bias_gelu(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) by the fastest road that is right for this call."""
    if not ordinary(x, bias):
        return _any(x, bias, check(x, bias, dim, approximate), approximate)
    call = found(x, bias, dim, approximate)
    if (x.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled():
        y: Tensor = _record(x, bias, call)
        return y
    return call.forward(x, bias)


def _any(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    if _seam.exporting():
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
    from . import sharding as _sharding

    _sharding.register()


class _BiasGELU(Function):
    """gelu(x + bias) by a road that PyTorch can't look into; saves x and bias, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.call = call
        return call.forward(x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        needs_x, needs_bias, _ = ctx.needs_input_grad
        if not ordinary(dy, x, bias):
            backward = _transforms.backward
        elif torch.is_grad_enabled():
            backward = _Backward.apply
        else:
            backward = ctx.call.road.backward
        return *backward(dy, x, bias, ctx.call.dim, ctx.call.approximate, needs_x, needs_bias), None


_record = _seam.recorder(_BiasGELU)


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
        plain = torch.is_grad_enabled() or not ordinary(v, vbias, dy, x, bias)
        road = _transforms if plain or _operators.road(x) is not _fused else _fused
        gradients = road.double_backward(v, vbias, dy, x, bias, ctx.dim, ctx.approximate, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None
