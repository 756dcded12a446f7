"""GELU and its first derivative in PyTorch operations that a compiler for GPUs fuses, and makes few instructions of.

In 16 bits these are the formulas of the kernels (device.py), spelled in what becomes single instructions: exp2, rsqrt,
and for a reciprocal the square of rsqrt, where a division would be five. In other types they are those of plain.py.

`u` is float32 or float64, and `dtype` the type that a result is stored in. Below 2^-120, logistic gates may flush.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import Logistic, Normal, plain
from .plain import CLOSED, LOG2_E, formula_of
from .polynomials import EXACT, Exact


def value(u: Tensor, approximate: str, dtype: torch.dtype) -> Tensor:
    """gelu(u)."""
    formula = formula_of(approximate)
    if dtype.itemsize != 2:
        return plain.gelu(u, approximate)
    if isinstance(formula.gate, Normal):  # relu(u) + n C(n), n = -|u|
        exact = _exact(dtype)
        n = _negative(u, exact)
        return torch.addcmul(u.relu(), n, torch.exp2(_horner(n, exact.log2_gate)))
    u = u.clamp_min(CLOSED)
    root = _root(u, formula.gate)
    return u * root * root


def slope(u: Tensor, approximate: str, dtype: torch.dtype) -> Tensor:
    """gelu'(u), in few instructions. It is made of many operations: see `short_slope`."""
    formula = formula_of(approximate)
    if dtype.itemsize != 2:
        return plain.dgelu(u, approximate)
    if isinstance(formula.gate, Normal):
        exact = _exact(dtype)
        n = _negative(u, exact)
        tail = torch.exp2(_horner(n, exact.log2_bell)) * _horner(n, exact.slope)
        return torch.where(u < 0, tail, 1 - tail)
    u = u.clamp(CLOSED, formula.opened)
    root = _root(u, formula.gate)
    gate = root * root
    return gate + plain.odd_cubic(u, formula.gate.linear, 3 * formula.gate.cubic) * gate * (1 - gate)


def short_slope(u: Tensor, approximate: str) -> Tensor:
    """gelu'(u), in few operations.

    Of what has more than 30, Inductor stores an intermediate value, in float32, where more than one kernel needs it.
    """
    formula = formula_of(approximate)
    if isinstance(formula.gate, Normal):
        w = (u * -math.sqrt(0.5)).clamp(CLOSED, -CLOSED)
        bell = w * torch.exp(-w * w)
        return torch.addcmul(torch.erfc(w), bell, u.new_full((), -2 / math.sqrt(math.pi))) * 0.5
    return plain.dgelu(u, approximate)


def short_value(u: Tensor, approximate: str, dtype: torch.dtype) -> Tensor:
    """gelu(u), in few operations."""
    if not isinstance(formula_of(approximate).gate, Normal):
        return value(u, approximate, dtype)
    return u.clamp_min(CLOSED) * (torch.erfc(u * -math.sqrt(0.5)) * 0.5)


def shortest_slope(u: Tensor, approximate: str, dtype: torch.dtype) -> Tensor:
    """gelu'(u), in the fewest operations that 16 bits allow: two sums and two products are beside a gated GELU's."""
    gate = formula_of(approximate).gate
    if dtype.itemsize != 2 or not isinstance(gate, Logistic):
        return short_slope(u, approximate)
    u = u.clamp(CLOSED, formula_of(approximate).opened)
    rising = torch.sigmoid(plain.odd_cubic(u, gate.linear, gate.cubic))
    return torch.addcmul(rising, plain.odd_cubic(u, gate.linear, 3 * gate.cubic), rising - rising * rising)


def _exact(dtype: torch.dtype) -> Exact:
    """The polynomials of a 16-bit type."""
    return EXACT[str(dtype).removeprefix("torch.")]


def _negative(u: Tensor, exact: Exact) -> Tensor:
    """n = -|u|, no further than the polynomials reach."""
    return (-u.abs()).clamp_min(-exact.reach)


def _root(u: Tensor, gate: Logistic) -> Tensor:
    """The root of a logistic gate, 1 / sqrt(1 + exp(-z))."""
    decay = torch.exp2(plain.odd_cubic(u, -gate.linear * LOG2_E, -gate.cubic * LOG2_E))
    return torch.rsqrt(decay + 1)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """The polynomial, highest power first: a fused multiplication and addition for each."""
    first, second, *rest = coefficients
    p = x * first + second
    for coefficient in rest:
        p = torch.addcmul(x.new_full((), coefficient), p, x)
    return p
