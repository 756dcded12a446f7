"""The public functions: bias_gelu, gelu, bias_geglu, bias_gelu_mul, bias_gelu_transpose."""

from __future__ import annotations

from torch import Tensor

from .formulas import FORMULAS, Approximate, check_approximate
from .ops.bias_geglu import BIAS_GEGLU
from .ops.bias_gelu import BIAS_GELU
from .ops.bias_gelu_mul import BIAS_GELU_MUL
from .ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE
from .ops.dropout import BIAS_GEGLU_DROPOUT, BIAS_GELU_DROPOUT, BIAS_GELU_MUL_DROPOUT
from .ops.halves import Activated, check_activated

__all__ = [
    "FORMULAS",
    "Activated",
    "Approximate",
    "bias_geglu",
    "bias_gelu",
    "bias_gelu_mul",
    "bias_gelu_transpose",
    "check_activated",
    "check_approximate",
    "gelu",
]


def bias_gelu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    approximate: Approximate = "tanh",
    dropout_p: float = 0.0,
) -> Tensor:
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
        dropout_p: the probability with which dropout sets an element of the result to zero; the others are multiplied
            by 1 / (1 - dropout_p). As in torch.nn.functional.scaled_dot_product_attention it is always applied: pass
            0.0 in evaluation. Instead of a mask a seed is saved, which is drawn from PyTorch's generator of x's device,
            so torch.manual_seed, fork_rng and checkpoints act as on torch.nn.functional.dropout, whose masks are
            others. The probability is rounded to a multiple of 2^-16, or of 2^-32 for float32 and float64.

    Returns:
        A tensor of x's shape, dtype and memory format. The gradient of x has x's dtype; that of the bias has the
        bias's dtype and is summed in fp32 from terms that were not rounded.

    Raises:
        TypeError: x or bias is not a dense floating-point tensor, dim is not an int or dropout_p no float.
        ValueError: a shape, a device, dim, approximate or dropout_p does not fit.
        NotImplementedError: dropout_p is not 0, and x is a DTensor, whose shards would share a mask.
    """
    if dropout_p == 0.0:
        return BIAS_GELU.call(x, bias, dim, approximate)
    return BIAS_GELU_DROPOUT.drop(BIAS_GELU_DROPOUT.draw_seed(x), x, bias, dim, approximate, dropout_p)


def gelu(x: Tensor, *, approximate: Approximate = "tanh") -> Tensor:
    """GELU of `x`: `bias_gelu` without a bias, which see."""
    return bias_gelu(x, approximate=approximate)


def bias_geglu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activated: Activated,
    dim: int = -1,
    approximate: Approximate = "tanh",
    dropout_p: float = 0.0,
) -> Tensor:
    """GELU of one half of `x + bias` times the other half: the gated GELU of a projection that makes both halves.

    With `u, w = (x + bias).chunk(2, dim)` that is `gelu(u) * w`, or `u * gelu(w)`, in one pass over memory. So is its
    backward pass, whose gradient of x is one tensor, as x is: nothing is cut or joined by copying.

    Args:
        x: a tensor with at least one dimension and an even size along dim, as for `bias_gelu`.
        bias: a tensor of shape `[x.shape[dim]]`, for both halves, or None, as for `bias_gelu`.
        activated: the half that goes through GELU. `"first"` as in Shazeer's paper, Megatron-LM, vLLM and ModernBERT;
            `"second"` as in diffusers' GEGLU, x-transformers and torch.nn.functional.glu. Both are common, so there is
            no default.
        dim: the dimension of x that has the two halves and that the bias runs along.
        approximate: the formula, see `bias_gelu`. The definition of GEGLU is from Shazeer, "GLU Variants Improve
            Transformer", https://arxiv.org/abs/2002.05202.
        dropout_p: the probability of dropout, of the result, see `bias_gelu`.

    Returns:
        A tensor of x's shape, but half of it along dim, in x's dtype and memory format. Gradients are as for
        `bias_gelu`.

    Raises:
        TypeError: x or bias is not a dense floating-point tensor, dim is not an int or dropout_p no float.
        ValueError: a shape, a device, activated, dim, approximate or dropout_p does not fit.
        NotImplementedError: dropout_p is not 0, and x is a DTensor.
    """
    if dropout_p == 0.0:
        return BIAS_GEGLU.call(x, bias, dim, approximate, activated)
    return BIAS_GEGLU_DROPOUT.drop(BIAS_GEGLU_DROPOUT.draw_seed(x), x, bias, dim, approximate, activated, dropout_p)


def bias_gelu_mul(
    x: Tensor,
    other: Tensor,
    bias: Tensor | None = None,
    other_bias: Tensor | None = None,
    *,
    dim: int = -1,
    approximate: Approximate = "tanh",
    dropout_p: float = 0.0,
) -> Tensor:
    """GELU of `x + bias` times `other + other_bias`: the gated GELU of two projections, as in Gemma and T5.

    One pass over memory forward and one backward. Where one projection makes both tensors use `bias_geglu`: the
    gradients of two halves would have to be joined by copying.

    Args:
        x: a tensor of any shape, as for `bias_gelu`.
        other: the factor, of x's shape and dtype, with any strides, on x's device.
        bias: a tensor of shape `[x.shape[dim]]`, or None, as for `bias_gelu`.
        other_bias: the same for other.
        dim: the dimension that the biases run along.
        approximate: the formula, see `bias_gelu`.
        dropout_p: the probability of dropout, of the result, see `bias_gelu`.

    Returns:
        A tensor of x's shape, dtype and memory format. Gradients are as for `bias_gelu`.

    Raises:
        TypeError: a tensor is not a dense floating-point tensor, other has not x's dtype, dim is not an int or
            dropout_p no float.
        ValueError: a shape, a device, dim, approximate or dropout_p does not fit.
        NotImplementedError: dropout_p is not 0, and x is a DTensor.
    """
    if dropout_p == 0.0:
        return BIAS_GELU_MUL.call(x, other, bias, other_bias, dim, approximate)
    seed = BIAS_GELU_MUL_DROPOUT.draw_seed(x)
    return BIAS_GELU_MUL_DROPOUT.drop(seed, x, other, bias, other_bias, dim, approximate, dropout_p)


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
