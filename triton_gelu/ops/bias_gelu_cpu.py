"""`bias_gelu` on a CPU in eager mode, in cache-sized blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import huge_pages
from . import cpu_blocks


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) of an eager CPU tensor, bias along dim >= 0, where no gradient is recorded."""
    formula = cpu_blocks.formula_of(approximate)
    y = huge_pages.empty_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    buffers: list[Tensor] = []
    for y_, x_, bias_ in cpu_blocks.blocks(y, x, cpu_blocks.column(bias, x.ndim - dim, wide)):
        buffers = cpu_blocks.buffers(buffers, y_, wide, 1 if y.dtype == wide else 2)
        spare, u = buffers if len(buffers) == 2 else (*buffers, y_)
        cpu_blocks.preactivation(x_, bias_, None, out=u)
        cpu_blocks.to_value(u, formula, spare)
        if u is not y_:
            y_.copy_(u)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias of `forward`, each if it is needed. Over several blocks, dbias is summed in float64."""
    needs_x, needs_bias = needs
    formula = cpu_blocks.formula_of(approximate)
    dx = huge_pages.empty_like(x) if needs_x else None
    wide = torch.promote_types(x.dtype, torch.float32)
    column = cpu_blocks.column(bias, x.ndim - dim, wide)
    dbias = None
    several = x.numel() > cpu_blocks.block_size()
    if several and needs_bias and column is not None:
        dbias = torch.zeros_like(column, dtype=torch.float64)
    buffers: list[Tensor] = []
    for x_, dy_, dx_, bias_, dbias_ in cpu_blocks.blocks(x, dy, dx, column, dbias):
        buffers = cpu_blocks.buffers(buffers, x_, wide, 2 if needs_x and x.dtype == wide else 3)
        u, spare, du = buffers if len(buffers) == 3 else (*buffers, dx_)
        cpu_blocks.preactivation(x_, bias_, formula.opened, out=u)
        cpu_blocks.dy_slope(dy_, u, formula, out=du, spare=spare)
        if dbias_ is not None:
            dbias_ += du.sum_to_size(dbias_.shape)
        elif needs_bias and column is not None:  # where there is nothing to add up, the sum is not to be dx itself
            dbias = du.clone() if du.shape == column.shape else du.sum_to_size(column.shape)
        if dx_ is not None and du is not dx_:
            dx_.copy_(du)
    return dx, None if dbias is None or bias is None else dbias.view(-1).to(bias.dtype)
