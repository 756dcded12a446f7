"""The operator bias_gelu, GELU of x + bias: its declaration, and its mathematics in plain PyTorch.

The plain functions can be traced, batched, and differentiated forward and backward, to any order. Only the maths is
written in closed form. Two pointwise functions are differentiated by rule: `_Value`, gelu(u), and `_Slope`,
v gelu'(u), which is the derivative of the first in either mode. The rest is left to PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..core import compat_torch, compat_triton
from ..core.checks import check_dim
from ..core.declare import VECTOR, WHOLE, Arg, Option, Tensors
from ..core.dispatch import Backend, Kernels, cpu_support
from ..core.op import Op
from ..formulas import FORMULAS, Normal, check_approximate
from ..formulas import plain as formulas
from . import bias_gelu_cpu, bias_gelu_plan, vectors
from .bias_gelu_compiled import COMPILED


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in x's dtype; arithmetic in fp32, or fp64 for fp64 x."""
    return value(vectors.add(x, bias, dim), approximate).to(x.dtype)


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: tuple[bool, bool]
) -> Tensors:
    """dx and dbias, each if it is needed."""
    needs_x, needs_bias = needs
    u = vectors.add(x, bias, dim)
    du = slope(dy.to(u.dtype), u, approximate)
    dbias = vectors.total(du, bias, dim) if needs_bias and bias is not None else None
    return du.to(x.dtype) if needs_x else None, dbias


def double_backward(
    ddx: Tensor | None,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> Tensors:
    """The gradients of `backward` for dy, x and bias, where those of dx and dbias are ddx and ddbias (None: zero)."""
    u = vectors.add(x, bias, dim)
    v = vectors.add(torch.zeros_like(u) if ddx is None else ddx.to(u.dtype), ddbias, dim)
    du = bend(v * dy, u, approximate)
    return (
        slope(v, u, approximate).to(dy.dtype) if needs[0] else None,
        du.to(x.dtype) if needs[1] else None,
        vectors.total(du, bias, dim) if needs[2] and bias is not None else None,
    )


def standard(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in standard operators: what an exported graph holds."""
    return FORMULAS[approximate].standard(vectors.standard_sum(x, bias, dim)).to(x.dtype)


def value(u: Tensor, approximate: str) -> Tensor:
    """gelu(u)."""
    # These refuse functions with a forward mode, and differentiate formulas.
    if torch.compiler.is_dynamo_compiling() or compat_torch.is_functionalized():
        erfc = isinstance(FORMULAS[approximate].gate, Normal)
        return u * (torch.erfc(u * -math.sqrt(0.5)) * 0.5) if erfc else formulas.gelu(u, approximate)
    y: Tensor = _Value.apply(u, approximate)
    return y


def slope(v: Tensor, u: Tensor, approximate: str) -> Tensor:
    """v gelu'(u)."""
    du: Tensor = _Slope.apply(v, u, approximate)
    return du


def bend(v: Tensor, u: Tensor, approximate: str) -> Tensor:
    """v gelu''(u): smooth as it is written."""
    return v * formulas.d2gelu(u, approximate)


class _Value(Function):
    """gelu(u)."""

    @staticmethod
    def forward(u: Tensor, approximate: str) -> Tensor:
        backend = _faster_than_plain(u)
        return formulas.gelu(u, approximate) if backend is None else backend.forward(u, None, 0, approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        u, ctx.approximate = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return slope(dy, u, ctx.approximate), None

    @staticmethod
    def jvp(ctx: Any, du: Tensor, _: None) -> Tensor:
        (u,) = ctx.saved_tensors
        return slope(du, u, ctx.approximate)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], u: Tensor, approximate: str) -> tuple[Tensor, int]:
        return value(u, approximate), in_dims[0]


class _Slope(Function):
    """v gelu'(u)."""

    @staticmethod
    def forward(v: Tensor, u: Tensor, approximate: str) -> Tensor:
        backend = _faster_than_plain(u, v)
        if backend is None:
            return v * formulas.dgelu(u, approximate)
        dx, _ = backend.backward(v, u, None, 0, approximate, (True, False))
        assert dx is not None
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        v, u, ctx.approximate = inputs
        ctx.save_for_backward(v, u)
        ctx.save_for_forward(v, u)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, Tensor, None]:
        v, u = ctx.saved_tensors
        return slope(w, u, ctx.approximate), bend(w * v, u, ctx.approximate), None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor, du: Tensor, _: None) -> Tensor:
        v, u = ctx.saved_tensors
        return slope(dv, u, ctx.approximate) + bend(du * v, u, ctx.approximate)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], v: Tensor, u: Tensor, approximate: str
    ) -> tuple[Tensor, int]:
        v, u = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((v, u), in_dims[:2], strict=True)
        )
        return slope(v, u, approximate), 0


def _faster_than_plain(u: Tensor, *others: Tensor) -> Backend | None:
    """The backend that computes on u, in plain eager calls where that is another than plain PyTorch."""
    if not compat_torch.is_plain_eager(u, *others):
        return None
    backend = BIAS_GELU.choose(u).backend
    return None if backend is PLAIN else backend


def check_options(x: Tensor, dim: int, approximate: str) -> tuple[int, str]:
    """The options in canonical form; raises where they do not fit x."""
    check_approximate(approximate)
    return check_dim(dim, x), approximate


PLAIN = Backend("plain PyTorch", forward, backward, double_backward)
CPU = Backend("PyTorch, in cache-sized blocks", bias_gelu_cpu.forward, bias_gelu_cpu.backward, None, cpu_support)

BIAS_GELU = Op(
    "bias_gelu",
    [Arg("x", WHOLE), Arg("bias", VECTOR, optional=True)],
    WHOLE,
    [Option("dim", "int"), Option("approximate", "str")],
    dim=lambda dim, approximate: dim,
    check=check_options,
    kernels=Kernels(
        compat_triton.import_kernels(".bias_gelu_kernels", __package__),
        bias_gelu_plan.forward,
        bias_gelu_plan.backward,
        bias_gelu_plan.double_backward,
    ),
    backends=[CPU],
    plain=PLAIN,
    graph=COMPILED,
    standard=standard,
)
"""gelu(x + bias), its backward and double backward: see `triton_gelu.bias_gelu`."""
