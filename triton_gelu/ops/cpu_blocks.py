"""Formulas on a CPU in eager mode: in place, on one cache-sized block after another.

A formula takes a dozen passes over its elements, each of which would cost more in main memory than all of them do in a
core's cache. The formulas are those of formulas/plain.py, written into buffers that are reused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ..formulas import Formula, Logistic, Normal, plain
from ..formulas.plain import CLOSED, LOG2_E

BLOCK = 65536
"""Elements a thread works on at a time. The few float32 buffers of this size that a formula needs stay in a core's
cache, calling an operation costs little against it, and torch shares out no less than half (at::internal::GRAIN_SIZE).
"""

formula_of = cache(plain.formula_of)  # a small call takes microseconds: to look a formula up must not be a part of that


def to_value(u: Tensor, formula: Formula, spare: Tensor) -> None:
    """u, at least CLOSED, becomes gelu(u)."""
    if isinstance(formula.gate, Normal):
        _erfc_value(u, spare)
    else:
        _logistic_value(u, formula.gate, spare)


def dy_slope(dy: Tensor, u: Tensor, formula: Formula, out: Tensor, spare: Tensor) -> None:
    """out becomes dy gelu'(u), and u, from CLOSED to `opened`, is overwritten."""
    if isinstance(formula.gate, Normal):
        twice_slope = _erfc_slope(u, out, out=out, spare=spare)
        torch.addcmul(kept_number(0, u.dtype), twice_slope, dy, value=0.5, out=out)
    else:
        _logistic_slope(u, formula.gate, out=out, spare=spare)
        out.mul_(dy)


def slope_and_gate(u: Tensor, formula: Formula, slope: Tensor, gate: Tensor, spare: Tensor) -> float:
    """`slope` and `gate` become gelu'(u) and gelu(u) / u, both divided by the number that is returned.

    u, from CLOSED to `opened`, is overwritten.
    """
    if isinstance(formula.gate, Normal):
        _erfc_slope(u, gate, out=slope, spare=spare)
        return 0.5
    _logistic_slope(u, formula.gate, out=slope, spare=gate)
    return 1.0


def _logistic_value(u: Tensor, gate: Logistic, spare: Tensor) -> None:
    """u becomes u s(z) = u / (1 + exp(-z))."""
    decay = torch.exp2(_odd_cubic(u, -gate.linear * LOG2_E, -gate.cubic * LOG2_E, out=spare), out=spare)
    torch.div(u, torch.add(decay, kept_number(1, decay.dtype), out=spare), out=u)


def _logistic_slope(u: Tensor, gate: Logistic, out: Tensor, spare: Tensor) -> None:
    """out becomes s(z) + u z' s(z) s(-z), spare becomes s(z), and u is overwritten.

    With e = exp(z) that is s(z) = e / (1 + e), s(-z) = 1 / (1 + e).
    """
    udz = _odd_cubic(u, gate.linear, 3 * gate.cubic, out=out)
    e = torch.exp(_odd_cubic(u, gate.linear, gate.cubic, out=spare), out=spare)
    d = torch.add(e, kept_number(1, e.dtype), out=u)
    rising = torch.div(e, d, out=spare)
    torch.addcmul(rising, rising, torch.div(udz, d, out=out), out=out)


def _odd_cubic(u: Tensor, linear: float, cubic: float, out: Tensor) -> Tensor:
    """out becomes u (linear + cubic u^2)."""
    factor = kept_number(linear, u.dtype)
    return torch.mul(u, torch.addcmul(factor, u, u, value=cubic, out=out) if cubic else factor, out=out)


@cache
def kept_number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor: torch takes as long to convert a Python number as to run a small operation."""
    return torch.full((), value, dtype=dtype, device="cpu")


def _erfc_value(u: Tensor, spare: Tensor) -> None:
    """u becomes u erfc(-u / sqrt 2) / 2: eager, one pass of erfc is faster than the passes of a polynomial."""
    twice_gate = torch.mul(u, kept_number(-math.sqrt(0.5), u.dtype), out=spare).erfc_()
    torch.addcmul(kept_number(0, u.dtype), u, twice_gate, value=0.5, out=u)


def _erfc_slope(u: Tensor, twice_gate: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """out becomes erfc(w) - 2 w exp(-w^2) / sqrt pi, twice the slope, where u becomes w = -u / sqrt 2.

    `twice_gate` becomes erfc(w), and may be out.
    """
    w, zero = u.mul_(kept_number(-math.sqrt(0.5), u.dtype)), kept_number(0, u.dtype)
    bell = torch.addcmul(zero, w, w, value=-1, out=spare).exp_()
    return torch.addcmul(torch.erfc(w, out=twice_gate), w, bell, value=-2 / math.sqrt(math.pi), out=out)


def preactivation(x: Tensor, bias: Tensor | None, high: float | None, *, out: Tensor) -> None:
    """out becomes x + bias, between CLOSED and high."""
    torch.clamp(sum_in(out, x, bias), CLOSED, high, out=out)


def sum_in(buffer: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """x + bias in the buffer's type, in the buffer, unless that is x itself."""
    if x.dtype != buffer.dtype:
        x = buffer.copy_(x)
    return x if bias is None else torch.add(x, bias, out=buffer)


def column(bias: Tensor | None, columns: int, dtype: torch.dtype) -> Tensor | None:
    """bias, shaped to lie along a dimension with `columns - 1` more behind it."""
    if bias is None:
        return None
    bias = bias if bias.dtype == dtype else bias.to(dtype)
    return bias if columns == 1 else bias.view(-1, *[1] * (columns - 1))


def buffers(old: list[Tensor], block: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Buffers shaped like a block: the old ones if they are."""
    if old and old[0].shape == block.shape:
        return old
    return [torch.empty_like(block, dtype=dtype) for _ in range(count)]


def block_size() -> int:
    """Elements of a block, over all threads."""
    return BLOCK * torch.get_num_threads()


def blocks(lead: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Corresponding blocks of tensors that broadcast to the first, cut across its slowest dimensions."""
    size = block_size()
    if lead.numel() <= size:
        return ((lead, *others),)
    order = sorted(range(lead.ndim), key=lead.stride, reverse=True)
    aligned = [t if t is None else t[(None,) * (lead.ndim - t.ndim)].permute(order) for t in (lead, *others)]
    return _cut(aligned, size)


def _cut(tensors: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    lead = tensors[0]
    if lead.numel() <= size:
        yield tuple(tensors)
        return
    dim = next(d for d, n in enumerate(lead.shape) if n > 1)
    n = lead.shape[dim]
    most = max(1, size * n // lead.numel())
    step = -(-n // -(-n // most))
    pieces = (repeat(t) if t is None or t.shape[dim] == 1 else t.split(step, dim) for t in tensors)
    for block in zip(*pieces, strict=False):
        yield from _cut(block, size)
