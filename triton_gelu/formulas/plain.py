"""GELU and its derivatives in PyTorch operations that can be traced, batched and transformed.

GELU is an input times a gate, ``y = u C(u)`` with ``u = x + bias``; everything else is the product rule:
``y' = C + u C'`` and ``y'' = 2 C' + u C''``. The gate (formulas/__init__.py) is

* the normal distribution function, ``C = Phi(u)``, ``C' = phi(u)``; or
* a logistic curve of an odd cubic, ``C = s(z)``, ``z = u (linear + cubic u^2)``, and ``C' = z' s(z) s(-z)``.

Each factor keeps its relative accuracy where u is negative, so the tail needs no case of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import FORMULAS, Formula, Logistic, Normal, check_approximate

LOG2_E = math.log2(math.e)
"""exp(z) = exp2(z log2(e)): torch's exp2 takes half the time of its exp, and a constant takes up the factor. Not so in
the derivative: z log2(e) is rounded in coarser steps than z, which would there make "sigmoid" less exact than torch's.
"""

CLOSED = -1024.0
"""Here and below, every gate is exactly 0 in float32 and float64: with u clamped to it, no infinity meets a zero.

That holds for logistic gates with `linear` from 0.73 on, and a test holds it for every formula.
"""


def gelu(u: Tensor, approximate: str) -> Tensor:
    """u C(u), for float32 or float64 u."""
    formula = formula_of(approximate)
    if isinstance(formula.gate, Normal):
        a = u.abs().clamp_max(-CLOSED)
        return u.relu() - a * _normal_tail(a)
    return _logistic_value(u.clamp_min(CLOSED), formula.gate)


def dgelu(u: Tensor, approximate: str) -> Tensor:
    """The first derivative, C(u) + u C'(u)."""
    formula = formula_of(approximate)
    if isinstance(formula.gate, Normal):
        a = u.abs().clamp_max(-CLOSED)
        tail = _normal_tail(a) - a * _bell(a) * (1 / math.sqrt(2 * math.pi))
        return torch.where(u < 0, tail, 1 - tail)
    return _logistic_slope(u.clamp(CLOSED, formula.opened), formula.gate)


def d2gelu(u: Tensor, approximate: str) -> Tensor:
    """The second derivative, 2 C'(u) + u C''(u)."""
    formula = formula_of(approximate)
    u = u.clamp(CLOSED, -CLOSED)
    if isinstance(formula.gate, Normal):
        return _bell(u) * (2 - u * u) * (1 / math.sqrt(2 * math.pi))
    linear, cubic = formula.gate.linear, formula.gate.cubic
    z = odd_cubic(u, linear, cubic)
    dz = linear + 3 * cubic * u * u
    rising, falling = z.sigmoid(), z.neg().sigmoid()
    return rising * falling * (2 * dz + u * (6 * cubic * u + dz * dz * (falling - rising)))


def formula_of(approximate: str) -> Formula:
    """The formula of this name, with a gate that PyTorch code knows; ValueError or NotImplementedError otherwise."""
    check_approximate(approximate)
    formula = FORMULAS[approximate]
    if not isinstance(formula.gate, (Normal, Logistic)):
        raise NotImplementedError(f"PyTorch code knows no gate {formula.gate!r}, of formula {approximate!r}")
    return formula


def _logistic_value(u: Tensor, gate: Logistic) -> Tensor:
    """u s(z) = u / (1 + exp(-z))."""
    decay = torch.exp2(odd_cubic(u, -gate.linear * LOG2_E, -gate.cubic * LOG2_E))
    return torch.div(u, torch.add(decay, _number(1, decay)))


def _logistic_slope(u: Tensor, gate: Logistic) -> Tensor:
    """s(z) + u z' s(z) s(-z), with e = exp(z), s(z) = e / (1 + e), s(-z) = 1 / (1 + e)."""
    udz = odd_cubic(u, gate.linear, 3 * gate.cubic)
    e = torch.exp(odd_cubic(u, gate.linear, gate.cubic))
    d = torch.add(e, _number(1, e))
    rising = torch.div(e, d)
    return torch.addcmul(rising, rising, torch.div(udz, d))


def odd_cubic(u: Tensor, linear: float, cubic: float) -> Tensor:
    """u (linear + cubic u^2)."""
    factor = _number(linear, u)
    return torch.mul(u, torch.addcmul(factor, u, u, value=cubic) if cubic else factor)


def _number(value: float, like: Tensor) -> Tensor:
    """A number as a tensor of the same type."""
    return like.new_full((), value)


def _normal_tail(a: Tensor) -> Tensor:
    """Phi(-a) for a >= 0: compiled, a polynomial takes a third of the time of erfc."""
    if a.dtype == torch.float64:
        return torch.erfc(a * math.sqrt(0.5)) * 0.5
    w = MILLS_SCALE * a
    w = w / (1 + w)
    ratio = w * MILLS[-1] + MILLS[-2]
    for coefficient in MILLS[-3::-1]:
        ratio = ratio * w + coefficient
    return ratio * _bell(a)


def _bell(u: Tensor) -> Tensor:
    """exp(-u^2 / 2)."""
    return torch.exp(u * u * -0.5)


MILLS_SCALE = 0.25
"""A power of two, which rounds nothing, and of these the one that asks for the fewest terms below."""


def _interpolate_mills(degree: int, farthest: float) -> list[float]:
    """Mills' ratio Phi(-a) / exp(-a^2 / 2) for a <= farthest, as 1/2 + w P(w) with w = v / (1 + v), v = MILLS_SCALE a.

    Returns the coefficients, lowest first. P passes through the ratio at Chebyshev nodes; it needs no other fit.
    """
    end = 1 - 1 / (1 + MILLS_SCALE * farthest)
    nodes = [end / 2 * (1 + math.cos((k + 0.5) * math.pi / degree)) for k in range(degree)]
    values = []
    for w in nodes:
        a = w / (1 - w) / MILLS_SCALE
        values.append((math.erfc(a * math.sqrt(0.5)) * math.exp(a * a / 2) / 2 - 0.5) / w)
    for order in range(1, degree):  # Newton's divided differences
        for i in range(degree - 1, order - 1, -1):
            values[i] = (values[i] - values[i - 1]) / (nodes[i] - nodes[i - order])
    powers: list[float] = []
    for node, difference in zip(reversed(nodes), reversed(values), strict=True):  # times (w - node), plus difference
        powers = [above - node * here for above, here in zip([0.0, *powers], [*powers, 0.0], strict=True)]
        powers[0] += difference
    return [0.5, *powers]


MILLS = _interpolate_mills(degree=7, farthest=14.5)
"""Right to 2^-24 (4 + a^2 / 2) of the ratio: rounding a^2 / 2 alone costs the exponential as much. From
a = 14.5 on, that is 0 in float32.
"""
