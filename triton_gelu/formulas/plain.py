"""The same mathematics in plain PyTorch: what is traced, and the blocked, in-place CPU road.

GELU is an input times a gate, ``y = u C(u)`` with ``u = x + bias``; everything else is the product rule:
``y' = C + u C'`` and ``y'' = 2 C' + u C''``. The gate is

* ``"none"``: the normal distribution function, ``C = Phi(u)``, ``C' = phi(u)`` (Hendrycks, Gimpel, arXiv:1606.08415);
* ``"tanh"`` and ``"sigmoid"``: a logistic curve of an odd cubic, ``C = s(t)``, ``t = u (linear + cubic u^2)``, and
  ``C' = t' s(t) s(-t)``. (``(1 + tanh z) / 2 = s(2z)``: torch's function without its cancellation.)

Each factor keeps its relative accuracy where u is negative, so the tail needs no case of its own.

`gelu`, `dgelu` and `d2gelu` can be traced, batched and transformed. `forward` and `backward` are for eager CPU tensors:
the same formulas in place, on one cache-sized block after another, since each of their dozen passes would cost more
in main memory than all of them do in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ..core import huge_pages as _pages

LOGIT = {
    "tanh": (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715),
    "sigmoid": (1.702, 0.0),
}
"""(linear, cubic) of t. 0.044715 and 1.702 define the two approximations (arXiv:1606.08415, section 2)."""

LOG2_E = math.log2(math.e)
"""exp(t) = exp2(t log2(e)): torch's exp2 takes half the time of its exp, and a constant takes up the factor. Not so in
the derivative: t log2(e) is rounded in coarser steps than t, which would there make "sigmoid" less exact than torch's.
"""

CLOSED = -512.0
"""Here and below, every gate is exactly 0 in float32 and float64: with u clamped to it, no infinity meets a zero."""

OPEN = {"none": 32.0, "tanh": 8.0, "sigmoid": 32.0}
"""Here and above, the derivative is exactly 1 in float32 and float64, while exp(t) is still finite in float32."""

BLOCK = 65536
"""Elements a thread works on at a time. The few float32 buffers of this size that a formula needs stay in a core's
cache, calling an operation costs little beside it, and torch shares out no less than half (at::internal::GRAIN_SIZE).
"""


def gelu(u: Tensor, approximate: str) -> Tensor:
    """u C(u), for float32 or float64 u."""
    if approximate == "none":
        a = u.abs().clamp_max(-CLOSED)
        return u.relu() - a * _normal_tail(a)
    return _logistic_value(u.clamp_min(CLOSED), *LOGIT[approximate])


def dgelu(u: Tensor, approximate: str) -> Tensor:
    """The first derivative, C(u) + u C'(u)."""
    if approximate == "none":
        a = u.abs().clamp_max(-CLOSED)
        tail = _normal_tail(a) - a * _bell(a) * (1 / math.sqrt(2 * math.pi))
        return torch.where(u < 0, tail, 1 - tail)
    return _logistic_slope(u.clamp(CLOSED, OPEN[approximate]), *LOGIT[approximate])


def d2gelu(u: Tensor, approximate: str) -> Tensor:
    """The second derivative, 2 C'(u) + u C''(u)."""
    u = u.clamp(CLOSED, -CLOSED)
    if approximate == "none":
        return _bell(u) * (2 - u * u) * (1 / math.sqrt(2 * math.pi))
    linear, cubic = LOGIT[approximate]
    t = _odd_cubic(u, linear, cubic)
    dt = linear + 3 * cubic * u * u
    rising, falling = t.sigmoid(), t.neg().sigmoid()
    return rising * falling * (2 * dt + u * (6 * cubic * u + dt * dt * (falling - rising)))


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) of an eager CPU tensor, bias along dim >= 0, where no gradient is recorded."""
    y = _pages.empty_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    buffers: list[Tensor] = []
    for y_, x_, bias_ in _blocks(y, x, _column(bias, x.ndim - dim, wide)):
        buffers = _buffers(buffers, y_, wide, 1 if y.dtype == wide else 2)
        spare, u = buffers if len(buffers) == 2 else (*buffers, y_)
        _preactivation(x_, bias_, CLOSED, None, out=u)
        if approximate == "none":
            _erfc_value(u, spare)
        else:
            _logistic_value(u, *LOGIT[approximate], out=u, spare=spare)
        if u is not y_:
            y_.copy_(u)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias of the same, each if it is needed. Over several blocks, dbias is summed in float64."""
    dx = _pages.empty_like(x) if needs_x else None
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
        _preactivation(x_, bias_, CLOSED, OPEN[approximate], out=u)
        if approximate == "none":
            _dy_erfc_slope(dy_, u, out=du, spare=spare)
        else:
            _logistic_slope(u, *LOGIT[approximate], out=du, spare=spare).mul_(dy_)
        if dbias_ is not None:
            dbias_ += du.sum_to_size(dbias_.shape)
        elif needs_bias and column is not None:
            dbias = du.sum_to_size(column.shape)
        if dx_ is not None and du is not dx_:
            dx_.copy_(du)
    return dx, None if dbias is None or bias is None else dbias.view(-1).to(bias.dtype)


def _logistic_value(
    u: Tensor, linear: float, cubic: float, out: Tensor | None = None, spare: Tensor | None = None
) -> Tensor:
    """u s(t) = u / (1 + exp(-t))."""
    decay = torch.exp2(_odd_cubic(u, -linear * LOG2_E, -cubic * LOG2_E, spare), out=spare)
    return torch.div(u, torch.add(decay, _number(1, decay, spare), out=spare), out=out)


def _logistic_slope(
    u: Tensor, linear: float, cubic: float, out: Tensor | None = None, spare: Tensor | None = None
) -> Tensor:
    """s(t) + u t' s(t) s(-t), with e = exp(t), s(t) = e / (1 + e), s(-t) = 1 / (1 + e). Given buffers, overwrites u."""
    udt = _odd_cubic(u, linear, 3 * cubic, out)
    e = torch.exp(_odd_cubic(u, linear, cubic, spare), out=spare)
    d = torch.add(e, _number(1, e, spare), out=None if spare is None else u)
    gate = torch.div(e, d, out=spare)
    return torch.addcmul(gate, gate, torch.div(udt, d, out=out), out=out)


def _odd_cubic(u: Tensor, linear: float, cubic: float, out: Tensor | None = None) -> Tensor:
    """u (linear + cubic u^2)."""
    factor = _number(linear, u, out)
    return torch.mul(u, torch.addcmul(factor, u, u, value=cubic, out=out) if cubic else factor, out=out)


def _number(value: float, like: Tensor, out: Tensor | None) -> Tensor:
    """A number as a tensor, since torch takes as long to convert a Python number as to run a small operation."""
    return like.new_full((), value) if out is None else _kept_number(value, like.dtype)


@cache
def _kept_number(value: float, dtype: torch.dtype) -> Tensor:
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
"""Right to 2^-24 (4 + a^2 / 2) of the ratio: rounding a^2 / 2 alone costs the exponential beside it as much. From
a = 14.5 on, that is 0 in float32.
"""


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
