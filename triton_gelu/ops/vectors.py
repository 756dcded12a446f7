"""Vectors along one dimension of a tensor in PyTorch operations: added to it, and as sums over all other dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def column(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """A vector along `dim` of x, shaped to broadcast to it."""
    return vector.view(-1, *[1] * (x.ndim - dim - 1))


def add(x: Tensor, vector: Tensor | None, dim: int) -> Tensor:
    """x + vector in float32, or float64 for such x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide) if vector is None else x.to(wide) + column(vector.to(wide), x, dim)


def standard_sum(x: Tensor, vector: Tensor | None, dim: int) -> Tensor:
    """x + vector as PyTorch adds them, in the wider of their types: what an exported graph holds."""
    return x if vector is None else x + column(vector, x, dim)


def total(terms: Tensor, vector: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The sum of terms over everything but `dim`, added up in `dtype`, in the type of the vector; no view of them."""
    others = [d for d in range(terms.ndim) if d != dim]
    return (terms.sum(others, dtype=dtype) if others else terms.clone()).to(vector.dtype)
