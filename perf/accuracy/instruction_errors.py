"""Triton's interpreter with its approximate instructions off by the most that is documented: the worst of all GPUs.

PTX ISA: ex2.approx.ftz.f32 is within 2^-22 and flushes subnormal results to zero; rcp.approx.ftz.f32 and
div.approx.f32 are within 2^-22, which is two ulp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

EXP2_ERROR = 2.0**-22
DIVISION_ERROR = 2.0**-22
SMALLEST_NORMAL = 2.0**-126


@contextmanager
def approximate(sign: int) -> Iterator[None]:
    """Kernels interpreted in here get exponentials and quotients too high (1), too low (-1) or as they are (0)."""
    from triton.runtime.interpreter import InterpreterBuilder

    if sign == 0:
        yield
        return
    exp2 = _off(InterpreterBuilder.create_exp2, 1 + sign * EXP2_ERROR, SMALLEST_NORMAL)
    fdiv = _off(InterpreterBuilder.create_fdiv, 1 + sign * DIVISION_ERROR, 0.0)
    with mock.patch.multiple(InterpreterBuilder, create_exp2=exp2, create_fdiv=fdiv):
        yield


def _off(instruction: Callable[..., Any], factor: float, least: float) -> Callable[..., Any]:
    def instruct(*operands: Any) -> Any:
        result = instruction(*operands)
        moved = result.data.astype(np.float64) * factor
        result.data = np.where(np.abs(moved) < least, 0, moved).astype(result.data.dtype)
        return result

    return instruct
