"""What the tensors of an operator must be, from its declaration: an error names the argument, what came, what fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .declare import VECTOR, Arg

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_lead(name: str, x: Tensor) -> None:
    """Raise unless this is a dense floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    _check_dense(name, x)


def check_others(args: Sequence[Arg], tensors: Sequence[Tensor | None], dim: int) -> None:
    """Raise unless the tensors after the first fit it: dense, on its device, of the shape they are declared to have."""
    (lead, *others), (x, *rest) = args, tensors
    assert x is not None
    for arg, tensor in zip(others, rest, strict=True):
        if tensor is None and arg.optional:
            continue
        if not isinstance(tensor, Tensor):
            expected = "a torch.Tensor or None" if arg.optional else "a torch.Tensor"
            raise TypeError(f"{arg.name} must be {expected}, got {type(tensor).__name__}")
        if arg.differentiable:
            _check_dense(arg.name, tensor)
        if x.ndim == 0 and arg.kind is VECTOR:
            raise ValueError(f"{lead.name} must have at least one dimension for {arg.name}, got a 0-d tensor")
        shape = arg.kind.shape(x.shape, dim)
        if tensor.shape != shape:
            why = f" and dim {dim}" if arg.kind is VECTOR else ""
            raise ValueError(
                f"{arg.name} must have shape {shape} for {lead.name} of shape {tuple(x.shape)}{why},"
                f" got shape {tuple(tensor.shape)}"
            )
        if arg.kind.full and tensor.dtype != x.dtype:
            raise TypeError(f"{arg.name} must have {lead.name}'s dtype, {x.dtype}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{arg.name} must be on {lead.name}'s device, {x.device}, got {tensor.device}")


def check_dim(dim: int, x: Tensor) -> int:
    """The dimension of x that `dim` says, counted from the front; raise where there is no such dimension.

    A tensor without dimensions passes, too: it has no vector along any of them, as `check_others` says.
    """
    if type(dim) is not int:
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if x.ndim == 0 and dim in (0, -1):
        return 0
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be in [{-x.ndim}, {x.ndim - 1}] for x of shape {tuple(x.shape)}, got {dim}")
    return dim % x.ndim


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested tensor: call unbind() and pass its parts")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(map(str, DTYPES))
        raise TypeError(f"{name} must have one of the dtypes {expected}, got {tensor.dtype}")
