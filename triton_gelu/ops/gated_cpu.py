"""`bias_gelu_mul` and `bias_geglu` on a CPU in eager mode, in cache-sized blocks.

Of a joined tensor, the halves are views, and so are those of its gradient: nothing is cut or joined by copying.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import huge_pages
from ..core.declare import Tensors, half
from . import cpu_blocks
from .halves import halves, joined


def forward(
    x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None, dim: int, approximate: str
) -> Tensor:
    """gelu(x + bias) (other + other_bias) of eager CPU tensors, dim >= 0, where no gradient is recorded."""
    y = huge_pages.empty_like(x)
    _fill(y, x, other, _column(bias, x, dim), _column(other_bias, x, dim), approximate)
    return y


def joined_forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str, activated: str) -> Tensor:
    """The same of the halves of x and of a bias."""
    y = huge_pages.empty_like(half(x, dim))
    _fill(y, *halves(x, dim, activated), *_halves_of_column(_column(bias, x, dim), activated), approximate)
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool, bool],
) -> Tensors:
    """The gradients of x, other, bias and other_bias, each if it is needed."""
    dx, dother = (huge_pages.empty_like(x) if needed else None for needed in needs[:2])
    columns = _column(bias, x, dim), _column(other_bias, x, dim)
    dbias, dother_bias = _fill_gradients((dx, dother), dy, (x, other), columns, approximate, needs[2:])
    return dx, dother, _of_bias(dbias, bias), _of_bias(dother_bias, other_bias)


def joined_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    needs: tuple[bool, bool],
) -> Tensors:
    """The gradients of x and bias, each if it is needed."""
    needs_x, needs_bias = needs
    dx = huge_pages.empty_like(x) if needs_x else None
    columns = _halves_of_column(_column(bias, x, dim), activated)
    gradients = (None, None) if dx is None else halves(dx, dim, activated)
    dbias, dother_bias = _fill_gradients(
        gradients, dy, halves(x, dim, activated), columns, approximate, (needs_bias, needs_bias)
    )
    if dbias is None or dother_bias is None:
        return dx, None
    return dx, _of_bias(joined(dbias, dother_bias, 0, activated), bias)


def _fill(
    y: Tensor, x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None, approximate: str
) -> None:
    """y becomes gelu(x + bias) (other + other_bias)."""
    formula = cpu_blocks.formula_of(approximate)
    wide = torch.promote_types(x.dtype, torch.float32)
    buffers: list[Tensor] = []
    for y_, x_, other_, bias_, other_bias_ in cpu_blocks.blocks(y, x, other, bias, other_bias):
        buffers = cpu_blocks.buffers(buffers, y_, wide, 2)
        spare, u = buffers
        cpu_blocks.preactivation(x_, bias_, None, out=u)
        cpu_blocks.to_value(u, formula, spare)
        w = cpu_blocks.sum_in(spare, other_, other_bias_)
        _store(torch.mul(u, w, out=_room(y_, u)), y_)


def _fill_gradients(
    gradients: tuple[Tensor | None, Tensor | None],
    dy: Tensor,
    tensors: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    approximate: str,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """`gradients` become those of x and other, unless they are None; returns those of the biases that are needed.

    Over several blocks, these are summed in float64.
    """
    formula = cpu_blocks.formula_of(approximate)
    (x, other), (bias, other_bias) = tensors, biases
    wide = torch.promote_types(x.dtype, torch.float32)
    zero = cpu_blocks.kept_number(0, wide)
    dbias, dother_bias = _Sum(bias if needs[0] else None, x), _Sum(other_bias if needs[1] else None, x)
    buffers: list[Tensor] = []
    for x_, dy_, other_, bias_, other_bias_, dx_, dother_, dbias_, dother_bias_ in cpu_blocks.blocks(
        x, dy, other, bias, other_bias, *gradients, dbias.total, dother_bias.total
    ):
        buffers = cpu_blocks.buffers(buffers, x_, wide, 4)
        u, slope, gate, spare = buffers
        cpu_blocks.preactivation(x_, bias_, formula.opened, out=u)
        factor = cpu_blocks.slope_and_gate(u, formula, slope, gate, spare)
        dy_ = cpu_blocks.sum_in(spare, dy_, None)
        if dx_ is not None or needs[0]:
            torch.addcmul(zero, slope, dy_, value=factor, out=slope)
            du = torch.mul(slope, cpu_blocks.sum_in(u, other_, other_bias_), out=_room(dx_, slope))
            dbias.add(du, dbias_)
            _store(du, dx_)
        if dother_ is not None or needs[1]:
            cpu_blocks.preactivation(x_, bias_, None, out=u)
            torch.addcmul(zero, gate, dy_, value=factor, out=gate)
            dw = torch.mul(gate, u, out=_room(dother_, gate))
            dother_bias.add(dw, dother_bias_)
            _store(dw, dother_)
    return dbias.total, dother_bias.total


def _room(result: Tensor | None, buffer: Tensor) -> Tensor:
    """Where to compute a result: in itself, or in a buffer if it is of another type, or none is wanted."""
    return result if result is not None and result.dtype == buffer.dtype else buffer


def _store(computed: Tensor, result: Tensor | None) -> None:
    if result is not None and computed is not result:
        result.copy_(computed)


class _Sum:
    """The sum of terms to the shape of a vector, block by block; None if there is no vector."""

    def __init__(self, vector: Tensor | None, x: Tensor) -> None:
        self.shape = None if vector is None else vector.shape
        several = x.numel() > cpu_blocks.block_size()
        self.total = torch.zeros_like(vector, dtype=torch.float64) if several and vector is not None else None

    def add(self, terms: Tensor, part: Tensor | None) -> None:
        """Add a block's terms to the part of the total that they belong to; None if there is one block."""
        if part is not None:
            part += terms.sum_to_size(part.shape)
        elif self.shape is not None:
            self.total = terms.clone() if terms.shape == self.shape else terms.sum_to_size(self.shape)


def _column(bias: Tensor | None, x: Tensor, dim: int) -> Tensor | None:
    """A bias, shaped to lie along dim of x."""
    return cpu_blocks.column(bias, x.ndim - dim, torch.promote_types(x.dtype, torch.float32))


def _halves_of_column(column: Tensor | None, activated: str) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if column is None else halves(column, 0, activated)


def _of_bias(total: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias, made of its sum as it lies along x."""
    return None if total is None or bias is None else total.view(-1).to(bias.dtype)
