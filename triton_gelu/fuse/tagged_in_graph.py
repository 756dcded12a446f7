"""Tags the output of a fused layer in a graph, as `tagged` does in eager calls: there it is AOTAutograd's tensors.

A GELU that may be a factor does not wait for its product here. It is recorded as PyTorch's own; when the product is one
kernel, nothing needs it, and compilers leave it out.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import gelu
from .bias_gradient import AddedBias, attach, fused_gelu, is_traced
from .gated import PARTS, divide, fused_product
from .gelu import EXACT_TYPES, Approximate
from .tagged import METADATA, PRODUCTS, VIEWS, Watch, gelu_formula, tag, untag


@functools.cache
def functional_types() -> tuple[Any, Any]:
    """AOTAutograd's class of tensors, and the same with a tag. It takes a second to import."""
    FunctionalTensor: Any = gelu.functional_tensor()

    class TaggedFunctional(FunctionalTensor):  # type: ignore[misc]
        """One that has a `_watch` is before a gated GELU, or that GELU."""

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            with torch._C.DisableTorchFunctionSubclass():
                if func in METADATA:
                    return func(*args, **kwargs)
                h: Any = args[0] if args else kwargs.get("input")
                if func is F.gelu and type(h) is cls:
                    formula = gelu_formula(*args, **kwargs)
                    if formula in ("none", "tanh") and is_traced(h):
                        return activate(h, formula)
                if func in PRODUCTS and len(args) == 2 and not kwargs:
                    product = _product(*args)
                    if product is not None:
                        return product
                if func in PARTS and type(h) is cls and hasattr(h, "_watch"):
                    return _divide(func, args, kwargs)
                disturb((args, kwargs))
                result = func(*args, **kwargs)
                if func in VIEWS and type(result) is FunctionalTensor:
                    result.__class__ = cls
                return result

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            """Where functions come that are not told of classes of tensors, such as torch.vmap's."""
            disturb((args, kwargs))
            return func(*args, **kwargs or {})

    return FunctionalTensor, TaggedFunctional


def disturb(tree: Any) -> None:
    """Take the tag off the tensors in (nested) arguments, since they are about to be used."""
    functional, tagged_functional = functional_types()
    for leaf in tree_leaves(tree):
        if type(leaf) is tagged_functional:
            leaf.__class__ = functional
            watch = leaf.__dict__.pop("_watch", None)
            if watch is not None:
                watch.intact = False


def activate(h: Any, formula: Approximate) -> Tensor:
    """GELU of a tagged tensor."""
    functional, tagged_functional = functional_types()
    watch = h.__dict__.get("_watch")
    h.__class__ = functional
    if watch is None or not watch.intact:
        return fused_gelu(h, formula)
    y: Any = gelu.torch_gelu(h, formula)
    h.__class__ = y.__class__ = tagged_functional
    y._watch, y._gelu = watch, (h, formula, torch.is_grad_enabled())
    return y  # type: ignore[no-any-return]


def _product(a: Any, b: Any) -> Tensor | None:
    """The product of a GELU and another tensor by one kernel, or None."""
    functional, tagged_functional = functional_types()
    for y, other in ((a, b), (b, a)):
        found = y.__dict__.get("_gelu") if type(y) is tagged_functional else None
        if found is None or not y._watch.intact or type(other) not in (functional, tagged_functional):
            continue
        h, formula, recorded = found
        alike = (h.shape, h.dtype, h.device) == (other.shape, other.dtype, other.device)
        if alike and torch.is_grad_enabled() == recorded and is_traced(h, other) and other is not y:
            half, twin = (t.__dict__.get("_half") for t in (h, other))
            disturb((y, h, other, half and half.joined))
            return fused_product(h, other, half, twin, formula)
    return None


def _divide(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function returns that divides a tagged tensor; if that is halves of it, they are tagged."""
    functional, tagged_functional = functional_types()
    h: Any = args[0]
    watch, h.__class__ = h._watch, functional
    result, found = divide(func, args, kwargs)
    h.__class__ = tagged_functional
    if not found or not watch.intact or "_half" in h.__dict__:
        disturb(h)
    else:
        part: Any
        for part, half in found:
            part.__class__, part._watch, part._half = tagged_functional, watch, half
    return result


def layer_in_graph(h: Tensor, bias: Tensor | None, dim: int, tagged: bool, gated: bool) -> Tensor:
    """What a fused layer does to its output in a graph: Dynamo does not look into it, AOTAutograd runs it.

    Args:
        h: computed with a detached bias if one is given, which belongs into its history.
        tagged: whether a GELU has to recognize h.
        gated: whether that GELU is a factor.
    """
    if bias is not None:
        real = type(h) in EXACT_TYPES and gelu.is_plain_eager()
        h = (attach if real else AddedBias.apply)(h, bias, dim)
    if not tagged:
        return h
    functional, tagged_functional = functional_types()
    if type(h) is functional:
        h.__class__ = tagged_functional
        if gated:
            h._watch = Watch()  # type: ignore[attr-defined]
    elif type(h) is Tensor and gelu.is_plain_eager():
        tag(h)
    return h


def gelu_in_graph(h: Tensor, formula: Approximate) -> Tensor:
    """The same of a GELU."""
    functional, tagged_functional = functional_types()
    if type(h) is tagged_functional and is_traced(h):
        return activate(h, formula)
    untag(h)
    if (type(h) is functional and is_traced(h)) or gelu.fits(h):
        return fused_gelu(h, formula)
    return gelu.torch_gelu(h, formula)


@gelu.untraced
def allow_in_graph() -> None:
    """Make Dynamo take these two as they are. While it traces; before that, its import would take seconds."""
    torch.compiler.allow_in_graph(layer_in_graph)
    torch.compiler.allow_in_graph(gelu_in_graph)
