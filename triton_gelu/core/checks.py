"""What arguments must be: an error names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import check_approximate

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
    _check_added("bias", bias, (x.shape[dim],), x, f" and dim {dim}")
    return dim


def check_transposed(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> None:
    """Raise unless these are arguments of `bias_gelu_transpose`, as it says."""
    if isinstance(x, Tensor) and x.ndim != 3:
        raise ValueError(f"x must have three dimensions, [N, C, L], got shape {tuple(x.shape)}")
    check(x, bias, 1, approximate)
    _check_added("position", position, (x.shape[2], x.shape[1]), x)


def _check_added(name: str, tensor: Tensor | None, shape: tuple[int, ...], x: Tensor, why: str = "") -> None:
    """Raise unless this is None, or a dense tensor of `shape` beside x."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(tensor).__name__}")
    _check_dense(name, tensor)
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape} for x of shape {tuple(x.shape)}{why}, got shape {tuple(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device, {x.device}, got {tensor.device}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(map(str, DTYPES))
        raise TypeError(f"{name} must have one of the dtypes {expected}, got {tensor.dtype}")
