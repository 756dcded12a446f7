"""The same mathematics in plain PyTorch: what is traced, and the blocked, in-place CPU road.

GELU is an input times a gate, ``y = u C(u)`` with ``u = x + bias``; everything else is the product rule:
``y' = C + u C'`` and ``y'' = 2 C' + u C''``. The gate is

* ``"none"``: the normal distribution function, ``C = Phi(u)``, ``C' = phi(u)`` (Hendrycks and Gimpel, arXiv:1606.08415);
* ``"tanh"`` and ``"sigmoid"``: a logistic curve of an odd cubic, ``C = s(t)``, ``t = u (linear + cubic u^2)``, and
  ``C' = t' s(t) s(-t)``. (``(1 + tanh z) / 2 = s(2z)``: torch's function without its cancellation.)

Each factor keeps its relative accuracy where u is negative, so the tail needs no case of its own.

`gelu`, `dgelu` and `d2gelu` can be traced, batched and transformed. `forward` and `backward` are for eager CPU tensors:
the same formulas in place, on one cache-sized block after another, since each of their dozen passes would cost more
in main memory than all of them do in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

LOGIT = {
    "tanh": (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715),
    "sigmoid": (1.702, 0.0),
}
"""(linear, cubic) of t. 0.044715 and 1.702 define the two approximations (arXiv:1606.08415, section 2)."""

CLOSED = -512.0
"""Here and below, every gate is exactly 0 in float32 and float64: u may be replaced by it, and no infinity meets a 0."""

OPEN = {"none": 32.0, "tanh": 8.0, "sigmoid": 32.0}
"""Here and above, the derivative is exactly 1 in float32 and float64, while exp(t) is still finite in float32."""

BLOCK = 32768
"""Elements a thread works on at a time: torch gives a thread no fewer (at::internal::GRAIN_SIZE), and the float32
buffers of this size that a formula needs stay in a core's cache."""


def gelu(u: Tensor, approximate: str) -> Tensor:
    """u C(u), for float32 or float64 u."""
    if approximate == "none":
        a = u.abs().clamp_max(-CLOSED)
        return u.relu() - a * _normal_tail(a)
    return _logistic_value(u.clamp_min(CLOSED), *_logit(approximate, u), u.new_ones(()))


def dgelu(u: Tensor, approximate: str) -> Tensor:
    """The first derivative, C(u) + u C'(u)."""
    if approximate == "none":
        a = u.abs().clamp_max(-CLOSED)
        tail = _normal_tail(a) - a * _bell(a) * (1 / math.sqrt(2 * math.pi))
        return torch.where(u < 0, tail, 1 - tail)
    return _logistic_slope(u.clamp(CLOSED, OPEN[approximate]), *_logit(approximate, u), u.new_ones(()))


def d2gelu(u: Tensor, approximate: str) -> Tensor:
    """The second derivative, 2 C'(u) + u C''(u)."""
    u = u.clamp(CLOSED, -CLOSED)
    if approximate == "none":
        return _bell(u) * (2 - u * u) * (1 / math.sqrt(2 * math.pi))
    linear, cubic = _logit(approximate, u)
    t = _odd_cubic(u, linear, cubic)
    dt = linear + 3 * cubic * u * u
    rising, falling = t.sigmoid(), t.neg().sigmoid()
    return rising * falling * (2 * dt + u * (6 * cubic * u + dt * dt * (falling - rising)))


def _logit(approximate: str, like: Tensor) -> tuple[Tensor, float]:
    linear, cubic = LOGIT[approximate]
    return like.new_full((), linear), cubic


def _odd_cubic(u: Tensor, linear: Tensor, cubic: float, out: Tensor | None = None) -> Tensor:
    """u (linear + cubic u^2)."""
    factor = torch.addcmul(linear, u, u, value=cubic, out=out) if cubic else linear
    return torch.mul(u, factor, out=out)


