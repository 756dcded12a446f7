"""Gated GELUs to autograd: the halves of a layer's output, and the product of a GELU and another tensor as one kernel.

The graph stays as it is without `fuse`: a layer, its halves, their product. So any other use of the halves and any hook
finds what it expects. But the backward pass of the product computes the gradient of both halves in one tensor, with its
sum for the bias, and leaves it on the node of the halves; this takes it if what arrives are the very parts of it.
Otherwise it joins what arrives, as PyTorch does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import gelu
from .bias_gradient import NODE, Pending, Source, has_hooks, is_traced, source_of
from .gelu import Approximate

CHUNK = frozenset([Tensor.chunk, torch.chunk])
DIVISIONS = CHUNK | frozenset([Tensor.split, torch.split, Tensor.tensor_split, torch.tensor_split])
PARTS = DIVISIONS | frozenset([Tensor.__getitem__, Tensor.narrow, torch.narrow])
"""Functions that may divide a tensor into halves, DIVISIONS into both at once."""


class Half(NamedTuple):
    """That a tensor is a half of another one, along dim < 0: the first (0) or the second (1)."""

    joined: Tensor
    dim: int
    place: int


def half_of(h: Tensor, part: Tensor) -> Half | None:
    """That part is a half of h, if it is."""
    if type(part) is not type(h) or part.ndim != h.ndim or part.stride() != h.stride():
        return None
    dims = [dim for dim in range(-h.ndim, 0) if part.shape[dim] != h.shape[dim]]
    if len(dims) != 1 or 2 * part.shape[dims[0]] != h.shape[dims[0]]:
        return None
    step, offset = part.shape[dims[0]] * h.stride(dims[0]), part.storage_offset() - h.storage_offset()
    if offset not in (0, step) or not step or not (part._is_view() or _lies_in(h, part, offset)):
        return None
    return Half(h, dims[0], int(offset != 0))


def _lies_in(h: Tensor, part: Tensor, offset: Any) -> bool:
    """Whether inference tensors share memory: of those, PyTorch does not note what is a view."""
    return h.is_inference() and part.data_ptr() == h.data_ptr() + offset * h.element_size() != 0


class PendingHalves(NamedTuple):
    """The gradients of both halves, which are parts of `dh`, waiting for the node of the halves."""

    dh: Tensor
    version: int
    parts: tuple[Tensor, Tensor]

    def are_of(self, first: Tensor, second: Tensor) -> bool:
        """Whether these are the gradients that were left, unwritten since."""
        return first is self.parts[0] and second is self.parts[1] and self.version == self.dh._version


class Halves(Function):
    """The two halves of a tensor along dim < 0, views of it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, dim: int) -> tuple[Tensor, ...]:
        ctx.dim, ctx.pending = dim, None
        return h.chunk(2, dim)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        pending, ctx.pending = ctx.pending, None
        if pending is not None and not torch.is_grad_enabled() and pending.are_of(first, second):
            return pending.dh, None
        return torch.cat((first, second), ctx.dim), None


_split = gelu.apply_without_functorch(Halves)
SPLIT: Any = Halves._backward_cls


def divide(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[tuple[Tensor, Half]]]:
    """What one of PARTS returns, in history as `Halves` if possible; and the halves in it, if nothing else is there.

    The call must be plain eager, or AOTAutograd's.
    """
    h: Tensor = args[0]
    recorded = h.requires_grad and torch.is_grad_enabled()
    dim = _dim_of_chunk(h, *args[1:], **kwargs) if func in CHUNK else None
    if dim is not None:
        parts = _split(h, dim) if recorded else func(*args, **kwargs)
        return parts, [(part, Half(h, dim, place)) for place, part in enumerate(parts)]
    result = func(*args, **kwargs)
    parts = result if isinstance(result, (tuple, list)) else (result,)
    found = [half_of(h, part) for part in parts]
    if recorded and len(parts) == 2 and found[0] and found[1] and func in DIVISIONS:
        dim = found[0].dim
        result = parts = _split(h, dim)
        found = [Half(h, dim, 0), Half(h, dim, 1)]
    pairs = [(part, half) for part, half in zip(parts, found, strict=True) if half is not None]
    return result, pairs if len(pairs) == len(parts) else []


def _dim_of_chunk(h: Tensor, chunks: int, dim: int = 0) -> int | None:
    """The dimension < 0 along which a call of chunk divides h into halves, or None."""
    if chunks != 2 or type(dim) is not int or not -h.ndim <= dim < h.ndim or h.shape[dim] % 2 or not h.shape[dim]:
        return None
    return dim % h.ndim - h.ndim


