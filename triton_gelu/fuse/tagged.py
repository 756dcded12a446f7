"""Tags the output of a fused layer, so that a call of `F.gelu` finds its layer where the GELU is not a module.

The layer gives its output the class `Tagged`. That changes nothing else: data, history and memory are the tensor's own.
`F.gelu` of it comes to `Tagged.__torch_function__`; the first other use, if it is more than a question about shape or
type, takes the class off again. The halves of a tagged tensor are tagged, too.

A GELU that is a factor waits for its product, see `Waiting`. That is right only as long as nobody writes to its
argument: so tags say that nobody else has used the argument, or what it is a half of, and the first to do so is
preceded by the GELU.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.utils._pytree import tree_map_only

from . import gelu
from .bias_gradient import fused_gelu
from .gated import PARTS, Half, divide, fused_product
from .gelu import Approximate
from .product import is_factor

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

PRODUCTS = frozenset([Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul])


class Tagged(Tensor):
    """An ordinary tensor that a fused layer has just returned, or a half of one."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_dynamo_compiling():  # the output of an eager layer goes into a compiled function
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in PRODUCTS and len(args) == 2 and type(args[1]) is Waiting:
            return args[1] * args[0]
        if func in PARTS and args and type(args[0]) is cls and "_watch" in args[0].__dict__ and gelu.is_plain_eager():
            return _divide(func, args, kwargs)
        if func is F.gelu:
            formula = gelu_formula(*args, **kwargs)
            h: Any = args[0] if args else kwargs.get("input")
            y = activate(h, formula, sys._getframe(1)) if formula in ("none", "tanh") and type(h) is cls else None
            if y is not None:
                return y
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


class Watch:
    """Shared by a tagged tensor and its halves: whether nobody has used them otherwise, and the GELU that waits."""

    __slots__ = ("intact", "saving", "waiting")

    def __init__(self) -> None:
        self.intact = True
        self.saving = gelu.saving() if torch.is_grad_enabled() else None
        self.waiting: ref[Waiting] | None = None

    def is_ready(self) -> bool:
        """Whether a GELU may wait. Not in a checkpoint without the layer: when it runs again, nothing is tagged."""
        return (
            self.intact and self.waiting is None and (gelu.saving() if torch.is_grad_enabled() else None) is self.saving
        )

    def disturb(self) -> None:
        """Say that one of the tensors is about to be used."""
        self.intact = False
        waiting = None if self.waiting is None else self.waiting()
        if waiting is not None:
            waiting.settle()


class Waiting:
    """GELU of a tagged tensor that is proven to become a factor of a product, and nothing else, see `product`.

    No tensor, since nobody can do anything with it but multiply. Should somebody else get hold of it after all, by a
    debugger, it is GELU's result to every function of PyTorch's.
    """

    __slots__ = ("__weakref__", "formula", "h", "recorded", "value", "version", "watch")
    __array_priority__ = Tensor.__array_priority__  # NumPy leaves products to us

    def __init__(self, h: Tensor, formula: Approximate, watch: Watch) -> None:
        self.h, self.formula, self.watch = h, formula, watch
        self.value: Tensor | None = None
        self.version = None if h.is_inference() else h._version
        self.recorded = torch.is_grad_enabled()
        watch.waiting = ref(self)

    def __mul__(self, other: Any) -> Any:
        if self.value is None and isinstance(other, Tensor):
            self._check_version()
            tagged = type(other) is Tagged
            if tagged:
                other.__class__ = Tensor
            if torch.is_grad_enabled() == self.recorded and self._matches(other):
                half = self._end()
                return fused_product(self.h, other, half, _release(other) if tagged else None, self.formula)
            if tagged:
                other.__class__ = Tagged
        untag(other)
        return self.settle() * other

    def _matches(self, other: Tensor) -> bool:
        """Whether the product of GELU and the other tensor can be computed as one; two halves are known to be alike."""
        h = self.h
        if other.__dict__.get("_watch") is self.watch:
            return h.shape == other.shape and gelu.is_plain_eager()
        return (h.shape, h.dtype, h.device) == (other.shape, other.dtype, other.device) and gelu.fits(other)

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and len(args) == 2 and type(args[1]) is cls and not kwargs:
            return args[1] * args[0]
        args, kwargs = tree_map_only(cls, cls.settle, (args, kwargs or {}))
        return func(*args, **kwargs)

    def settle(self) -> Tensor:
        """The result of GELU, computed alone."""
        if self.value is None:
            self._check_version()
            with torch.inference_mode(self.version is None), torch.set_grad_enabled(self.recorded):
                self.value = fused_gelu(self.h, self.formula)
            self._end()
        return self.value

    def _end(self) -> Half | None:
        """Nothing waits any more; returns what h is a half of."""
        self.watch.intact, self.watch.waiting = False, None
        return _release(self.h)

    def _check_version(self) -> None:
        self.h.__class__ = Tensor
        if self.version is not None and self.version != self.h._version:
            raise RuntimeError(
                "what a GELU was computed of has been written to before its product, in a way that fuse could not see; "
                "call triton_gelu.unfuse(model)"
            )


def tag(h: Tensor, watch: Watch | None = None) -> None:
    """Mark a tensor that a layer has just made; with a watch, one that is before a gate."""
    h.__class__ = Tagged
    if watch is not None:
        h._watch = watch  # type: ignore[attr-defined]


def untag(tree: Any) -> None:
    """Take the tag off the tensors in (nested) arguments, since they are about to be used."""
    if type(tree) is Tagged:
        tree.__class__ = Tensor  # type: ignore[assignment]
        state = tree.__dict__
        if state:
            state.pop("_half", None)
            watch = state.pop("_watch", None)
            if watch is not None:
                watch.disturb()
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            untag(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            untag(item)


def _release(h: Tensor) -> Half | None:
    """Take the tag off a tensor, and off what it is a half of, when its product is computed."""
    h.__class__ = Tensor
    state = h.__dict__
    state.pop("_watch", None)
    half: Half | None = state.pop("_half", None)
    if half is not None:
        half.joined.__class__ = Tensor
        half.joined.__dict__.pop("_watch", None)
    return half


def activate(h: Tensor, formula: Approximate, frame: FrameType) -> Any:
    """GELU of a tagged tensor, whose call `frame` is waiting for; None if it has to be PyTorch's own."""
    h.__class__ = Tensor
    if gelu.fits(h):
        watch: Watch | None = h.__dict__.get("_watch")
        if watch is not None and watch.is_ready() and is_factor(frame):
            waiting = Waiting(h, formula, watch)
            h.__class__ = Tagged
            return waiting
        h.__class__ = Tagged
        untag(h)
        return fused_gelu(h, formula)
    h.__class__ = Tagged
    return None


def _divide(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function returns that divides a tagged tensor; if that is halves of it, they are tagged."""
    h = args[0]
    h.__class__ = Tensor
    watch: Watch = h._watch
    result, found = divide(func, args, kwargs)
    h.__class__ = Tagged
    if not found or not watch.intact or "_half" in h.__dict__:
        untag(h)
        return result
    part: Any
    for part, half in found:
        part.__class__, part._watch, part._half = Tagged, watch, half
    return result


def gelu_formula(*args: Any, **kwargs: Any) -> Any:
    """The formula that this call of F.gelu asks for, or None where PyTorch would refuse the call."""
    if len(args) + ("input" in kwargs) != 1 or not kwargs.keys() <= {"input", "approximate"}:
        return None
    return kwargs.get("approximate", "none")
