"""The only module of fuse that imports operators: GELU of a layer's output and its gradients, and what call this is.

Everything else in `fuse` is written in terms of these few functions, so that a change of the operators' interface ends
here. The bias is already in `h`; only its gradient is wanted.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core import compat_torch
from ..core.checks import DTYPES
from ..core.compat_torch import EXACT as EXACT_TYPES
from ..core.compat_torch import (
    apply_without_functorch,
    functional_tensor,
    is_exporting,
    is_transformed,
    saving,
    untraced,
)
from ..core.compat_torch import is_plain_eager as is_ordinary
from ..core.declare import BACKWARD
from ..core.dispatch import drives, insist
from ..core.op import Op
from ..formulas import FORMULAS, Approximate
from ..functional import bias_geglu, bias_gelu_mul, gelu
from ..ops.bias_geglu import BIAS_GEGLU
from ..ops.bias_gelu import BIAS_GELU, PLAIN
from ..ops.bias_gelu_mul import BIAS_GELU_MUL
from ..ops.gelu_after_bias import GELU_AFTER_BIAS
from ..ops.halves import Activated

__all__ = [
    "EXACT_TYPES",
    "FORMULAS",
    "Approximate",
    "apply_without_functorch",
    "drives",
    "functional_tensor",
    "gelu",
    "is_exporting",
    "is_ordinary",
    "is_transformed",
    "saving",
    "untraced",
]

ACTIVATED: tuple[Activated, Activated] = get_args(Activated)
"""Which half goes through GELU, by its place."""

SMALL = 1 << 16
"""Below so many elements, PyTorch adds up the bias gradient: its kernel then takes no longer than a launch does, while
the autograd node that takes over ours costs the host 9 microseconds."""


@untraced
def has_kernels(device_type: str) -> bool:
    """Whether GELU is a kernel of ours on this device; on meta tensors, whether it would be where they may go."""
    return device_type == "meta" or insist(drives(device_type), device_type).possible


class HarmlessMode(TorchFunctionMode):
    """A mode of `fuse` itself."""


def is_plain_eager() -> bool:
    """Whether this call is neither transformed, nor traced, nor seen by a mode of somebody else."""
    return compat_torch.is_unseen(HarmlessMode)


def fits(h: Tensor) -> bool:
    """Whether `gelu_forward` takes h, in a plain eager call."""
    return (
        type(h) in EXACT_TYPES
        and h.layout is torch.strided
        and h.dtype in DTYPES
        and h.ndim > 0
        and not (h.is_nested or h.is_neg())
        and is_plain_eager()
    )


def torch_gelu(h: Tensor, formula: Approximate) -> Tensor:
    """GELU by PyTorch's own operators."""
    return FORMULAS[formula].standard(h)


def gelu_forward(h: Tensor, formula: Approximate) -> Tensor:
    """GELU of h, not recorded by autograd."""
    if type(h) in EXACT_TYPES:
        return BIAS_GELU.forward(h, None, -1, formula)
    return gelu(h, approximate=formula)


def gelu_backward(
    dy: Tensor, h: Tensor, dim: int | None, formula: Approximate, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of h and, if a dtype is given for it, its sum over everything but dim: one pass over memory."""
    if dim is None or bias_dtype is None:
        dh, dbias = _gradients(BIAS_GELU, (dy, h, None), (0, formula), [True, False])[0], None
    else:
        bias = h.new_empty((), dtype=bias_dtype).expand(h.shape[dim])  # its values are nowhere read
        dh, dbias = _gradients(GELU_AFTER_BIAS, (dy, h, bias), (dim % h.ndim, formula), [True, True])
    assert dh is not None
    return dh, dbias


def geglu_forward(h: Tensor, dim: int, index: int, formula: Approximate) -> Tensor:
    """GELU of one half of h along dim < 0, of the first (0) or the second (1), times the other; not recorded."""
    if type(h) in EXACT_TYPES:
        return BIAS_GEGLU.forward(h, None, dim % h.ndim, formula, ACTIVATED[index])
    return bias_geglu(h, activated=ACTIVATED[index], dim=dim, approximate=formula)


def geglu_backward(
    dy: Tensor, h: Tensor, dim: int, index: int, formula: Approximate, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of h and, if a dtype is given for it, its sum over everything but dim: one pass over memory."""
    bias = None if bias_dtype is None else h.new_zeros(h.shape[dim], dtype=bias_dtype)
    options = dim % h.ndim, formula, ACTIVATED[index]
    dh, dbias = _gradients(BIAS_GEGLU, (dy, h, bias), options, [True, bias is not None])
    assert dh is not None
    return dh, dbias


def gelu_mul_forward(u: Tensor, w: Tensor, formula: Approximate) -> Tensor:
    """GELU of u times w, not recorded by autograd."""
    if type(u) in EXACT_TYPES:
        return BIAS_GELU_MUL.forward(u, w, None, None, -1 % u.ndim, formula)
    return bias_gelu_mul(u, w, approximate=formula)


def gelu_mul_backward(
    dy: Tensor,
    u: Tensor,
    w: Tensor,
    dim: int | None,
    formula: Approximate,
    needs: tuple[bool, bool],
    bias_dtypes: tuple[torch.dtype | None, torch.dtype | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of u and w that are needed and, where dtypes are given for them, their sums over all but dim."""
    size = 0 if dim is None else u.shape[dim]
    biases = [None if each is None else u.new_zeros(size, dtype=each) for each in bias_dtypes]
    options = (-1 if dim is None else dim) % u.ndim, formula
    return _gradients(BIAS_GELU_MUL, (dy, u, w, *biases), options, [*needs, *(bias is not None for bias in biases)])


def _gradients(
    op: Op, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...], needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of an operator by the fastest backend, or, of a compiler's tensors, by an operator of its graph."""
    if type(tensors[1]) in EXACT_TYPES:
        return op.backward(*tensors, *options, tuple(needs))
    op.register_decompositions()
    found = op.operators[BACKWARD](*tensors, *options, needs)
    return tuple([gradient if needed else None for gradient, needed in zip(found, needs, strict=True)])


def gelu_differentiable(h: Tensor, formula: Approximate) -> Tensor:
    """GELU of h in operators that PyTorch differentiates and transforms."""
    return PLAIN.forward(h, None, 0, formula)


def gelu_backward_differentiable(dy: Tensor, h: Tensor, formula: Approximate) -> Tensor:
    """The gradient of h in operators that PyTorch differentiates and transforms."""
    dh, _ = PLAIN.backward(dy, h, None, 0, formula, (True, False))
    assert dh is not None
    return dh


def sum_to_bias(dh: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias that was added along dim < 0."""
    others = [d for d in range(-dh.ndim, 0) if d != dim]
    return dh.sum(others, dtype=dtype) if others else dh.to(dtype, copy=True)
