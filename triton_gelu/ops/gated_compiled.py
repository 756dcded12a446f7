"""Gated GELUs as a compiled graph for a GPU holds them: ordinary operations, as in bias_gelu_compiled.py.

Where nothing is beside them the graph holds the kernels' backward pass instead, which writes the halves of a joined
gradient where they belong. A compiler computes both halves for every element of what it joins.
"""

from __future__ import annotations

from torch import Tensor

from ..core.declare import Tensors
from ..formulas import compiled
from . import bias_gelu_compiled, vectors
from .halves import halves, joined

NAME = bias_gelu_compiled.COMPILED.name


def forward(
    x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None, dim: int, approximate: str
) -> Tensor:
    """gelu(x + bias) (other + other_bias) in x's dtype."""
    u, w = vectors.add(x, bias, dim), vectors.add(other, other_bias, dim)
    return (compiled.value(u, approximate, x.dtype) * w).to(x.dtype)


def joined_forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str, activated: str) -> Tensor:
    """The same of the halves of x + bias."""
    u, w = halves(vectors.add(x, bias, dim), dim, activated)
    return (compiled.value(u, approximate, x.dtype) * w).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool, bool],
) -> Tensors:
    """The gradients of x, other, bias and other_bias, each if it is needed; sums are those of what is stored."""
    u, w = vectors.add(x, bias, dim), vectors.add(other, other_bias, dim)
    dx, dother = _gradients(dy, u, w, approximate, x)
    dbias, dother_bias = (
        vectors.total(terms, vector, dim, u.dtype) if needed and vector is not None else None
        for terms, vector, needed in ((dx, bias, needs[2]), (dother, other_bias, needs[3]))
    )
    return dx if needs[0] else None, dother if needs[1] else None, dbias, dother_bias


def joined_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, activated: str, needs: tuple[bool, bool]
) -> Tensors:
    """dx and dbias, each if it is needed."""
    u, w = halves(vectors.add(x, bias, dim), dim, activated)
    dx = joined(*_gradients(dy, u, w, approximate, x), dim, activated)
    dbias = vectors.total(dx, bias, dim, u.dtype) if needs[1] and bias is not None else None
    return dx if needs[0] else None, dbias


def _gradients(dy: Tensor, u: Tensor, w: Tensor, approximate: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of w gelu(u) for u and w, in x's dtype."""
    dy = dy.to(u.dtype)
    du = compiled.short_slope(u, approximate) * w * dy
    return du.to(x.dtype), (compiled.value(u, approximate, x.dtype) * dy).to(x.dtype)