class JoinedProduct(Function):
    """GELU of a half times the other half."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, w: Tensor, half: Half, node: Any, source: Source | None, formula: Approximate
    ) -> Tensor:
        ctx.save_for_backward(u, w, half.joined)
        ctx.node, ctx.source, ctx.dim, ctx.place, ctx.formula = node, source, half.dim, half.place, formula
        return gelu.geglu_forward(half.joined, half.dim, half.place, formula)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, w, h = ctx.saved_tensors
        if torch.is_grad_enabled() or not (gelu.is_ordinary(dy, h) or is_traced(dy, h)):
            return (*_differentiable(dy, u, w, ctx.formula, ctx.needs_input_grad), None, None, None, None)
        source = ctx.source
        bias_dtype = None if source is None else source.node.bias_dtype
        dh, dbias = gelu.geglu_backward(dy, h, ctx.dim, ctx.place, ctx.formula, bias_dtype)
        first, second = parts = dh.chunk(2, ctx.dim)
        if not (has_hooks(u) or has_hooks(w) or has_hooks(h)):
            ctx.node.pending = PendingHalves(dh, dh._version, (first, second))
            if source is not None:
                source.node.pending = Pending(dh, dh._version, dbias, None)
        return parts[ctx.place], parts[1 - ctx.place], None, None, None, None


class Product(Function):
    """GELU of u times w, two tensors of one shape; either may be the output of a layer."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, w: Tensor, sources: tuple[Source | None, Source | None], formula: Approximate
    ) -> Tensor:
        ctx.save_for_backward(u, w)
        ctx.sources, ctx.formula = sources, formula
        return gelu.gelu_mul_forward(u, w, formula)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, w = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or not (gelu.is_ordinary(dy, u, w) or is_traced(dy, u, w)):
            return (*_differentiable(dy, u, w, ctx.formula, needs), None, None)
        sources = [None if has_hooks(t) else source for t, source in zip((u, w), ctx.sources, strict=True)]
        dim = next((source.dim for source in sources if source is not None), None)
        sources = [source if source is not None and source.dim == dim else None for source in sources]
        dtypes = [None if source is None else source.node.bias_dtype for source in sources]
        gradients = gelu.gelu_mul_backward(dy, u, w, dim, ctx.formula, needs, (dtypes[0], dtypes[1]))
        for given, gradient, dbias, source in zip((u, w), gradients[:2], gradients[2:], sources, strict=True):
            if source is None or gradient is None:
                continue
            if source.layout is None or gradient.stride() == given.stride():
                source.node.pending = Pending(gradient, gradient._version, dbias, source.layout)
        return gradients[0], gradients[1], None, None


_record_joined = gelu.apply_without_functorch(JoinedProduct)
_record_pair = gelu.apply_without_functorch(Product)


def _differentiable(dy: Tensor, u: Tensor, w: Tensor, formula: Approximate, needs: Any) -> tuple[Tensor | None, ...]:
    """The gradients of u and w in operators that PyTorch differentiates and transforms."""
    du = gelu.gelu_backward_differentiable(dy * w, u, formula) if needs[0] else None
    return du, dy * gelu.gelu_differentiable(u, formula) if needs[1] else None


def fused_product(u: Tensor, w: Tensor, half: Half | None, twin: Half | None, formula: Approximate) -> Tensor:
    """GELU of u times w, which are the halves that are said; the call must be plain eager, or AOTAutograd's."""
    joined = (
        half is not None
        and twin is not None
        and half.joined is twin.joined
        and (half.dim, half.place) == (twin.dim, 1 - twin.place)
    )
    if not (torch.is_grad_enabled() and (u.requires_grad or w.requires_grad)):
        if half is not None and joined:
            return gelu.geglu_forward(half.joined, half.dim, half.place, formula)
        return gelu.gelu_mul_forward(u, w, formula)
    node: Any = u.grad_fn
    if half is not None and joined and type(node) is SPLIT and node is w.grad_fn:
        y: Tensor = _record_joined(u, w, half, node, _source_along(half.joined, half.dim), formula)
    else:
        y = _record_pair(u, w, (source_of(u), source_of(w)), formula)
    return y


def _source_along(h: Tensor, dim: int) -> Source | None:
    """The layer that h is the output of, if its bias runs along dim."""
    node: Any = h.grad_fn
    return Source(node, dim, None) if type(node) is NODE and node.dim == dim else None
