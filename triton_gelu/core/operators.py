"""The operators that PyTorch sees where it wants one: under a compiler, in a mode, in a sharded tensor.

`torch.ops.triton_gelu.forward`, `backward` and `double_backward` take the fastest road in eager mode, on every device.
A compiler looks into them: on a GPU it finds the kernels, elsewhere plain PyTorch, which it fuses with its neighbours.
An output that is not needed is an empty tensor.

What is found out of a call is kept for all like it, and `found` again here and in plain eager calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..ops import bias_gelu as _transforms
from ..ops import bias_gelu_cpu as _reference
from . import compat_torch as _seam
from . import run as _fused
from .checks import check

ROADS: dict[str, ModuleType] = {"kernels": _fused, "blocks": _reference, "plain": _transforms}
MOST_CALLS = 4096


@dataclass(frozen=True)
class Call:
    """What was found out about calls of one kind: that the arguments fit, and the road."""

    dim: int
    approximate: str
    road: ModuleType
    forward: Callable[[Tensor, Tensor | None], Tensor]


_calls: dict[object, Call] = {}


def road(x: Tensor) -> ModuleType:
    """The module of the fastest eager `forward` and `backward` for tensors like x."""
    return ROADS[_seam.road(x)]


def found(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Call:
    """What there is to know of a call on real tensors like these. The arguments of the first of a kind are checked."""
    like_bias = None if bias is None else (bias.shape, bias.dtype, bias.device)
    kind = (x.shape, x.stride(), x.dtype, x.device, like_bias, dim, type(dim), approximate)  # True and 1.0 equal 1
    try:
        return _calls[kind]
    except (KeyError, TypeError):  # what can't be hashed is no formula, as `check` will say
        dim = check(x, bias, dim, approximate)
    if len(_calls) >= MOST_CALLS:
        _calls.clear()
    module = road(x)
    forward: Callable[..., Tensor] = partial(module.forward, dim=dim, approximate=approximate)
    if module is _fused:
        forward = _fused.forward_on(x.device, dim, approximate)
    call = _calls[kind] = Call(dim, approximate, module, forward)
    return call


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias)."""
    if type(x) in _seam.EXACT:
        return found(x, bias, dim, approximate).forward(x, bias)
    y: Tensor = _road(x).forward(x, bias, dim, approximate)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """dx and dbias."""
    dx, dbias = _road(x).backward(dy, x, bias, dim, approximate, *needs)
    return _or_empty(dx, x), _or_empty(dbias, x)


def double_backward(
    v: Tensor | None,
    vbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `backward` for dy, x and bias, where those of dx and dbias are v and vbias (None: zero)."""
    module = _road(x)
    module = _fused if module is _fused else _transforms
    ddy, dx, dbias = module.double_backward(v, vbias, dy, x, bias, dim, approximate, (needs[0], needs[1], needs[2]))
    return _or_empty(ddy, x), _or_empty(dx, x), _or_empty(dbias, x)


def _road(x: Tensor) -> ModuleType:
    """The road inside an operator, where a compiler may be looking: then x is no real tensor."""
    module = road(x)
    if type(x) in _seam.EXACT:
        return module
    if module is not _fused or _seam.INTERPRETED:
        return _transforms
    from . import graph as _graph

    return _graph


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


def _fake_forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    return _empty(x, needs[0], x), _empty(bias, needs[1], x)


def _fake_double_backward(
    v: Tensor | None,
    vbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, needs[0], x), _empty(x, needs[1], x), _empty(bias, needs[2], x)


def _empty(like: Tensor | None, needed: bool, x: Tensor) -> Tensor:
    if like is None or not needed:
        return x.new_empty(0)
    return torch.empty_like(like, memory_format=torch.preserve_format if like is x else torch.contiguous_format)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.dim, ctx.approximate = inputs
    ctx.save_for_backward(x, bias)


def _differentiate_forward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:2])
    gradients = torch.ops.triton_gelu.backward(dy, *ctx.saved_tensors, ctx.dim, ctx.approximate, needs)
    return *_needed(gradients, needs), None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, x, bias, ctx.dim, ctx.approximate, ctx.needs = inputs
    ctx.save_for_backward(dy, x, bias)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, *vs: Tensor | None) -> tuple[Tensor | None, ...]:
    vs, needs = _needed(vs, ctx.needs), list(ctx.needs_input_grad[:3])
    if vs == (None, None):
        return (None,) * 6
    gradients = torch.ops.triton_gelu.double_backward(*vs, *ctx.saved_tensors, ctx.dim, ctx.approximate, needs)
    return *_needed(gradients, needs), None, None, None


def _needed(gradients: tuple[Tensor | None, ...], needs: list[bool]) -> tuple[Tensor | None, ...]:
    return tuple(g if needed else None for g, needed in zip(gradients, needs, strict=True))


def _register(function: Callable[..., Any], fake: Callable[..., Any], schema: str) -> Any:
    operator = custom_op(f"triton_gelu::{function.__name__}", function, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


@cache
def reveal() -> None:
    """Let compilers look into the operators, as torch.library.triton_op does at once, for seconds of imports."""
    for operator, function in OPERATORS.items():
        _seam.let_compilers_look_into(operator, function)


_X = "Tensor x, Tensor? bias, int dim, str approximate"
OPERATORS: dict[Any, Callable[..., object]] = {
    _register(forward, _fake_forward, f"({_X}) -> Tensor"): forward,
    _register(backward, _fake_backward, f"(Tensor dy, {_X}, bool[] needs) -> (Tensor, Tensor)"): backward,
    _register(
        double_backward,
        _fake_double_backward,
        f"(Tensor? v, Tensor? vbias, Tensor dy, {_X}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    ): double_backward,
}
_forward, _backward, _ = OPERATORS
_forward.register_autograd(_differentiate_forward, setup_context=_save_forward)
_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
