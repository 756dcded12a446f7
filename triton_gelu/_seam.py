"""The seam: what may be missing (Triton) and what PyTorch keeps private, guarded, in one place.

A private name that is gone never makes an answer wrong: the question is then answered so that the slower road is taken.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

kernels: Any = None  # the module of kernels, or None where Triton is not installed
try:
    from triton_gelu import _kernels as kernels
except ImportError as error:
    if not (error.name or "").startswith("triton") or (error.name or "").startswith("triton_gelu"):
        raise

INTERPRETED = kernels is not None and bool(kernels.INTERPRETED.value)

try:
    from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack

    forward_ad._current_level  # noqa: B018
    _known = True
except (ImportError, AttributeError):
    _known = False


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether a call on these is plain eager PyTorch: no compiler, transform, mode, subclass or forward-mode AD."""
    return (
        _known
        and not torch.compiler.is_compiling()
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and _len_torch_dispatch_stack() == 0
        and _len_torch_function_stack() == 0
        and all(
            t is None or (type(t) in (Tensor, torch.nn.Parameter) and not is_legacy_batchedtensor(t)) for t in tensors
        )
    )


@functools.cache
def triton_drives(device_type: str) -> bool:
    """Whether Triton kernels run on tensors of this device type here."""
    if kernels is None:
        return False
    if INTERPRETED:
        return device_type == "cpu"
    import triton

    try:
        driver = triton.runtime.driver.active
        return device_type == "cuda" or bool(driver.get_active_torch_device().type == device_type)
    except RuntimeError:  # no driver is active
        return False