def _logistic_value(
    u: Tensor, linear: Tensor, cubic: float, one: Tensor, out: Tensor | None = None, spare: Tensor | None = None
) -> Tensor:
    """u s(t) = u / (1 + exp(-t))."""
    decay = torch.exp(_odd_cubic(u, -linear, -cubic, out=spare), out=spare)
    return torch.div(u, torch.add(decay, one, out=spare), out=out)


def _logistic_slope(
    u: Tensor, linear: Tensor, cubic: float, one: Tensor, out: Tensor | None = None, spare: Tensor | None = None
) -> Tensor:
    """s(t) + u t' s(t) s(-t), with s(t) = e / (1 + e) and s(-t) = 1 / (1 + e), e = exp(t). Given buffers, it overwrites u."""
    udt = _odd_cubic(u, linear, 3 * cubic, out=out)
    e = torch.exp(_odd_cubic(u, linear, cubic, out=spare), out=spare)
    d = torch.add(e, one, out=None if out is None else u)
    gate = torch.div(e, d, out=spare)
    return torch.addcmul(gate, gate, torch.div(udt, d, out=out), out=out)


def _bell(u: Tensor) -> Tensor:
    """exp(-u^2 / 2)."""
    return torch.exp(u * u * -0.5)


def _normal_tail(a: Tensor) -> Tensor:
    """Phi(-a) for a >= 0. Compiled, torch.erfc takes three times as long as a polynomial."""
    if a.dtype == torch.float64:
        return torch.erfc(a * math.sqrt(0.5)) * 0.5
    w = MILLS_SCALE * a
    w = w / (1 + w)
    ratio = w * MILLS[-1] + MILLS[-2]
    for coefficient in MILLS[-3::-1]:
        ratio = ratio * w + coefficient
    return ratio * _bell(a)


def _fit_mills(degree: int, farthest: float) -> list[float]:
    """Mills' ratio Phi(-a) / exp(-a^2 / 2) as 1/2 + w P(w) in w = MILLS_SCALE a / (1 + MILLS_SCALE a), up to a = farthest.

    Returns the coefficients, lowest first. P interpolates at Chebyshev nodes: no fit is needed to be this accurate.
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
    coefficients: list[float] = []
    for node, difference in zip(reversed(nodes), reversed(values), strict=True):  # times (w - node), plus difference
        coefficients = [
            above - node * here for above, here in zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
        ]
        coefficients[0] += difference
    return [0.5, *coefficients]


MILLS_SCALE = 0.45
MILLS = _fit_mills(degree=9, farthest=14.5)
"""Relative error below 3e-7. exp(-a^2 / 2) is 0 in float32 from a = 14.5 on."""


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) of an eager CPU tensor, bias along dim >= 0, where no gradient is recorded."""
    y = torch.empty_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    column = _column(bias, x.ndim - dim, wide)
    for (y_, x_, bias_), scratch in _blocks((y, x, column), 1 if y.dtype == wide else 2, wide):
        u, spare = y_ if y.dtype == wide else scratch[1], scratch[0]
        _add(x_, bias_, out=u).clamp_min_(CLOSED)
        _to_value(u, spare, approximate)
        if u is not y_:
            y_.copy_(u)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias of the same, each if it is needed; dbias is summed over a block in float32, over blocks in float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dx = torch.empty_like(x) if needs_x else None
    several = x.numel() > _block_size()
    dbias = x.new_zeros(x.shape[dim], dtype=torch.float64 if several else wide) if needs_bias else None
    columns = _column(bias, x.ndim - dim, wide), dbias if dbias is None else _column(dbias, x.ndim - dim, dbias.dtype)
    for (x_, dy_, dx_, bias_, dbias_), scratch in _blocks((x, dy, dx, *columns), 2 if needs_x and x.dtype == wide else 3, wide):
        du = scratch[2] if len(scratch) == 3 else dx_
        u, spare = scratch[:2]
        _add(x_, bias_, out=u).clamp_(CLOSED, OPEN[approximate])
        _times_slope(dy_, u, spare, approximate, out=du)
        if dbias_ is not None:
            dbias_ += du.sum_to_size(dbias_.shape)
        if dx_ is not None and du is not dx_:
            dx_.copy_(du)
    return dx, None if dbias is None or bias is None else dbias.to(bias.dtype)


