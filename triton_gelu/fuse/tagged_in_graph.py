"""Tags the output of a fused layer in a graph, as `tagged` does in eager calls: there it is AOTAutograd's tensors."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import gelu
from .bias_gradient import AddedBias, attach, fused_gelu, is_traced
from .gelu import EXACT_TYPES, Approximate
from .tagged import METADATA, VIEWS, gelu_formula, tag, untag


@functools.cache
def functional_types() -> tuple[Any, Any]:
    """AOTAutograd's class of tensors, and the same with a tag. It takes a second to import."""
    FunctionalTensor: Any = gelu.functional_tensor()

    class TaggedFunctional(FunctionalTensor):  # type: ignore[misc]
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            with torch._C.DisableTorchFunctionSubclass():
                if func in METADATA:
                    return func(*args, **kwargs)
                formula = gelu_formula(*args, **kwargs) if func is F.gelu else None
                h: Any = args[0] if args else kwargs.get("input")
                tagged = type(h) is cls
                for leaf in tree_leaves((args, kwargs)):
                    if type(leaf) is cls:
                        leaf.__class__ = FunctionalTensor
                if tagged and formula in ("none", "tanh") and is_traced(h):
                    return fused_gelu(h, formula)
                result = func(*args, **kwargs)
                if func in VIEWS and type(result) is FunctionalTensor:
                    result.__class__ = cls
                return result

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            """Where functions come that are not told of classes of tensors, such as torch.vmap's."""
            for leaf in tree_leaves((args, kwargs)):
                if type(leaf) is cls:
                    leaf.__class__ = FunctionalTensor
            return func(*args, **kwargs or {})

    return FunctionalTensor, TaggedFunctional


def layer_in_graph(h: Tensor, bias: Tensor | None, dim: int, tagged: bool) -> Tensor:
    """What a fused layer does to its output in a graph: Dynamo does not look into it, AOTAutograd runs it.

    Args:
        h: computed with a detached bias if one is given, which belongs into its history.
    """
    if bias is not None:
        real = type(h) in EXACT_TYPES and gelu.is_plain_eager()
        h = (attach if real else AddedBias.apply)(h, bias, dim)
    if not tagged:
        return h
    functional, tagged_functional = functional_types()
    if type(h) is functional:
        h.__class__ = tagged_functional
    elif type(h) is Tensor and gelu.is_plain_eager():
        tag(h)
    return h


def gelu_in_graph(h: Tensor, formula: Approximate) -> Tensor:
    """The same of a GELU."""
    functional, tagged_functional = functional_types()
    if type(h) is tagged_functional:
        h.__class__ = functional
    untag(h)
    if (type(h) is functional and is_traced(h)) or gelu.fits(h):
        return fused_gelu(h, formula)
    return gelu.torch_gelu(h, formula)


@gelu.untraced
def allow_in_graph() -> None:
    """Make Dynamo take these two as they are. While it traces; before that, its import would take seconds."""
    torch.compiler.allow_in_graph(layer_in_graph)
    torch.compiler.allow_in_graph(gelu_in_graph)
