"""The public functions: bias_gelu, gelu, bias_gelu_transpose."""

from __future__ import annotations

from torch import Tensor

from .formulas import FORMULAS, Approximate, check_approximate
from .ops.bias_gelu import BIAS_GELU
from .ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE

__all__ = ["FORMULAS", "Approximate", "bias_gelu", "bias_gelu_transpose", "check_approximate", "gelu"]


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
    return BIAS_GELU.call(x, bias, dim, approximate)


def gelu(x: Tensor, *, approximate: Approximate = "tanh") -> Tensor:
    """GELU of `x`: `bias_gelu` without a bias, which see."""
    return bias_gelu(x, approximate=approximate)


def bias_gelu_transpose(
    x: Tensor, bias: Tensor | None = None, position: Tensor | None = None, *, approximate: Approximate = "tanh"
) -> Tensor:
    """GELU of `x + bias`, channels last, plus `position`: from a convolution over a sequence to a transformer.

    That is `bias_gelu(x, bias, dim=1).transpose(1, 2) + position`. Kernels do it in one pass over memory, forward and
    backward, and round once; compilers, torch.func, float64 and CPUs are given the operations of that line.

    Args:
        x: a tensor of shape `[N, C, L]`, as for `bias_gelu`; other positions than contiguous ones cost a pass more.
        bias: a tensor of shape `[C]`, or None, as for `bias_gelu`.
        position: a tensor of shape `[L, C]`, of any dtype that x may have, on x's device; None stands for no position.
        approximate: the formula, see `bias_gelu`.

    Returns:
        A contiguous tensor of shape `[N, L, C]` in x's dtype. Gradients are as for `bias_gelu`; that of position is the
        sum of the incoming one over N, in position's dtype.

    Raises:
        TypeError: x, bias or position is not a dense floating-point tensor.
        ValueError: a shape, a device or approximate does not fit.
    """
    return BIAS_GELU_TRANSPOSE.call(x, bias, position, approximate)
