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

    C(n) = exp2(P(n)), P with coefficients `log2_gate`; gelu'(n) = 2^LIFT exp(-n^2 / 2) S(n), S with coefficients
    `slope`. Both hold for n >= -reach; there and beyond, exp(-n^2 / 2) is nothing among the numbers of the type.
    """

    reach: float
    log2_gate: tuple[float, ...]
    slope: tuple[float, ...]


def _reach(doublings: int) -> float:
    """The |n| where exp(-n^2 / 2) has fallen to 2^-doublings."""
    return math.sqrt(2 * doublings * math.log(2))


EXACT: Mapping[str, Exact] = {  # by the names of the types, as PyTorch and Triton have them
    "float16": Exact(
        _reach(34),
        log2_gate=(3.2607313e-05, 0.00075087446, 0.0079566585, 0.05309295, -0.4591118, 1.1510742, -1.0),
        slope=(
            3.5338676e-11, 8.873581e-10, 9.762219e-09, 6.271309e-08, 2.6684245e-07, 8.1901607e-07, 1.9485321e-06,
            3.78823e-06, 1.21709945e-05, 7.6292918e-06,
        ),
    ),
    "bfloat16": Exact(
        _reach(127 + LIFT),
        log2_gate=(
            2.841764e-08, 1.7981863e-06, 4.901669e-05, 0.00076050113, 0.007528375, 0.051212553, -0.46196744,
            1.1497605, -1.0,
        ),
        slope=(
            5.5767518e-14, 3.7462403e-12, 1.0809762e-10, 1.7579391e-09, 1.7813747e-08, 1.1795507e-07, 5.251306e-07,
            1.6174673e-06, 3.5941998e-06, 1.2122045e-05, 7.6266797e-06,
        ),
    ),
}  # fmt: skip
