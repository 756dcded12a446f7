"""The gradient of a layer's bias, computed by the backward kernel of the GELU that follows.

A layer is PyTorch's own call, bias included: its output `h` is an ordinary tensor. To autograd, `attach` makes it a sum
of the product and the bias, so that every use of `h` is differentiated as usual. The backward pass of `fused_gelu`
adds up the rows of its gradient in the same pass over memory and leaves that sum on the node of `attach`. The node
takes it only if the gradient that arrives is the very tensor it was summed from; otherwise it sums what arrives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import gelu
from .gelu import EXACT_TYPES, Approximate


class Pending(NamedTuple):
    """A bias gradient that waits for the layer's node: `dbias`, summed from `dh`.

    `layout` is the shape and strides of the layer's output if GELU was given a view of it, whose gradient `dh` is.
    """

    dh: Tensor
    version: int
    dbias: Tensor | None
    layout: tuple[Any, Any] | None

    def is_of(self, dy: Tensor) -> bool:
        """Whether dy is the gradient that was summed, with every element in its place, unwritten since."""
        if self.version != dy._version:
            return False
        if self.layout is None:
            return dy is self.dh
        return (
            dy._base is self.dh
            and (dy.shape, dy.stride()) == self.layout
            and dy.storage_offset() == self.dh.storage_offset()
            and not dy.is_neg()
        )


class AddedBias(Function):
    """The output of a layer that was computed with a detached bias: the same tensor, with the bias in its history."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.bias_dtype, ctx.pending = dim, bias.dtype, None
        return h.data  # not a view, so that it may be written to: nobody else has h

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        pending, ctx.pending = ctx.pending, None
        if not ctx.needs_input_grad[1]:
            return dy, None, None
        if pending is not None and not torch.is_grad_enabled() and pending.is_of(dy):
            return dy, pending.dbias, None
        return dy, gelu.sum_to_bias(dy, ctx.dim, ctx.bias_dtype), None


attach = gelu.apply_without_functorch(AddedBias)
NODE: Any = AddedBias._backward_cls


class Source(NamedTuple):
    """Where the bias gradient of a GELU's argument goes: a layer's node, the argument's dimension, see `Pending`."""

    node: Any
    dim: int
    layout: tuple[Any, Any] | None


def source_of(h: Tensor) -> Source | None:
    """The layer that h is the output of, or a view with all of its elements and the bias along one dimension.

    A dimension of the view with the size and stride of the layer's is the layer's: the elements of a dense tensor can
    be divided into rows of equal steps in one way only.
    """
    node: Any = h.grad_fn
    if type(node) is NODE:
        return Source(node, node.dim, None)
    base = h._base if type(h) in EXACT_TYPES else None
    if base is None or type(base.grad_fn) is not NODE or base.shape.numel() != h.shape.numel() or h.is_neg():
        return None
    node = base.grad_fn
    row = base.shape[node.dim], base.stride(node.dim)
    for dim in range(-h.ndim, 0):
        if (h.shape[dim], h.stride(dim)) == row:
            return Source(node, dim, (base.shape, base.stride()))
    return None


class FusedGelu(Function):
    """GELU; its backward pass leaves the bias gradient on the layer's node."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, source: Source | None, formula: Approximate) -> Tensor:
        ctx.save_for_backward(h)
        ctx.source, ctx.formula = source, formula
        return gelu.gelu_forward(h, formula)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not (gelu.is_ordinary(dy, h) or is_traced(dy, h)):
            return gelu.gelu_backward_differentiable(dy, h, ctx.formula), None, None
        source = ctx.source
        if source is None or has_hooks(h):
            return gelu.gelu_backward(dy, h, None, ctx.formula, None)[0], None, None
        node, dim, layout = source
        dh, dbias = gelu.gelu_backward(dy, h, dim, ctx.formula, node.bias_dtype)
        if layout is None or dh.stride() == h.stride():
            node.pending = Pending(dh, dh._version, dbias, layout)
        return dh, None, None


_record = gelu.apply_without_functorch(FusedGelu)


def has_hooks(h: Tensor) -> bool:
    """Whether hooks see the gradient of h or of the tensor it is a view of. They may write to its data unmarked."""
    return bool(h._backward_hooks or (h._base is not None and h._base._backward_hooks))


def fused_gelu(h: Tensor, formula: Approximate) -> Tensor:
    """GELU of h, of a layer's output if possible. The call must be plain eager, or AOTAutograd's."""
    if h.requires_grad and torch.is_grad_enabled():
        y: Tensor = _record(h, source_of(h), formula)
        return y
    return gelu.gelu_forward(h, formula)


def is_traced(*tensors: Tensor) -> bool:
    """Whether these are AOTAutograd's, on which autograd works as in eager mode."""
    return all(isinstance(t, gelu.functional_tensor()) for t in tensors) and not gelu.is_transformed()
