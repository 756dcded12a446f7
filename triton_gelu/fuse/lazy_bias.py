"""A bias that waits: what a layer returns between its product and the GELU that may follow.

`defer(product, bias, dim)` stands for `product + bias`. GELU of it is `bias_gelu(product, bias)`, with the formula of
that very call; anything else that is done to it adds the bias first. So a second consumer, a slice, a hook or an
operation in place is as right as it was, and as slow.

In eager mode that is a tensor without storage, differentiable like any other. While PyTorch compiles, it is the sum
itself, which the compiler drops if nobody needs it, and `Watch` looks out for the GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..core import compat_torch
from ..functional import Approximate, bias_gelu


class Split(NamedTuple):
    """An operator taken apart: `product()`, to which `bias` is added along `dim`."""

    product: Callable[[], Tensor]
    bias: Tensor | None
    dim: int
    operands: tuple[Tensor, ...]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Split:
    return Split(partial(F.linear, input, weight), bias, -1, (input, weight))


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Split:
    bias = input if input.ndim == 1 and len(input) == mat2.shape[1] and beta == alpha == 1 else None
    return Split(partial(torch.mm, mat1, mat2), bias, -1, (mat1, mat2))


def _convolution(function: Callable[..., Tensor], dim: int) -> Callable[..., Split]:
    def split(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Split:
        return Split(partial(function, input, weight, None, *rest, **named), bias, dim, (input, weight))

    return split


PRODUCERS: dict[Any, Callable[..., Split]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.conv1d: _convolution(F.conv1d, -2),
    F.conv2d: _convolution(F.conv2d, -3),
    F.conv3d: _convolution(F.conv3d, -4),
    F.conv_transpose1d: _convolution(F.conv_transpose1d, -2),
    F.conv_transpose2d: _convolution(F.conv_transpose2d, -3),
    F.conv_transpose3d: _convolution(F.conv_transpose3d, -4),
}
"""The operators whose bias can wait."""

VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)
"""They leave the bias where it is when they keep the last dimension, and a layer's own forward may end in one."""

METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested")),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex),
    ]
)
"""Questions that have the same answer with and without the bias."""

INPUTS = {
    torch.autograd.grad: 1,
    torch.autograd.backward: 5,
    Tensor.backward: 4,
    Tensor.register_hook: 0,
    Tensor.retain_grad: 0,
    Tensor.grad.__get__: 0,  # type: ignore[union-attr]
    Tensor.retains_grad.__get__: 0,  # type: ignore[attr-defined]
}
"""Functions about the gradient of an argument, and its position. The gradient of a sum is that of its product, where
all uses of the sum arrive, fused or not."""

GELUS: dict[Any, Callable[..., Approximate]] = {F.gelu: lambda input, *, approximate="none": approximate}
"""The functions that are a GELU of their first argument, and the formula they use."""

Terms = tuple[Tensor, Tensor, int]


def add(product: Tensor, bias: Tensor, dim: int) -> Tensor:
    """product + bias, in product's dtype."""
    return (product + bias.view(-1, *[1] * (-1 - dim))).to(product.dtype)


def defer(product: Tensor, bias: Tensor, dim: int) -> Tensor:
    """What stands for product + bias until somebody asks for more than its GELU."""
    if torch.compiler.is_compiling():
        total = add(product, bias, dim)
        for watch in watches:
            watch.pending.append((total, (product, bias, dim)))
        return total
    if not (torch.is_grad_enabled() and (product.requires_grad or bias.requires_grad)):
        return Deferred(product, bias.detach(), dim)
    deferred: Deferred = _Defer.apply(product, bias, dim)
    with torch._C.DisableTorchFunctionSubclass():
        deferred.node = deferred.grad_fn
    return deferred


