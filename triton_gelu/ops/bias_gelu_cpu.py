"""`bias_gelu` on a CPU in eager mode: the formulas in place, on one cache-sized block after another.

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

from ..core import huge_pages
from ..formulas import Logistic, Normal
from ..formulas.plain import CLOSED, LOG2_E, formula_of

BLOCK = 65536
"""Elements a thread works on at a time. The few float32 buffers of this size that a formula needs stay in a core's
cache, calling an operation costs little against it, and torch shares out no less than half (at::internal::GRAIN_SIZE).
"""

_formula = cache(formula_of)  # a small call takes microseconds: looking a formula up must not cost a part of that


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) of an eager CPU tensor, bias along dim >= 0, where no gradient is recorded."""
    formula = _formula(approximate)
    y = huge_pages.empty_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    buffers: list[Tensor] = []
    for y_, x_, bias_ in _blocks(y, x, _column(bias, x.ndim - dim, wide)):
        buffers = _buffers(buffers, y_, wide, 1 if y.dtype == wide else 2)
        spare, u = buffers if len(buffers) == 2 else (*buffers, y_)
        _preactivation(x_, bias_, CLOSED, None, out=u)
        if isinstance(formula.gate, Normal):
            _erfc_value(u, spare)
        else:
            _logistic_value(u, formula.gate, spare)
        if u is not y_:
            y_.copy_(u)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias of `forward`, each if it is needed. Over several blocks, dbias is summed in float64."""
    needs_x, needs_bias = needs
    formula = _formula(approximate)
    dx = huge_pages.empty_like(x) if needs_x else None
    wide = torch.promote_types(x.dtype, torch.float32)
    column = _column(bias, x.ndim - dim, wide)
    dbias = None
    several = x.numel() > _block_size()
    if several and needs_bias and column is not None:
        dbias = torch.zeros_like(column, dtype=torch.float64)
    buffers: list[Tensor] = []
    for x_, dy_, dx_, bias_, dbias_ in _blocks(x, dy, dx, column, dbias):
        buffers = _buffers(buffers, x_, wide, 2 if needs_x and x.dtype == wide else 3)
        u, spare, du = buffers if len(buffers) == 3 else (*buffers, dx_)
        _preactivation(x_, bias_, CLOSED, formula.opened, out=u)
        if isinstance(formula.gate, Normal):
            _dy_erfc_slope(dy_, u, out=du, spare=spare)
        else:
            _logistic_slope(u, formula.gate, out=du, spare=spare)
            du.mul_(dy_)
        if dbias_ is not None:
            dbias_ += du.sum_to_size(dbias_.shape)
        elif needs_bias and column is not None:  # where there is nothing to add up, the sum is not to be dx itself
            dbias = du.clone() if du.shape == column.shape else du.sum_to_size(column.shape)
        if dx_ is not None and du is not dx_:
            dx_.copy_(du)
    return dx, None if dbias is None or bias is None else dbias.view(-1).to(bias.dtype)


def _logistic_value(u: Tensor, gate: Logistic, spare: Tensor) -> None:
    """u becomes u s(z) = u / (1 + exp(-z))."""
    decay = torch.exp2(_odd_cubic(u, -gate.linear * LOG2_E, -gate.cubic * LOG2_E, out=spare), out=spare)
    torch.div(u, torch.add(decay, _kept_number(1, decay.dtype), out=spare), out=u)


def _logistic_slope(u: Tensor, gate: Logistic, out: Tensor, spare: Tensor) -> None:
    """out becomes s(z) + u z' s(z) s(-z), and u is overwritten: e = exp(z), s(z) = e / (1 + e), s(-z) = 1 / (1 + e)."""
    udz = _odd_cubic(u, gate.linear, 3 * gate.cubic, out=out)
    e = torch.exp(_odd_cubic(u, gate.linear, gate.cubic, out=spare), out=spare)
    d = torch.add(e, _kept_number(1, e.dtype), out=u)
    rising = torch.div(e, d, out=spare)
    torch.addcmul(rising, rising, torch.div(udz, d, out=out), out=out)


def _odd_cubic(u: Tensor, linear: float, cubic: float, out: Tensor) -> Tensor:
    """out becomes u (linear + cubic u^2)."""
    factor = _kept_number(linear, u.dtype)
    return torch.mul(u, torch.addcmul(factor, u, u, value=cubic, out=out) if cubic else factor, out=out)


@cache
def _kept_number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor: torch takes as long to convert a Python number as to run a small operation."""
    return torch.full((), value, dtype=dtype, device="cpu")


def _erfc_value(u: Tensor, spare: Tensor) -> None:
    """u becomes u erfc(-u / sqrt 2) / 2: eager, one pass of erfc is faster than the passes of a polynomial."""
    twice_gate = torch.mul(u, _kept_number(-math.sqrt(0.5), u.dtype), out=spare).erfc_()
    torch.addcmul(_kept_number(0, u.dtype), u, twice_gate, value=0.5, out=u)


def _dy_erfc_slope(dy: Tensor, u: Tensor, out: Tensor, spare: Tensor) -> None:
    """out becomes dy (erfc(w) - 2 w exp(-w^2) / sqrt pi) / 2, where u becomes w = -u / sqrt 2."""
    w, zero = u.mul_(_kept_number(-math.sqrt(0.5), u.dtype)), _kept_number(0, u.dtype)
    bell = torch.addcmul(zero, w, w, value=-1, out=spare).exp_()
    twice_slope = torch.addcmul(torch.erfc(w, out=out), w, bell, value=-2 / math.sqrt(math.pi), out=out)
    torch.addcmul(zero, twice_slope, dy, value=0.5, out=out)


def _preactivation(x: Tensor, bias: Tensor | None, low: float, high: float | None, *, out: Tensor) -> None:
    """out becomes x + bias, between low and high."""
    if x.dtype != out.dtype:
        x = out.copy_(x)
    if bias is not None:
        x = torch.add(x, bias, out=out)
    torch.clamp(x, low, high, out=out)


def _column(bias: Tensor | None, columns: int, dtype: torch.dtype) -> Tensor | None:
    """bias, shaped to lie along a dimension with `columns - 1` more behind it."""
    if bias is None:
        return None
    bias = bias if bias.dtype == dtype else bias.to(dtype)
    return bias if columns == 1 else bias.view(-1, *[1] * (columns - 1))


def _buffers(old: list[Tensor], block: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Buffers shaped like a block: the old ones if they are."""
    if old and old[0].shape == block.shape:
        return old
    return [torch.empty_like(block, dtype=dtype) for _ in range(count)]


def _block_size() -> int:
    return BLOCK * torch.get_num_threads()


def _blocks(lead: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Corresponding blocks of tensors that broadcast to the first, cut across its slowest dimensions."""
    size = _block_size()
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
