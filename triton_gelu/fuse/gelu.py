"""What `fuse` asks of the rest of the package: GELU of a layer's output, and what the current call may do.

Everything else in `fuse` is written in terms of these few functions, so that a change of the kernels' interface ends
here. The bias is already in `h`; only its gradient is wanted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _get_function_stack_at, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from ..core import compat_torch as _compat
from ..core import operators as _operators
from ..functional import FORMULAS, Approximate, gelu
from ..ops import bias_gelu as _bias_gelu

__all__ = ["FORMULAS", "Approximate", "gelu"]

EXACT_TYPES = _compat.EXACT
constant = _compat.constant
is_exporting = _compat.exporting
is_ordinary = _compat.ordinary
apply_without_functorch = _compat.recorder

DTYPES = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64])

SMALL = 1 << 16
"""Below so many elements, PyTorch adds up the bias gradient: its kernel then takes no longer than a launch does, while
the autograd node that takes over ours costs the host 9 microseconds."""


@constant
def has_kernels(device_type: str) -> bool:
    """Whether GELU is a kernel of ours on this device; on meta tensors, whether it would be where they may go."""
    return device_type == "meta" or _compat.triton_drives(device_type)


@constant
def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work."""
    return _compat._transformed()


class HarmlessMode(TorchFunctionMode):
    """A mode of `fuse` itself."""


def _are_modes_harmless() -> bool:
    """Whether the modes that are on are ours, or a default device, which changes nothing about existing tensors."""
    modes = [_get_function_stack_at(index) for index in range(_len_torch_function_stack())]
    return all(isinstance(mode, (HarmlessMode, DeviceContext)) for mode in modes)


def is_plain_eager() -> bool:
    """Whether this call is neither transformed, nor traced, nor seen by a mode of somebody else."""
    return (
        peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not _len_torch_dispatch_stack()
        and (not _len_torch_function_stack() or _are_modes_harmless())
        and torch._C._get_tracing_state() is None
    )


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
    return h * torch.sigmoid(1.702 * h) if formula == "sigmoid" else F.gelu(h, approximate=formula)


def gelu_forward(h: Tensor, formula: Approximate) -> Tensor:
    """GELU of h, not recorded by autograd."""
    if type(h) in EXACT_TYPES and not h.is_meta:
        return _operators.found(h, None, -1, formula).forward(h, None)
    return gelu(h, approximate=formula)


def gelu_backward(
    dy: Tensor, h: Tensor, dim: int | None, formula: Approximate, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of h and, if a dtype is given for it, its sum over everything but dim: one pass over memory."""
    dh: Tensor | None
    if type(h) in EXACT_TYPES:
        dh, _ = _operators.road(h).backward(dy, h, None, 0, formula, True, False)
    else:
        dh, _ = torch.ops.triton_gelu.backward(dy, h, None, 0, formula, [True, False])
    assert dh is not None
    return dh, None if bias_dtype is None or dim is None else sum_to_bias(dh, dim, bias_dtype)


def gelu_backward_differentiable(dy: Tensor, h: Tensor, formula: Approximate) -> Tensor:
    """The gradient of h in operators that PyTorch differentiates and transforms."""
    dh, _ = _bias_gelu.backward(dy, h, None, 0, formula, True, False)
    assert dh is not None
    return dh


def sum_to_bias(dh: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias that was added along dim < 0."""
    others = [d for d in range(-dh.ndim, 0) if d != dim]
    return dh.sum(others, dtype=dtype) if others else dh.to(dtype, copy=True)