class Deferred(Tensor):
    """product + bias, not yet added: a tensor without storage.

    Attributes:
        terms: the arguments of `defer`, with their own autograd history.
        node: its grad_fn at birth. Another one means that a Function has returned it: the terms are not its history.
        fused: whether it has been the argument of a GELU.
        total: the sum, once somebody has asked for it. All later uses go there, those in place too.
    """

    terms: Terms
    node: Any
    fused: bool
    total: Tensor | None

    @staticmethod
    def __new__(cls, product: Tensor, bias: Tensor, dim: int) -> Deferred:
        wrapper: Deferred = Tensor._make_wrapper_subclass(
            cls, product.shape, product.stride(), dtype=product.dtype, device=product.device
        )
        wrapper.terms, wrapper.node, wrapper.fused, wrapper.total = (product, bias, dim), None, False, None
        return wrapper

    def __init__(self, product: Tensor, bias: Tensor, dim: int) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in GELUS and (fused := fused_gelu(args[0], GELUS[func](*args, **kwargs))) is not None:
            return fused
        if func in INPUTS:
            place = INPUTS[func]
            head, inputs, tail = args[:place], args[place : place + 1], args[place + 1 :]
            args = (*head, *tree_map_only(cls, cls.same_gradient, inputs), *tail)
            kwargs = kwargs | tree_map_only(cls, cls.same_gradient, {k: v for k, v in kwargs.items() if k == "inputs"})
        return func(*tree_map_only(cls, cls.settle, args), **tree_map_only(cls, cls.settle, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Where C++ asks; autograd is above. The clone of a deferred sum is the sum."""
        if func is torch.ops.aten.clone.default and args[0].total is None:
            return args[0].value()
        return func(*tree_map_only(cls, cls.value, args), **tree_map_only(cls, cls.value, kwargs or {}))

    def pristine(self) -> bool:
        """Whether its terms are still the whole truth: no Function has returned it, nobody may have written to the sum.

        Once fused, a sum that is only read does not change that: a checkpoint has to do the same thing twice.
        """
        with torch._C.DisableTorchFunctionSubclass():
            unread = self.total is None or (self.fused and self.total._version == 0)
            return unread and self.grad_fn is self.node

    def same_gradient(self) -> Tensor:
        """The tensor to ask about this one's gradient."""
        with torch._C.DisableTorchFunctionSubclass():
            written = self.total is not None and self.total._version > 0
            return self.settle() if written or self.grad_fn is not self.node else self.terms[0]

    def settle(self) -> Tensor:
        """The sum, always the same tensor, with this one's place in autograd's graph wherever it is first asked for."""
        if self.total is None:
            with torch._C.DisableTorchFunctionSubclass(), torch.enable_grad():
                self.total = self.clone()
        return self.total

    def value(self) -> Tensor:
        """The sum, without history."""
        if self.total is not None:
            return self.total.detach()
        return add(*self.terms)


class _Defer(Function):
    """To autograd, a deferred sum is a sum."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, bias: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.bias_dtype = dim, bias.dtype
        return Deferred(product, bias, dim)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_product, needs_bias, _ = ctx.needs_input_grad
        others = [d for d in range(-dy.ndim, 0) if d != ctx.dim]
        dbias = (dy.sum(others) if others else dy).to(ctx.bias_dtype) if needs_bias else None
        return dy if needs_product else None, dbias, None


class Deferring(TorchFunctionMode):
    """In a layer's own forward, lets the biases of some of its calls of `PRODUCERS` wait: those at `ordinals`."""

    def __init__(self, ordinals: frozenset[int]) -> None:
        super().__init__()
        self.ordinals = ordinals
        self.calls = 0
        self.deferred: Tensor | None = None
        self.terms: Terms | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCERS:
            self.calls += 1
            if self.calls - 1 in self.ordinals:
                split = PRODUCERS[func](*args, **kwargs)
                if split.bias is not None and _can_wait(*split.operands, split.bias):
                    return self.defer(split.product(), split.bias, split.dim)
        elif func in VIEWS and self.terms is not None and args[0] is self.deferred:
            product, bias, dim = self.terms
            view = func(product, *args[1:], **kwargs)
            if keeps_last(view, product) and dim == -1:
                return self.defer(view, bias, dim)
        return func(*args, **kwargs)

    def defer(self, product: Tensor, bias: Tensor, dim: int) -> Tensor:
        self.terms = product, bias, dim
        self.deferred = defer(product, bias, dim)
        return self.deferred


class Watch(TorchFunctionMode):
    """While PyTorch compiles: replaces the GELU of a sum that `defer` made and nothing else has touched."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[tuple[Tensor, Terms]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in GELUS:
            if (fused := fused_gelu(args[0], GELUS[func](*args, **kwargs))) is not None:
                return fused
        elif func not in METADATA and self.pending:
            touched = tree_leaves((args, kwargs))
            self.pending = [entry for entry in self.pending if not any(leaf is entry[0] for leaf in touched)]
        return func(*args, **kwargs)


watches: list[Watch] = []
"""Those that are on, outermost first. (Dynamo has no way to ask for the modes.)"""


def fused_gelu(x: Any, formula: Approximate) -> Tensor | None:
    """GELU of x if x is a deferred sum that nothing else has touched."""
    if isinstance(x, Deferred):
        x.fused = x.pristine()
        return _gelu(x.terms, formula) if x.fused else None
    for watch in watches:
        for total, terms in watch.pending:
            if total is x:
                return _gelu(terms, formula)
    return None


def _gelu(terms: Terms, formula: Approximate) -> Tensor:
    product, bias, dim = terms
    return bias_gelu(product, bias, dim=dim, approximate=formula)


def keeps_last(view: Tensor, of: Tensor) -> bool:
    """Whether a view of a tensor has the same last dimension."""
    return view.dtype == of.dtype and view.ndim > 0 and view.shape[-1] == of.shape[-1]


def _can_wait(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return len(watches) > 0  # Dynamo of PyTorch 2.9 knows no bool of a list
    return compat_torch.is_plain_eager(*tensors) and torch._C._get_tracing_state() is None