def _to_value(u: Tensor, spare: Tensor, approximate: str) -> None:
    """u becomes gelu(u)."""
    if approximate == "none":
        twice_gate = torch.mul(u, _scalar(-math.sqrt(0.5), u.dtype), out=spare).erfc_()
        torch.addcmul(_scalar(0, u.dtype), u, twice_gate, value=0.5, out=u)
    else:
        linear, cubic = LOGIT[approximate]
        _logistic_value(u, _scalar(linear, u.dtype), cubic, _scalar(1, u.dtype), out=u, spare=spare)


def _times_slope(dy: Tensor, u: Tensor, spare: Tensor, approximate: str, out: Tensor) -> None:
    """out becomes dy gelu'(u), and u is overwritten."""
    zero, one = _scalar(0, u.dtype), _scalar(1, u.dtype)
    if approximate == "none":
        w = u.mul_(_scalar(-math.sqrt(0.5), u.dtype))
        bell = torch.addcmul(zero, w, w, value=-1, out=spare).exp_()
        twice_gate = torch.erfc(w, out=out)
        twice_slope = torch.addcmul(twice_gate, w, bell, value=-2 / math.sqrt(math.pi), out=out)
        torch.addcmul(zero, twice_slope, dy, value=0.5, out=out)
    else:
        linear, cubic = LOGIT[approximate]
        _logistic_slope(u, _scalar(linear, u.dtype), cubic, one, out=out, spare=spare).mul_(dy)


@cache
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor: converting a Python number for each operation costs more than a small operation."""
    return torch.full((), value, dtype=dtype, device="cpu")


def _add(x: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    if bias is None:
        return out.copy_(x)
    return torch.add(x, bias, out=out) if x.dtype == out.dtype == bias.dtype else out.copy_(x).add_(bias)


def _column(vector: Tensor | None, columns: int, dtype: torch.dtype) -> Tensor | None:
    """A vector shaped to lie along a dimension with `columns - 1` more behind it."""
    if vector is None:
        return None
    vector = vector if vector.dtype == dtype else vector.to(dtype)
    return vector if columns == 1 else vector.view(-1, *[1] * (columns - 1))


def _block_size() -> int:
    return BLOCK * torch.get_num_threads()


def _blocks(tensors: tuple[Tensor | None, ...], count: int, dtype: torch.dtype) -> Iterator[tuple[tuple[Any, ...], list[Tensor]]]:
    """Corresponding pieces of tensors that broadcast to the first, with buffers in the shape of the piece."""
    scratch: list[Tensor] = []
    for block in _pieces(tensors):
        if not scratch or scratch[0].shape != block[0].shape:
            scratch = [torch.empty_like(block[0], dtype=dtype) for _ in range(count)]
        yield block, scratch


def _pieces(tensors: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    lead = tensors[0]
    if lead.numel() <= _block_size():
        return iter((tensors,))
    order = sorted(range(lead.ndim), key=lambda d: -lead.stride(d))
    aligned = (t if t is None else t[(None,) * (lead.ndim - t.ndim)].permute(order) for t in tensors)
    return _cut(tuple(aligned), _block_size())


def _cut(tensors: tuple[Any, ...], limit: int) -> Iterator[tuple[Any, ...]]:
    lead = tensors[0]
    if lead.numel() <= limit:
        yield tensors
        return
    dim = next(d for d, size in enumerate(lead.shape) if size > 1)
    size = lead.shape[dim]
    most = max(1, limit * size // lead.numel())
    step = -(-size // -(-size // most))
    pieces = (repeat(t) if t is None or t.shape[dim] == 1 else t.split(step, dim) for t in tensors)
    for block in zip(*pieces):
        yield from _cut(block, limit)
