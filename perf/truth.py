"""What GELU and its derivatives are, in float64, and how far a result lies from it, in ulp.

The formulas are written on a = |x| with nothing cancelling in the tails; a test holds them against multiple precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

# Significand bits and the least exponent of a normal number.
PRECISION = {torch.float16: (11, -14), torch.bfloat16: (8, -126), torch.float32: (24, -126)}


def gelu(x: Array, approximate: str, order: int = 0) -> Array:
    """The value (order 0), first (1) or second (2) derivative of GELU at float64 `x`."""
    with np.errstate(over="ignore", under="ignore"):
        a = np.minimum(np.abs(x), 1000.0)  # everything has vanished by 1000
        tail, density, bend = _exact(a) if approximate == "none" else _logistic(a, approximate)
        if order == 0:
            result: Array = np.maximum(x, 0.0) - a * tail
        elif order == 1:
            fall = tail - a * density
            result = np.where(x < 0, fall, 1 - fall)
        else:
            result = 2 * density + a * bend
    return np.where(np.isnan(x), np.nan, result)


def largest_term(x: Array, approximate: str, order: int) -> Array:
    """The largest term of the sum that a derivative is, C + x C' or 2 C' + x C'': rounding errors scale with it."""
    a = np.minimum(np.abs(x), 1000.0)
    tail, density, bend = _exact(a) if approximate == "none" else _logistic(a, approximate)
    if order == 1:
        return np.maximum(np.where(x < 0, tail, 1 - tail), a * density)
    return np.maximum(2 * density, np.abs(a * bend))


def _exact(a: Array) -> tuple[Array, Array, Array]:
    """C(-a), C'(a), C''(a) of the normal distribution."""
    tail = 0.5 * torch.special.erfc(torch.from_numpy(np.ascontiguousarray(a)) / math.sqrt(2)).numpy()
    density = np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return tail, density, -a * density


def _logistic(a: Array, approximate: str) -> tuple[Array, Array, Array]:
    """C(-a), C'(a), C''(a) of C = 1 / (1 + exp(-z))."""
    linear, cubic = (1.702, 0.0) if approximate == "sigmoid" else (2 * math.sqrt(2 / math.pi), 0.044715)
    cubic *= linear
    slope, bend = linear + 3 * cubic * a * a, 6 * cubic * a
    q = np.exp(-(linear * a + cubic * a * a * a))
    tail = q / (1 + q)
    density = slope * q / (1 + q) ** 2
    return tail, density, density * (bend / slope - slope * (1 - q) / (1 + q))


def spacing(truth: Array, dtype: torch.dtype) -> Array:
    """One ulp of `dtype` at `truth`: the distance between representable numbers of its binade."""
    bits, least = PRECISION[dtype]
    exponent = np.where(truth == 0, least, np.frexp(np.where(np.isfinite(truth), truth, 1.0))[1] - 1)
    spaces: Array = np.ldexp(1.0, np.maximum(exponent, least) - (bits - 1))
    return spaces


def ulps(result: torch.Tensor, truth: Array, scale: Array | None = None) -> Array:
    """|result - truth| in ulp of `truth` (or of `scale`); infinities and NaNs that agree count as 0, others as inf."""
    got = result.detach().double().numpy()
    with np.errstate(invalid="ignore"):
        error = np.abs(got - truth) / spacing(truth if scale is None else scale, result.dtype)
    agree = (got == truth) | (np.isnan(got) & np.isnan(truth))
    errors: Array = np.where(agree, 0.0, np.where(np.isnan(error), np.inf, error))
    return errors


def every(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 numbers of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def correctly_rounded(truth: Array, dtype: torch.dtype) -> Any:
    """`truth` rounded once to `dtype`, through integers rather than through float32."""
    unit = spacing(truth, dtype)
    return torch.from_numpy(np.where(np.isfinite(truth), np.rint(truth / unit) * unit, truth)).to(dtype)
