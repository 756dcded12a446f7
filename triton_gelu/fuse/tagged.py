"""Tags the output of a fused layer, so that a call of `F.gelu` finds its layer where the GELU is not a module.

The layer gives its output the class `Tagged`. That changes nothing else: data, history and memory are the tensor's own.
`F.gelu` of it comes to `Tagged.__torch_function__`; the first other use, if it is more than a question about shape or
type, takes the class off again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import gelu
from .bias_gradient import fused_gelu

METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested")),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex),
    ]
)
"""Questions that leave the tag on."""

VIEWS = frozenset(
    [
        *(Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.unflatten),
        *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
        *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute),
        *(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze, Tensor.movedim, torch.movedim),
    ]
)  # fmt: skip
"""Functions whose result is the same tensor in another shape or order: the tag goes on."""

IDENTITIES = frozenset([F.dropout, torch.dropout, Tensor.contiguous, Tensor.to, Tensor.float])
"""Functions that may return their argument itself, which then keeps its tag."""


class Tagged(Tensor):
    """An ordinary tensor that a fused layer has just returned."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_dynamo_compiling():  # the output of an eager layer goes into a compiled function
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is F.gelu:
            formula = gelu_formula(*args, **kwargs)
            h: Any = args[0] if args else kwargs.get("input")
            untag(h)
            if formula in ("none", "tanh") and gelu.fits(h):
                return fused_gelu(h, formula)
            return func(*args, **kwargs)
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in IDENTITIES:
            with torch._C.DisableTorchFunctionSubclass():
                result: Any = func(*args, **kwargs)
            if args and result is not args[0]:
                untag(args)
            return result
        untag((args, kwargs))
        result = func(*args, **kwargs)
        if func in VIEWS and type(result) is Tensor and gelu.is_plain_eager():
            tag(result)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        untag(self)
        return self.__reduce_ex__(protocol)


def tag(h: Tensor) -> None:
    """Mark a tensor that a layer has just made."""
    h.__class__ = Tagged


def untag(tree: Any) -> None:
    """Take the tag off the tensors in (nested) arguments."""
    if type(tree) is Tagged:
        tree.__class__ = Tensor  # type: ignore[assignment]
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            untag(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            untag(item)


def gelu_formula(*args: Any, **kwargs: Any) -> Any:
    """The formula that this call of F.gelu asks for, or None where PyTorch would refuse the call."""
    if len(args) + ("input" in kwargs) != 1 or not kwargs.keys() <= {"input", "approximate"}:
        return None
    return kwargs.get("approximate", "none")
