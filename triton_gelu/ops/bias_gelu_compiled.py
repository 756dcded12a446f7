"""`bias_gelu` as a compiled graph for a GPU holds it: ordinary operations, which a compiler fuses with what is beside.

Where nothing is, the graph holds the kernels' backward pass instead (core/graph.py): they write dx and sum dbias in
one pass over memory, and a compiler takes two.
"""

from __future__ import annotations

from torch import Tensor

from ..core import compat_torch
from ..core.declare import Tensors
from ..core.dispatch import Backend
from ..formulas import compiled
from . import vectors


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in x's dtype."""
    return compiled.value(vectors.add(x, bias, dim), approximate, x.dtype).to(x.dtype)


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: tuple[bool, bool]
) -> Tensors:
    """dx and dbias, each if it is needed."""
    dx, dbias = gradients(dy, x, bias, bias if needs[1] else None, dim, approximate)
    return dx if needs[0] else None, dbias


def gradients(
    dy: Tensor, x: Tensor, added: Tensor | None, bias: Tensor | None, dim: int, approximate: str
) -> tuple[Tensor, Tensor | None]:
    """dx, where y = gelu(x + added), and its sum that is the gradient of a bias, if one is given.

    The sum is that of dx as it is stored, rounded, which is what PyTorch's autograd adds up, too: if there were two
    numbers for each element, a compiler would compute, or store, both.
    """
    shape, origin = x.shape, compat_torch.origin(x)
    # Else more kernels than one may need the slope, in shapes of their own.
    alone = origin is not None and not origin.shared and compat_torch.is_pointwise(dy)
    rows = dim == x.ndim - 1 and x.is_contiguous() and dy.is_contiguous()
    if alone and origin is not None and origin.ndim == 2 < x.ndim and rows:
        # As the product has it: kernels that see one tensor in two shapes don't share what they compute.
        dy, x, dim = dy.view(-1, shape[-1]), x.view(-1, shape[-1]), 1
    u = vectors.add(x, added, dim)
    slope = compiled.slope(u, approximate, x.dtype) if alone else compiled.short_slope(u, approximate)
    dx = (slope * dy.to(u.dtype)).to(x.dtype)  # in this order, to lie as x does
    if origin is not None and not origin.shared and dx.stride() == x.stride():
        dx = dx.as_strided(dx.shape, dx.stride())  # stored now, as it will be for a product: no wider number is
    dbias = None if bias is None else vectors.total(dx, bias, dim, u.dtype)
    return dx.view(shape), dbias


COMPILED = Backend("PyTorch, for a compiler", forward, backward)
