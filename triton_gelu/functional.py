"""The functions people call: they check arguments, and say what they compute."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from triton_gelu import _ops

Approximate = Literal["tanh", "none", "sigmoid"]
FORMULAS: tuple[str, ...] = get_args(Approximate)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, dim: int = -1, approximate: Approximate = "tanh") -> Tensor:
    """GELU of `x + bias` in one pass over memory, forward and backward.

    Where `F.gelu(x + bias)` rounds the sum to `x.dtype` before it applies GELU, here the arithmetic is in fp32 and the
    result is rounded once.

    Args:
        x: a tensor of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
        bias: a tensor of shape `[x.shape[dim]]`, of any of these dtypes, on x's device. None stands for no bias.
        dim: the dimension of x that the bias runs along: -1 for the output of a Linear, 1 for that of a convolution.
        approximate: `"tanh"`, 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))), as in GPT-2; `"none"`, the exact
            u Phi(u), as in BERT and Whisper; `"sigmoid"`, u sigmoid(1.702 u), as in CLIP. **The default is `"tanh"`;
            that of torch.nn.functional.gelu is `"none"`.** All three are from Hendrycks and Gimpel, "Gaussian Error
            Linear Units", https://arxiv.org/abs/1606.08415.

    Returns:
        A tensor of x's shape, dtype and memory format. The gradient of x has x's dtype; that of the bias has the
        bias's dtype and is summed in fp32 from terms that were not rounded.

    Raises:
        TypeError: x or bias is not a dense floating-point tensor, or dim is not an int.
        ValueError: a shape, a device, dim or approximate does not fit.
    """
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
    return _ops.bias_gelu(x, bias, dim, approximate)


def gelu(x: Tensor, *, approximate: Approximate = "tanh") -> Tensor:
    """GELU of `x`: `bias_gelu` without a bias, which see."""
    return bias_gelu(x, approximate=approximate)


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
