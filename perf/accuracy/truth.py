"""The float64 reference: GELU and its derivatives, and how far a result lies from them, in ulp.

GELU is an input times a gate, `gelu(u) = u C(u)` (Hendrycks and Gimpel, arXiv:1606.08415). Nothing cancels in the gate
or in its derivatives, so the tails keep their digits; a test holds them against multiple precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from triton_gelu.formulas import FORMULAS, Logistic, Normal

FAR = 1000.0  # every gate has long become 0 or 1


def gate(u: Tensor, approximate: str) -> tuple[Tensor, Tensor, Tensor]:
    """C, C' and C'' at a float64 `u`."""
    u = u.clamp(-FAR, FAR)
    formula = FORMULAS[approximate].gate
    if isinstance(formula, Normal):
        density = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        return torch.special.erfc(-u / math.sqrt(2)) / 2, density, -u * density
    if not isinstance(formula, Logistic):
        raise NotImplementedError(f"the truth of {approximate!r} is not known: its gate is {formula!r}")
    linear, cubic = formula.linear, formula.bend
    z, slope, bend = linear * (u + cubic * u**3), linear * (1 + 3 * cubic * u * u), linear * 6 * cubic * u
    rising, falling = torch.sigmoid(z), torch.sigmoid(-z)
    density = slope * rising * falling
    return rising, density, density * (bend / slope + slope * (falling - rising))


def gelu(u: Tensor, approximate: str, order: int = 0) -> Tensor:
    """The value (order 0), first (1) or second (2) derivative of GELU at a float64 `u`."""
    if order == 0:
        return u.clamp_min(-FAR) * gate(u, approximate)[0]
    first, second = _terms(u, approximate, order)
    return first + second


def largest_term(u: Tensor, approximate: str, order: int) -> Tensor:
    """The largest term of the sum that a derivative is, C + u C' or 2 C' + u C'': rounding errors scale with it."""
    first, second = _terms(u, approximate, order)
    return torch.maximum(first, second.abs())


def _terms(u: Tensor, approximate: str, order: int) -> tuple[Tensor, Tensor]:
    derivatives = gate(u, approximate)
    return order * derivatives[order - 1], u.clamp(-FAR, FAR) * derivatives[order]


def spacing(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """One ulp of `dtype` at |truth|: the distance between neighbouring numbers of its binade."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(truth.abs().clamp(info.tiny, info.max)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


def ulps(result: Tensor, truth: Tensor, scale: Tensor | None = None) -> Tensor:
    """|result - truth| in ulp of `truth` (or of `scale`); infinities and NaNs that agree count as 0, others as inf."""
    got = result.detach().double()
    error = (got - truth).abs() / spacing(truth if scale is None else scale, result.dtype)
    agree = (got == truth) | (got.isnan() & truth.isnan())
    return torch.where(agree, 0.0, torch.where(error.isnan(), math.inf, error))


def every(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
