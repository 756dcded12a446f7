"""What arguments must be: an error names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Approximate = Literal["tanh", "none", "sigmoid"]
FORMULAS: tuple[str, ...] = get_args(Approximate)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> int:
    """Raise unless these are arguments of `bias_gelu`, as it says; `dim` counted from the front."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    _check_dense("x", x)
    check_approximate(approximate)
    ndim = x.ndim
    if ndim == 0:
        raise ValueError("x must have at least one dimension, got a 0-d tensor")
    if type(dim) is not int:
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim must be in [{-ndim}, {ndim - 1}] for x of shape {tuple(x.shape)}, got {dim}")
    dim %= ndim
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise TypeError(f"bias must be a torch.Tensor or None, got {type(bias).__name__}")
        _check_dense("bias", bias)
        if bias.ndim != 1 or bias.shape[0] != x.shape[dim]:
            raise ValueError(
                f"bias must have shape ({x.shape[dim]},) for x of shape {tuple(x.shape)} and dim {dim}, "
                f"got shape {tuple(bias.shape)}"
            )
        if bias.device != x.device:
            raise ValueError(f"bias must be on x's device, {x.device}, got {bias.device}")
    return dim


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless `approximate` is a formula we have."""
    if approximate not in FORMULAS:
        raise ValueError(f"approximate must be one of {', '.join(map(repr, FORMULAS))}, got {approximate!r}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(map(str, DTYPES))
        raise TypeError(f"{name} must have one of the dtypes {expected}, got {tensor.dtype}")
