"""The polynomials of the exact gate in 16 bits, as numbers: kernels (device.py) and compiled.py both take them here.

They are minimax fits, which `python -m perf fit` makes and measures. Here is neither Triton nor PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LIFT = 16
"""An exponential carries a factor 2^LIFT, and what it is multiplied by the inverse: neither underflows too soon."""


@dataclass(frozen=True)
class Exact:
    """The exact gate C on the negative half-line in one type; coefficients go from the highest power to the lowest.

    C(n) = exp2(P(n)), P with coefficients `log2_gate`; gelu'(n) = exp2(B(n)) S(n), B with coefficients `log2_bell`
    and S with coefficients `slope`. Both hold for n >= -reach; there and beyond, exp(-n^2 / 2) is nothing among the
    numbers of the type.

    B is near the logarithm of 2^LIFT exp(-n^2 / 2), but chosen for S to be short: a linear term there costs no
    instruction, and saves two. S(0) is exactly 2^-LIFT / 2: an error at 0 would be the same in every term of a bias
    gradient, and would not average out.
    """

    reach: float
    log2_gate: tuple[float, ...]
    log2_bell: tuple[float, float, float]
    slope: tuple[float, ...]


def _reach(doublings: int) -> float:
    """The |n| where exp(-n^2 / 2) has fallen to 2^-doublings."""
    return math.sqrt(2 * doublings * math.log(2))


EXACT: Mapping[str, Exact] = {  # by the names of the types, as PyTorch and Triton have them
    "float16": Exact(
        _reach(34),
        log2_gate=(3.2607313e-05, 0.00075087446, 0.0079566585, 0.05309295, -0.4591118, 1.1510742, -1.0),
        log2_bell=(-0.714, 0.9, LIFT),
        slope=(
            1.2666753e-09, 6.2409002e-09, 8.591821e-08, -2.8531554e-08, 1.6583648e-06, -2.3379628e-06, 7.415033e-06,
            7.6293945e-06,
        ),
    ),
    "bfloat16": Exact(
        _reach(127 + LIFT),
        log2_gate=(
            2.841764e-08, 1.7981863e-06, 4.901669e-05, 0.00076050113, 0.007528375, 0.051212553, -0.46196744,
            1.1497605, -1.0,
        ),
        log2_bell=(-0.71, 0.84, LIFT),
        slope=(
            -2.9889491e-12, 3.9389225e-10, 2.350031e-09, 5.5754644e-08, -2.9011389e-09, 1.5044296e-06, -2.0602918e-06,
            7.730533e-06, 7.6293945e-06,
        ),
    ),
}  # fmt: skip
